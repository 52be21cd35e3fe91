"""The engine of `.onnx` files, by ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hashvpr_ros.engine.base import EngineInfo, check_features, check_images, closed
from hashvpr_ros.errors import EngineError, reason_of
from hashvpr_ros.types import CODE_BYTES

_log = logging.getLogger(__name__)

PREFERRED_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxEngine:
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
        self.path = Path(path).expanduser()
        self._session: onnxruntime.InferenceSession | None = None
        check_file(self.path)
        chosen = _choose_providers(providers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between images keep a robot's cores from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = _open_session(self.path, options, chosen)
        self.info = _read_info(session, self.path)
        batch = session.get_inputs()[0].shape[0]
        self._batch = batch if isinstance(batch, int) else 0  # images at a time; 0: any number
        self._session = session
        _log.info(
            "engine %s %s: %d x %d pixels, %d-d features, on %s",
            self.info.name,
            self.info.fingerprint[:12],
            self.info.width,
            self.info.height,
            self.info.feature_dim,
            ", ".join(session.get_providers()),
        )

    def describe(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `DescriptorEngine.describe`."""
        if self._session is None:
            raise closed(self.path)
        images = np.ascontiguousarray(check_images(images, self.info, self.path))
        try:
            if self._batch in (0, len(images)):
                codes, features = self._session.run(("codes", "features"), {"images": images})
            else:
                codes, features = self._in_batches(images)
        except Exception as e:  # the runtime's own classes share no base but Exception
            raise EngineError(
                f"{self.path}: the runtime failed ({reason_of(e)}); export the model again, or "
                "choose another of engine.providers"
            ) from e
        check_features(features, self.path)
        return codes, features

    def _in_batches(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The same for a model that takes a fixed number of images; the last ones are repeated."""
        assert self._session is not None
        short = -len(images) % self._batch
        padded = np.concatenate([images, np.repeat(images[-1:], short, axis=0)])
        parts = [
            self._session.run(
                ("codes", "features"), {"images": padded[start : start + self._batch]}
            )
            for start in range(0, len(padded), self._batch)
        ]
        codes, features = (
            np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)
        )
        return codes, features

    def warm_up(self) -> None:
        """See `DescriptorEngine.warm_up`."""
        self.describe(np.zeros((1, self.info.height, self.info.width, 3), np.uint8))

    def close(self) -> None:
        """See `DescriptorEngine.close`."""
        self._session = None


def check_file(path: Path) -> None:
    """Raise EngineError unless there is a file."""
    if not path.exists():
        raise EngineError(
            f"{path}: no such engine file; correct the path (engine.path, or --engine)"
        )
    if not path.is_file():
        raise EngineError(f"{path}: is not a file; give the path of an .onnx file")


def read_model_info(path: str | Path) -> EngineInfo:
    """What an .onnx file holds, checked against the graph contract; quicker than an engine.

    Raises:
        EngineError: the file is missing, damaged or of another contract.
    """
    path = Path(path).expanduser()
    check_file(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _read_info(_open_session(path, options, ["CPUExecutionProvider"]), path)


def _open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: list[str]
) -> onnxruntime.InferenceSession:
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as e:  # as in `describe`
        raise EngineError(
            f"{path}: cannot be loaded as an ONNX model ({reason_of(e)}); export it again"
        ) from e


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


def _read_info(session: onnxruntime.InferenceSession, path: Path) -> EngineInfo:
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name: o for o in session.get_outputs()}

    def refuse(reason: str) -> EngineError:
        return EngineError(
            f"{path}: not a model of hashvpr_ros: {reason}; export it with `hashvpr export`"
        )

    if set(inputs) != {"images"} or not {"codes", "features"} <= set(outputs):
        raise refuse(
            f"its inputs are {sorted(inputs)} and its outputs {sorted(outputs)}, not 'images' and "
            "'codes', 'features'"
        )
    image, code, feature = inputs["images"], outputs["codes"], outputs["features"]
    shape = image.shape
    if image.type != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise refuse(f"'images' is {image.type} {shape}, not uint8 [N, H, W, 3]")
    if not all(isinstance(v, int) and v > 0 for v in shape[1:3]):
        raise refuse(f"'images' has no fixed height and width: {shape}")
    if code.type != "tensor(uint8)" or len(code.shape) != 2 or code.shape[1] != CODE_BYTES:
        raise refuse(f"'codes' is {code.type} {code.shape}, not uint8 [N, {CODE_BYTES}]")
    if (
        feature.type != "tensor(float)"
        or len(feature.shape) != 2
        or not (isinstance(feature.shape[1], int) and feature.shape[1] > 0)
    ):
        raise refuse(f"'features' is {feature.type} {feature.shape}, not float32 [N, D]")
    meta = session.get_modelmeta().custom_metadata_map
    mark = meta.get("hashvpr.fingerprint") or hashlib.sha256(path.read_bytes()).hexdigest()
    return EngineInfo(
        name=meta.get("hashvpr.name") or path.stem,
        fingerprint=mark,
        height=shape[1],
        width=shape[2],
        feature_dim=feature.shape[1],
        provider=session.get_providers()[0],
        license=meta.get("hashvpr.license", ""),
        version=meta.get("hashvpr.version", ""),
        probability_curve=_read_curve(meta.get("hashvpr.probability_curve", ""), path),
    )


def _read_curve(text: str, path: Path) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        slope, intercept = (float(v) for v in text.split())
    except ValueError:
        slope = intercept = float("nan")
    if not (np.isfinite([slope, intercept]).all() and slope > 0):
        raise EngineError(f"{path}: its probability curve {text!r} is malformed; export it again")
    return slope, intercept


def raw_onnx_run(engine: OnnxEngine) -> Callable[[NDArray[np.uint8]], None]:
    """The bare runtime call of an open engine, for benchmarks to stand beside.

    Returns:
        a function that runs a batch, uint8 [N, H, W, 3], and drops the answer.
    """
    session = engine._session
    assert session is not None

    def run(images: NDArray[np.uint8]) -> None:
        session.run(("codes", "features"), {"images": images})

    return run
