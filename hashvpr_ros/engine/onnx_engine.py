"""The engine of `.onnx` files, by ONNX Runtime."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hashvpr_ros.engine.base import (
    MOST_CELLS,
    AnsweringEngine,
    EngineInfo,
    check_answer,
    check_images,
    closed,
    outputs_of,
    runtime_errors,
)
from hashvpr_ros.engine.onnx_file import OnnxFile, read_onnx
from hashvpr_ros.errors import EngineError, reason_of
from hashvpr_ros.types import CODE_BYTES

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
PREFERRED_PROVIDERS = ("CUDAExecutionProvider", _CPU)
# Most time to load a file and, again, for the first image. Other providers may build for minutes.
_MOST_S = 120.0
_MOST_SIDE, _MOST_DIM, _MOST_BATCH = 4096, 65536, 1024  # pixels, elements, images
_Answer = list[NDArray[Any]]  # in the order of `outputs_of`
_T = TypeVar("_T")


class OnnxEngine(AnsweringEngine):
    """A model in the graph contract of `docs/architecture.md`. Used by one thread at a time.

    Args:
        path: of the .onnx file.
        providers: execution providers in order of preference; those not installed are passed
            over. Empty: CUDA where it is installed, else the CPU.
        threads: of the runtime; 0 is one per core.

    Raises:
        EngineError: the file is missing, damaged or of another contract, or no provider is there.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = (), threads: int = 0) -> None:
        file = read_onnx(path)
        self.path = file.path
        self._session: onnxruntime.InferenceSession | None = None
        chosen = _choose_providers(providers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between images keep a robot's cores from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session, problem = _open_session(file, options, chosen)
        self.info, self._batch = _read_info(session, file)
        self._outputs = list(outputs_of(self.info))
        self._session = session
        self._bounded = set(session.get_providers()) <= set(PREFERRED_PROVIDERS)
        self._has_answered = False
        unused = [p for p in chosen if p not in session.get_providers()]
        if unused:
            _log.warning(
                "%s runs on %s, for %s could not be loaded%s; check its driver and libraries, or "
                "correct engine.providers",
                self.path.name,
                self.info.provider,
                ", ".join(unused),
                f" ({problem})" if problem else "",
            )
        _log.info(
            "engine %s %s: %d x %d pixels, %d-d features, on %s",
            self.info.name,
            self.info.fingerprint[:12],
            self.info.width,
            self.info.height,
            self.info.feature_dim,
            ", ".join(session.get_providers()),
        )

    def _answer(self, images: NDArray[np.uint8]) -> _Answer:
        if self._session is None:
            raise closed(self.path)
        images = np.ascontiguousarray(check_images(images, self.info, self.path))
        with runtime_errors(
            self.path,
            "the runtime failed",
            "export the model again, or choose another of engine.providers",
        ):
            answer = self._run(images)
        check_answer(answer, len(images), self.info, self.path)
        return answer

    def _run(self, images: NDArray[np.uint8]) -> _Answer:
        if self._batch in (0, len(images)):
            return self._run_batch(images)
        # The model takes a fixed number of images: the last ones are repeated.
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % self._batch, 0)])
        parts = [
            self._run_batch(padded[start : start + self._batch])
            for start in range(0, len(padded), self._batch)
        ]
        return [np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)]

    def _run_batch(self, images: NDArray[np.uint8]) -> _Answer:
        session = self._session
        assert session is not None
        names, given = self._outputs, {"images": images}
        if self._has_answered or not self._bounded:
            answer: _Answer = session.run(names, given)
            return answer
        options = onnxruntime.RunOptions()

        def stop() -> None:
            options.terminate = True  # which is looked at between two operators

        answer = _within(_MOST_S, lambda: session.run(names, given, options), stop)
        self._has_answered = True
        return answer

    def close(self) -> None:
        """See `DescriptorEngine.close`."""
        self._session = None


def _within(seconds: float, do: Callable[[], _T], stop: Callable[[], None] = lambda: None) -> _T:
    """What a function returns or raises, in a thread of its own, which is waited for so long.

    Python cannot end a thread that is inside a library. One that does not stop is left behind, so
    that its caller can go on.

    Args:
        stop: called once it took too long; the function may end by that.

    Raises:
        TimeoutError: it took longer.
    """
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(do())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, name="onnx_engine", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        stop()
        thread.join(1.0)
        raise TimeoutError(f"it did not end within {seconds:g} s")
    if errors:
        raise errors[0]
    return answers[0]


def model_info(file: OnnxFile) -> EngineInfo:
    """What an .onnx file holds, checked against the graph contract; quicker than an engine.

    Raises:
        EngineError: it cannot be loaded, or is of another contract.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _read_info(_open_session(file, options, [_CPU])[0], file)[0]


def _open_session(
    file: OnnxFile, options: onnxruntime.SessionOptions, providers: list[str]
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session, by the CPU where the providers fail; and why they did, or ""."""
    options.log_severity_level = 4  # what goes wrong is raised
    problem = ""
    if providers != [_CPU]:
        try:
            return _load_session(file, options, providers), ""
        except TimeoutError as e:
            raise _not_loaded(file, e) from e
        except Exception as e:  # as in `runtime_errors`
            problem = reason_of(e)
    try:
        return _load_session(file, options, [_CPU]), problem
    except Exception as e:
        raise _not_loaded(file, e) from e


def _not_loaded(file: OnnxFile, error: Exception) -> EngineError:
    reason, remedy = reason_of(error), "export it again"
    if re.search(r"\bIR version|\bopset", reason, re.IGNORECASE):
        remedy = "install a newer onnxruntime, or export it again for the one that is installed"
    return EngineError(f"{file.path}: cannot be loaded as an ONNX model ({reason}); {remedy}")


