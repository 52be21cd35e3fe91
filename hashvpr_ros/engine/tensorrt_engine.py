"""The engine of `.engine` files, and of `.onnx` files built for this GPU: TensorRT and PyCUDA."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine import tensorrt_gpu
from hashvpr_ros.engine.base import (
    AnsweringEngine,
    EngineInfo,
    check_answer,
    check_images,
    closed,
    outputs_of,
)
from hashvpr_ros.engine.tensorrt_file import EngineHeader, read_engine
from hashvpr_ros.engine.tensorrt_gpu import Gpu, GpuContext
from hashvpr_ros.errors import EngineError, reason_of

if TYPE_CHECKING:
    import tensorrt as trt

_log = logging.getLogger(__name__)


def info_of(header: EngineHeader) -> EngineInfo:
    """The model's information in an engine file."""
    major_minor = ".".join(header.tensorrt.split(".")[:2])
    return EngineInfo(
        name=header.name,
        fingerprint=header.fingerprint,
        height=header.height,
        width=header.width,
        feature_dim=header.feature_dim,
        provider=f"TensorRT {major_minor} {header.precision} ({header.gpu})",
        license=header.license,
        version=header.model_version,
        probability_curve=header.probability_curve,
        local_shape=header.local_shape,
    )


class TensorRtEngine(AnsweringEngine):
    """A plan on the GPU. May be used from any thread; calls follow one another.

    All memory is taken when it is made: page-locked on the host, so that copies run beside the
    CPU, and on the GPU. An image costs no allocation but that of the arrays that it returns.

    Args:
        header, plan: of `tensorrt_file.read_engine` or `tensorrt_build.build`.
        path: of the file they come from, for errors.

    Raises:
        GpuMemoryError: nothing but memory is missing.
        EngineError: no TensorRT or GPU, or the plan is of another version, GPU or contract.
    """

    def __init__(self, header: EngineHeader, plan: bytes, path: str | Path) -> None:
        self.path = Path(path)
        self.info = info_of(header)
        self.header = header
        self._max_batch = header.max_batch
        self._lock = threading.Lock()
        self._context: GpuContext | None = None
        self._forget()
        _check_match(header, tensorrt_gpu.require_gpu(str(path)), self.path)
        self._context = GpuContext()
        try:
            with self._context.current() as cuda, tensorrt_gpu.freeing():
                self._load(plan)
                self._allocate(cuda)
        except BaseException as e:
            self.close()
            if isinstance(e, EngineError) or not isinstance(e, Exception):
                raise
            raise self._failed("cannot be loaded", e) from e
        _log.info(
            "engine %s %s: %d x %d pixels, %d-d features, on %s",
            header.name,
            header.fingerprint[:12],
            header.width,
            header.height,
            header.feature_dim,
            self.info.provider,
        )

    @classmethod
    def open(cls, path: str | Path) -> TensorRtEngine:
        """The engine of a file; see `read_engine` for more errors."""
        header, plan = read_engine(Path(path))
        return cls(header, plan, path)

    def _forget(self) -> None:
        self._runtime: trt.Runtime | None = None
        self._engine: trt.ICudaEngine | None = None
        self._execution: trt.IExecutionContext | None = None
        self._stream: Any = None
        self._host: dict[str, NDArray[Any]] = {}
        self._device: dict[str, Any] = {}
        self._batch = 0  # that the execution context is set to
        self._fixed = False  # the plan takes `max_batch` images at a time and no fewer

    def _load(self, plan: bytes) -> None:
        import tensorrt as trt

        tensorrt_gpu.recent_errors.clear()
        self._runtime = trt.Runtime(tensorrt_gpu.logger())
        engine = self._engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("TensorRT cannot load it")
        execution = self._execution = engine.create_execution_context()
        if execution is None:
            raise self._failed("TensorRT cannot make it ready")
        self._check_tensors(engine, execution)
        self._fixed = tensorrt_gpu.dims(engine.get_tensor_shape("images"))[0] > 0

    def _check_tensors(self, engine: trt.ICudaEngine, execution: trt.IExecutionContext) -> None:
        """Refuse a plan whose tensors differ from the header: buffers are as the header says."""
        import tensorrt as trt

        info, n = self.info, self._max_batch
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {np.uint8: trt.DataType.UINT8, np.float32: trt.DataType.FLOAT}
        image = (n, info.height, info.width, 3)
        want: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
            "images": (trt.TensorIOMode.INPUT, trt.DataType.UINT8, image)
        }
        for name, (shape, dtype) in outputs_of(info).items():
            want[name] = (trt.TensorIOMode.OUTPUT, types[dtype], (n, *shape))
        fits = set(names) == set(want)
        # Before the outputs' shapes are asked for: with the batch, all of them are known.
        fits = fits and execution.set_input_shape("images", want["images"][2])
        if not fits or any(
            (
                engine.get_tensor_mode(name),
                engine.get_tensor_dtype(name),
                tensorrt_gpu.dims(execution.get_tensor_shape(name)),
            )
            != want[name]
            for name in want
        ):
            raise EngineError(
                f"{self.path}: its plan is not of the model that its header names; build it again "
                "with `hashvpr engine build`"
            )

    def _allocate(self, cuda: Any) -> None:
        n, info = self._max_batch, self.info
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "images": ((info.height, info.width, 3), np.uint8),
            **outputs_of(info),
        }
        self._stream = cuda.Stream()
        for name, (shape, dtype) in shapes.items():
            self._host[name] = cuda.pagelocked_empty((n, *shape), dtype)
            self._device[name] = cuda.mem_alloc(self._host[name].nbytes)
            assert self._execution is not None
            if not self._execution.set_tensor_address(name, int(self._device[name])):
                raise EngineError(f"{self.path}: TensorRT refuses the buffer of {name!r}")

    def _answer(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """More images than `max_batch` are done in turns.

        Of a plan that takes no fewer, the last image is repeated.
        """
        images = check_images(images, self.info, self.path)
        answer: dict[str, NDArray[Any]] = {
            name: np.empty((len(images), *shape), dtype)
            for name, (shape, dtype) in outputs_of(self.info).items()
        }
        with self._lock:
            if self._context is None:
                raise closed(self.path)
            try:
                with self._context.current() as cuda, tensorrt_gpu.freeing():
                    for start in range(0, len(images), self._max_batch):
                        part = slice(start, start + self._max_batch)
                        self._run(cuda, images[part], {k: v[part] for k, v in answer.items()})
            except EngineError:
                raise
            except Exception as e:  # PyCUDA's errors share no base with anything
                raise self._failed("the GPU failed", e) from e
        result = list(answer.values())
        check_answer(result, len(images), self.info, self.path)
        return result

    def _run(self, cuda: Any, images: NDArray[np.uint8], answer: dict[str, NDArray[Any]]) -> None:
        """Run images, at most `max_batch`, into arrays by the outputs' names."""
        given, n = len(images), self._max_batch if self._fixed else len(images)
        host, device, stream, execution = self._host, self._device, self._stream, self._execution
        assert execution is not None
        np.copyto(host["images"][:given], images)
        host["images"][given:n] = images[-1]
        if n != self._batch:
            self._batch = 0
            if not execution.set_input_shape("images", (n, *images.shape[1:])):
                raise self._failed(f"takes no batch of {n}")
            self._batch = n
        cuda.memcpy_htod_async(device["images"], host["images"][:n], stream)
        tensorrt_gpu.recent_errors.clear()
        started = execution.execute_async_v3(stream.handle)
        if started:
            for name in answer:
                cuda.memcpy_dtoh_async(host[name][:n], device[name], stream)
        # Also after a failure: the next image's must not meet a copy that is still under way.
        stream.synchronize()
        if not started:
            raise self._failed("TensorRT failed")
        for name, values in answer.items():
            np.copyto(values, host[name][:given])

    def _failed(self, what: str, error: Exception | None = None) -> EngineError:
        reason = tensorrt_gpu.last_error("no reason is given")
        if error is not None:
            reason = reason_of(error)
        return tensorrt_gpu.no_memory(self.path, reason) or EngineError(
            f"{self.path}: {what} ({reason}); configure the node again, or build the engine again "
            "with `hashvpr engine build`"
        )

    def close(self) -> None:
        """See `DescriptorEngine.close`."""
        with self._lock:
            context, self._context = self._context, None
            if context is None:
                return
            try:
                with context.current():
                    self._free()
            finally:
                # What a GPU that failed does not let free goes with its context.
                self._forget()
                context.release()

    def _free(self) -> None:
        """Free everything while the context is current, users before what they use."""
        self._execution = None
        self._engine = None
        self._runtime = None
        problems = []
        for allocation in (*self._device.values(), *(a.base for a in self._host.values())):
            try:
                allocation.free()
            except Exception as e:
                problems.append(str(e))
        self._device, self._host = {}, {}
        self._stream = None
        if problems:
            _log.warning("%s: GPU memory could not be freed: %s", self.path, problems[0])


def _check_match(header: EngineHeader, gpu: Gpu, path: Path) -> None:
    """Refuse an engine that was built elsewhere: TensorRT may read it, and give other numbers."""
    for what, built, here in (
        ("by TensorRT", header.tensorrt, gpu.tensorrt),
        ("on the GPU", header.gpu, gpu.name),
        ("for compute capability", header.compute_capability, gpu.compute_capability),
    ):
        if built != here:
            raise EngineError(
                f"{path}: was built {what} {built} and this machine has {here}; build it here "
                "with `hashvpr engine build`, or give the .onnx"
            )
