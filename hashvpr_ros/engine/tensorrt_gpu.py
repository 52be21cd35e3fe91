"""TensorRT and CUDA as found here: whether they are there, the GPU, its context, the logger.

Both libraries are imported inside functions, so that a robot without them imports this package.
"""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hashvpr_ros.errors import EngineError, reason_of

_log = logging.getLogger(__name__)

HOW_TO_INSTALL = (
    "on a Jetson JetPack has TensorRT (sudo apt install python3-libnvinfer; pip install pycuda), "
    "elsewhere pip install tensorrt pycuda"
)
_NO_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)  # "OutOfMemory" is TensorRT's
# What TensorRT said last with severity ERROR: its calls return None and say why only here.
recent_errors: deque[str] = deque(maxlen=8)


@dataclass(frozen=True)
class Gpu:
    """What a plan is bound to: it runs on this GPU under this version alone."""

    name: str  # as CUDA says it, e.g. "Orin"
    compute_capability: str  # e.g. "8.7"
    tensorrt: str  # version, e.g. "10.3.0"


class GpuMemoryError(EngineError):
    """The GPU has no memory left for an engine, in which nothing is wrong."""


def no_memory(what: object, reason: str) -> GpuMemoryError | None:
    """The error of something that failed for want of memory; None where that is not the reason."""
    if not _NO_MEMORY.search(reason):
        return None
    return GpuMemoryError(
        f"{what}: the GPU has no memory left for it ({reason}); close what fills it"
    )


def why_not() -> str:
    """Why TensorRT cannot be used here, as half a sentence; empty when it can."""
    try:
        _find_gpu()
    except EngineError as e:
        return str(e)
    return ""


def require_gpu(what: str) -> Gpu:
    """The GPU and the version of TensorRT.

    Args:
        what: the file that needs them, for the error.

    Raises:
        EngineError: tensorrt, pycuda or a GPU is missing.
    """
    try:
        return _find_gpu()
    except EngineError as e:
        raise EngineError(f"{what}: {e}") from e


def _find_gpu() -> Gpu:
    try:
        import tensorrt as trt

        version = str(trt.__version__)
        # A folder of type stubs alone imports as an empty package.
        _ = trt.Runtime, trt.OnnxParser
    except Exception as e:  # besides ImportError, what a broken installation raises
        raise EngineError(
            f"TensorRT cannot be used, the Python package tensorrt is not installed or broken "
            f"({reason_of(e)}): {HOW_TO_INSTALL}"
        ) from e
    if tuple(int(v) for v in version.split(".")[:2]) < (8, 6):
        raise EngineError(f"TensorRT {version} is too old: install 8.6 or later")
    try:
        import pycuda.driver as cuda
    except Exception as e:
        raise EngineError(
            f"TensorRT cannot be used, the Python package pycuda is not installed or broken "
            f"({reason_of(e)}): {HOW_TO_INSTALL}"
        ) from e
    try:
        cuda.init()
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        return Gpu(str(device.name()), f"{major}.{minor}", version)
    except Exception as e:
        raise EngineError(
            f"TensorRT cannot be used, there is no usable NVIDIA GPU ({reason_of(e)}): check the "
            "driver with nvidia-smi, or use ONNX Runtime (engine.tensorrt off)"
        ) from e


class GpuContext:
    """The primary context of GPU 0, current in a thread only inside `with current()`.

    The primary one, and not one of our own, is what torch, FAISS and the CUDA runtime use, so that
    all share the GPU's memory. Pushed around every use, it is right from whichever thread calls.

    Raises:
        EngineError: the context cannot be had.
    """

    def __init__(self) -> None:
        import pycuda.driver as cuda

        self._cuda = cuda
        try:
            cuda.init()
            self._context: Any = cuda.Device(0).retain_primary_context()
        except Exception as e:
            kind = GpuMemoryError if _NO_MEMORY.search(str(e)) else EngineError
            raise kind(
                f"the GPU gives no context ({reason_of(e)}); close what fills its memory"
            ) from e

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Push the context and pop it at the end; yields `pycuda.driver`."""
        self._context.push()
        try:
            yield self._cuda
        finally:
            self._cuda.Context.pop()

    def release(self) -> None:
        """Count the context down, once; what was allocated in it must be freed before."""
        if self._context is None:
            return
        context, self._context = self._context, None

        def detach() -> None:
            context.push()
            context.detach()

        # PyCUDA (2026.1, cuda.hpp) counts down where the context is current or, by pushing it, in
        # the thread that retained it; elsewhere it silently does not. It then takes it off its own
        # stack and not off CUDA's (nor does cuDevicePrimaryCtxRelease): it would stay current in
        # this thread, and so is detached in one that ends.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(detach).result()


@contextmanager
def freeing() -> Iterator[None]:
    """Let an error pass without what its frames hold.

    They would keep builders and engines, and so GPU memory, for as long as somebody keeps the
    error, and let them go when no context is current.
    """
    try:
        yield
    except BaseException as e:
        traceback.clear_frames(e.__traceback__)
        raise


def dims(shape: Any) -> tuple[int, ...]:
    """A `tensorrt.Dims` as a tuple, -1 for what is open."""
    return tuple(int(v) for v in shape)


def logger() -> Any:
    """The one logger of this process: TensorRT keeps the first that it is given."""
    import tensorrt as trt

    return _logger_of(trt)


@functools.cache
def _logger_of(trt: Any) -> Any:
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        # It warns of much that no user can change, as weights cast from int64.
        severity.WARNING: logging.DEBUG,
        severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, 0)
            if level >= logging.ERROR:
                recent_errors.append(reason_of(message))
                _log.debug("TensorRT: error: %s", message)  # the caller raises with it
            elif level:
                _log.debug("TensorRT: %s", message)

    return Logger()


def last_error(otherwise: str) -> str:
    """What TensorRT complained of since `recent_errors` was cleared, the first of it."""
    return recent_errors[0] if recent_errors else otherwise