def _load_session(
    file: OnnxFile, options: onnxruntime.SessionOptions, providers: list[str]
) -> onnxruntime.InferenceSession:
    def load() -> onnxruntime.InferenceSession:
        # The bytes that were checked, and not the file once more, which may be another by now.
        return onnxruntime.InferenceSession(
            file.content, options, providers=providers, enable_fallback=0
        )

    session = _within(_MOST_S, load) if set(providers) <= set(PREFERRED_PROVIDERS) else load()
    session._model_bytes = None  # kept only to fall back on the CPU in silence
    return session


def _choose_providers(wanted: Sequence[str]) -> list[str]:
    available = onnxruntime.get_available_providers()
    chosen = [p for p in (wanted or PREFERRED_PROVIDERS) if p in available]
    missing = [p for p in wanted if p not in available]
    if missing:
        _log.warning(
            "execution providers not installed: %s; installed are %s",
            ", ".join(missing),
            ", ".join(available),
        )
    if not chosen:
        raise EngineError(
            f"none of the execution providers {', '.join(wanted)} is installed; installed are "
            f"{', '.join(available)}: correct engine.providers"
        )
    return chosen


def _read_info(session: onnxruntime.InferenceSession, file: OnnxFile) -> tuple[EngineInfo, int]:
    """What a model says of itself, and how many images it takes at a time; 0: any number."""
    with runtime_errors(file.path, "cannot be loaded as an ONNX model", "export it again"):
        return _checked_info(session, file)


def _checked_info(session: onnxruntime.InferenceSession, file: OnnxFile) -> tuple[EngineInfo, int]:
    path, meta = file.path, file.metadata
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name: o for o in session.get_outputs()}

    def refuse(reason: str) -> EngineError:
        return EngineError(
            f"{path}: not a model of hashvpr_ros: {reason}; export it with `hashvpr export`"
        )

    if set(inputs) != {"images"} or not {"codes", "features"} <= set(outputs):
        raise refuse(
            f"its inputs are {_names(inputs)} and its outputs {_names(outputs)}, not 'images' and "
            "'codes', 'features'"
        )
    image, code, feature = inputs["images"], outputs["codes"], outputs["features"]
    shape = image.shape
    if image.type != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise refuse(f"'images' is {image.type} {_short(shape)}, not uint8 [N, H, W, 3]")
    if not all(isinstance(v, int) and v > 0 for v in shape[1:3]):
        raise refuse(f"'images' has no fixed height and width: {_short(shape)}")
    batch = shape[0] if isinstance(shape[0], int) else 0
    if max(shape[1:3]) > _MOST_SIDE or not 0 <= batch <= _MOST_BATCH:
        raise refuse(
            f"'images' is {_short(shape)}, and at most {_MOST_BATCH} images of {_MOST_SIDE} x "
            f"{_MOST_SIDE} pixels are taken"
        )
    if code.type != "tensor(uint8)" or len(code.shape) != 2 or code.shape[1] != CODE_BYTES:
        raise refuse(f"'codes' is {code.type} {_short(code.shape)}, not uint8 [N, {CODE_BYTES}]")
    if (
        feature.type != "tensor(float)"
        or len(feature.shape) != 2
        or not (isinstance(feature.shape[1], int) and 0 < feature.shape[1] <= _MOST_DIM)
    ):
        raise refuse(
            f"'features' is {feature.type} {_short(feature.shape)}, not float32 [N, D] with D of "
            f"at most {_MOST_DIM}"
        )
    local_shape = None
    if (local := outputs.get("locals")) is not None:
        sizes = local.shape[1:]
        if (
            local.type != "tensor(float)"
            or len(sizes) != 3
            or not all(isinstance(v, int) and v > 0 for v in sizes)
            or math.prod(sizes) > _MOST_DIM
            or sizes[0] * sizes[1] > MOST_CELLS
        ):
            raise refuse(
                f"'locals' is {local.type} {_short(local.shape)}, not float32 [N, rows, columns, "
                f"V] with at most {MOST_CELLS} rows x columns and {_MOST_DIM} numbers an image"
            )
        local_shape = sizes[0], sizes[1], sizes[2]
    info = EngineInfo(
        name=meta.get("hashvpr.name") or path.stem,
        fingerprint=file.fingerprint,
        height=shape[1],
        width=shape[2],
        feature_dim=feature.shape[1],
        provider=session.get_providers()[0],
        license=meta.get("hashvpr.license", ""),
        version=meta.get("hashvpr.version", ""),
        probability_curve=_read_curve(meta.get("hashvpr.probability_curve", ""), path),
        local_shape=local_shape,
    )
    return info, batch


def _names(values: dict[str, object]) -> str:
    return _short(sorted(values))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _read_curve(text: str, path: Path) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        slope, intercept = (float(v) for v in text.split())
    except ValueError:
        slope = intercept = float("nan")
    if not (np.isfinite([slope, intercept]).all() and slope > 0):
        raise EngineError(
            f"{path}: its probability curve {text[:40]!r} is malformed; export it again"
        )
    return slope, intercept


def raw_onnx_run(engine: OnnxEngine) -> Callable[[NDArray[np.uint8]], None]:
    """The bare runtime call of an open engine, for benchmarks to stand beside.

    Returns:
        a function that runs a batch, uint8 [N, H, W, 3], and drops the answer.
    """
    session, names = engine._session, engine._outputs
    assert session is not None

    def run(images: NDArray[np.uint8]) -> None:
        session.run(names, {"images": images})

    return run
