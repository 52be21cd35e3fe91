"""An .onnx of our graph contract into a TensorRT plan for the GPU of this machine.

Here and not in `export`, since the node builds at configure and imports no `export`.

TensorRT's API differs in what concerns us: 8.6 asks for the flag EXPLICIT_BATCH, 11 lacks it;
9 added strongly typed networks and 10 IProgressMonitor; 11 has strongly typed networks alone,
whose precision is that of the types in the .onnx. What is not there is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashvpr_ros.engine import tensorrt_gpu
from hashvpr_ros.engine.base import EngineInfo, runtime_errors
from hashvpr_ros.engine.onnx_engine import model_info
from hashvpr_ros.engine.onnx_file import read_onnx
from hashvpr_ros.engine.tensorrt_file import EngineHeader, with_plan, write_atomically
from hashvpr_ros.engine.tensorrt_gpu import Gpu, GpuContext
from hashvpr_ros.engine.tensorrt_operators import (
    cast_first,
    is_quantised,
    uint8_inside,
    unsupported_operators,
)
from hashvpr_ros.engine.tensorrt_progress import Steps, no_progress
from hashvpr_ros.errors import EngineError
from hashvpr_ros.file_io import MB, read_bytes

if TYPE_CHECKING:
    import tensorrt as trt

_log = logging.getLogger(__name__)

PRECISIONS = ("fp16", "fp32")
_OUTPUTS = ("codes", "features", "locals")
_ELSEWHERE = "or run it by ONNX Runtime (engine.tensorrt off)"
_MOST_TIMING_BYTES = 256 * MB
_VERSION = 2  # of this file: one more with each change that makes another plan of the same graph


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is made."""

    precision: str = "fp16"  # one of PRECISIONS
    workspace_mb: int = 1024  # GPU memory that a layer's kernels may use for scratch
    max_batch: int = 1  # images at a time; the plan is made fastest for one


def build_key(info: EngineInfo, graph: bytes, gpu: Gpu, options: BuildOptions) -> str:
    """Hash of all that decides what a plan is: 64 hex digits.

    Args:
        graph: content of the .onnx: two exports of one model may share the fingerprint.
    """
    parts = (
        info.fingerprint, hashlib.sha256(graph).hexdigest(), info.height, info.width,
        info.feature_dim, gpu.tensorrt, gpu.name, gpu.compute_capability, options.precision,
        options.max_batch, options.workspace_mb, _VERSION,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def build(
    path: Path,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    progress: Callable[[str], None] = no_progress,
) -> tuple[EngineHeader, bytes]:
    """Build a plan; takes minutes.

    Args:
        path: of the .onnx.
        timing_cache: file of measured kernels, read if it is valid and written back; a second
            build with it takes a fraction of the time.
        progress: told every few seconds what goes on; from another thread.

    Returns:
        the header and the plan, for `tensorrt_file.write_engine`.

    Raises:
        EngineError: no TensorRT or GPU, the file is not of our contract, TensorRT does not take
            an operator, or fails.
    """
    model = read_onnx(path)
    info, graph = model_info(model), model.content
    gpu = tensorrt_gpu.require_gpu(str(path))
    if options.precision not in PRECISIONS:
        raise EngineError(
            f"{path}: the precision must be one of {', '.join(PRECISIONS)}, not "
            f"{options.precision!r}"
        )
    what = f"building TensorRT engine of {info.name} ({options.precision}, {gpu.name})"
    with Steps(what, progress) as steps:
        context = GpuContext()
        try:
            with (
                runtime_errors(path, "TensorRT failed", f"export it again, {_ELSEWHERE}"),
                context.current(),
                tensorrt_gpu.freeing(),
            ):
                plan, precision, max_batch = _build(
                    path, _prepared(graph, path), gpu, options, timing_cache, steps
                )
        finally:
            context.release()
    header = EngineHeader(
        name=info.name,
        fingerprint=info.fingerprint,
        height=info.height,
        width=info.width,
        feature_dim=info.feature_dim,
        local_shape=info.local_shape,
        probability_curve=info.probability_curve,
        license=info.license,
        model_version=info.version,
        tensorrt=gpu.tensorrt,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=precision,
        max_batch=max_batch,
        build_key=build_key(info, graph, gpu, options),
    )
    return with_plan(header, plan), plan


def _prepared(graph: bytes, path: Path) -> bytes:
    """The graph with its image cast before it is transposed, where `onnx` is there to do so."""
    try:
        import onnx
    except ImportError:
        return graph  # the parser says what it does not take
    model = onnx.load_model_from_string(graph)
    if is_quantised(model):
        raise EngineError(
            f"{path}: is quantised to int8 for ONNX Runtime, which TensorRT does not take; "
            "give the file of the same model in fp16 or fp32"
        )
    if cast_first(model):
        _log.debug("%s: the images are cast before they are transposed", path)
        return bytes(model.SerializeToString())
    return graph


def _build(
    path: Path,
    graph: bytes,
    gpu: Gpu,
    options: BuildOptions,
    timing_cache: Path | None,
    steps: Steps,
) -> tuple[bytes, str, int]:
    import tensorrt as trt

    tensorrt_gpu.recent_errors.clear()
    builder = trt.Builder(tensorrt_gpu.logger())
    if builder is None:
        raise _failed(path, gpu, "no builder can be made")
    config = builder.create_builder_config()
    steps.say("reading the graph")
    network, parser, precision = _typed_network(builder, config, path, graph, gpu, options)
    max_batch = _set_profile(builder, config, network, path, options)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = steps.monitor()
    cache = _load_timing_cache(config, timing_cache)
    steps.say("trying kernels")
    # It lets other Python threads run, and so the node's services answer meanwhile.
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise _failed(path, gpu, "no plan was made")
    plan = bytes(memory)
    del parser  # it owns the weights that the network refers to
    if cache is not None and timing_cache is not None:
        _save_timing_cache(config, timing_cache)
    return plan, precision, max_batch


def _typed_network(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    path: Path,
    graph: bytes,
    gpu: Gpu,
    options: BuildOptions,
) -> tuple[trt.INetworkDefinition, trt.OnnxParser, str]:
    """The network and its parser, and in which precision it computes.

    A graph that has float16 in it says itself where (its export kept in float32 what overflows),
    and so has its types obeyed. In a float32 one TensorRT chooses, as far as it still does.
    """
    import tensorrt as trt

    weak = hasattr(trt.BuilderFlag, "FP16")
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    strongly = 0 if flag is None else 1 << int(flag)
    network, parser = _parsed(builder, path, graph, gpu, strongly)
    half = _has_half(network)
    if half and (strongly or not weak):
        return network, parser, "fp16"
    if options.precision == "fp32" and not half:
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are no fp32
        return network, parser, "fp32"
    if not weak:
        _log.warning(
            "%s: is built in fp32, since TensorRT %s takes the precision from the file and this "
            "one is float32; export it with --precision fp16 to have fp16",
            path,
            gpu.tensorrt,
        )
        return network, parser, "fp32"
    if strongly:
        network, parser = _parsed(builder, path, graph, gpu, 0)
    config.set_flag(trt.BuilderFlag.FP16)
    _keep_in_float32(config, network)
    return network, parser, "fp16"


def _parsed(
    builder: trt.Builder, path: Path, graph: bytes, gpu: Gpu, flags: int
) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    """The network of a graph, with the outputs of the contract alone, and its parser."""
    import tensorrt as trt

    if int(gpu.tensorrt.split(".")[0]) < 10:  # from 10 on all batches are explicit
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, tensorrt_gpu.logger())
    if not parser.parse(graph):
        raise _not_parsed(parser, path, graph, gpu)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for extra in [o for o in outputs if o.name not in _OUTPUTS]:
        network.unmark_output(extra)
    return network, parser


def _has_half(network: trt.INetworkDefinition) -> bool:
    import tensorrt as trt

    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            output = layer.get_output(j)
            if output is not None and output.dtype == trt.DataType.HALF:
                return True
    return False


def _keep_in_float32(config: trt.IBuilderConfig, network: trt.INetworkDefinition) -> None:
    """Sums of squares and exponentials: in float16 those of vision transformers overflow.

    With the powers that are summed, the roots of the sums, and what either is computed from: the
    parser makes of ReduceL2 a product, a sum and a root (onnx-tensorrt 8.6 and 10.1,
    importReduceSumSquare), each of which could be in float16.
    """
    import tensorrt as trt

    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    kind, unary = trt.LayerType, trt.UnaryOperation
    pointwise: dict[Any, tuple[type, list[Any]]] = {
        kind.ELEMENTWISE: (trt.IElementWiseLayer, [trt.ElementWiseOperation.POW]),
        kind.UNARY: (trt.IUnaryLayer, [unary.EXP, unary.LOG, unary.SQRT]),
    }
    layers: list[Any] = [network.get_layer(i) for i in range(network.num_layers)]
    kept = []
    for layer in layers:
        if layer.type in pointwise:
            layer.__class__, operations = pointwise[layer.type]  # an ILayer shows no operation
            if layer.op in operations:
                kept.append(layer)
        elif layer.type in (kind.NORMALIZATION, kind.SOFTMAX, kind.REDUCE):
            kept.append(layer)
    taken = {v.get_input(0).name for v in kept if v.type in (kind.REDUCE, kind.UNARY)}
    kept += [v for v in layers if v.type in pointwise and v.get_output(0).name in taken]
    for layer in kept:
        if layer.get_output(0).dtype == trt.DataType.FLOAT:
            layer.precision = trt.DataType.FLOAT
            layer.set_output_type(0, trt.DataType.FLOAT)


def _set_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    path: Path,
    options: BuildOptions,
) -> int:
    """Set which batches the plan takes: 1 to the number returned, or that alone if it is fixed."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    images = next(t for t in inputs if t.name == "images")
    batch, *image = tensorrt_gpu.dims(images.shape)
    if batch > 0:
        if options.max_batch != batch:
            _log.warning("%s: the engine runs %d images at a time, as exported", path, batch)
        return batch
    profile = builder.create_optimization_profile()
    one: Any = (1, *image)  # which is converted to Dims, though the stubs do not say so
    most: Any = (options.max_batch, *image)
    profile.set_shape("images", one, one, most)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"{path}: TensorRT refuses batches of 1 to {options.max_batch}; give a smaller "
            "--max-batch"
        )
    return options.max_batch


def _load_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache | None:
    """Attach the timing cache of a file, or an empty one; None without a path."""
    if path is None:
        return None
    data = b""
    try:
        if os.path.lexists(path):
            data = read_bytes(path, _MOST_TIMING_BYTES, error=EngineError)
    except EngineError as e:
        _log.warning("the timing cache cannot be read: %s", str(e))  # not the frames it holds
    for content in dict.fromkeys((data, b"")):
        with suppress(Exception):  # damaged: versions differ in what they raise
            cache = config.create_timing_cache(content)
            # A mismatch, of another GPU or version, is refused and not ignored.
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        if content:
            _log.info("%s: is damaged or of another GPU or version; begun anew", path)
    return None


def _save_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    try:
        write_atomically(path, bytes(config.get_timing_cache().serialize()))
    except EngineError as e:
        _log.warning("the timing cache is not kept: %s", str(e))  # not the frames it holds


def _not_parsed(parser: trt.OnnxParser, path: Path, graph: bytes, gpu: Gpu) -> EngineError:
    """What the parser, or else the graph, says of the operator at fault."""
    version = f"TensorRT {gpu.tensorrt}"
    remedy = f"export it again with this version's `hashvpr export`, {_ELSEWHERE}"
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        reason = tensorrt_gpu.last_error("no reason is given")
        return EngineError(f"{path}: {version} cannot read its graph ({reason}); {remedy}")
    error = errors[0]
    description = (str(error.desc()).strip().splitlines() or ["no reason is given"])[0][:200]
    operator = name = ""
    with suppress(AttributeError):  # 10 and later
        operator, name = str(error.node_operator()), str(error.node_name())
    facts = ""
    try:
        import onnx

        model = onnx.load_model_from_string(graph)
        if not operator and 0 <= int(error.node()) < len(model.graph.node):
            node = model.graph.node[int(error.node())]
            operator, name = node.op_type, node.name
        unknown = unsupported_operators(model, major=int(gpu.tensorrt.split(".")[0]))
        if unknown:
            facts = f"; it does not list {', '.join(unknown)}"
        elif uint8 := uint8_inside(model):
            facts = f"; {uint8[0]}, which must be cast to float first"
    except ImportError:
        found = re.search(r"(?:importer registered for op|operator):? (\w+)", description)
        operator = operator or (found[1] if found else "")
        if "UINT8" in description:
            facts = "; with the Python package onnx installed it can be changed to be taken"
    which = f"operator {operator}" if operator else "graph"
    if name:
        which += f" {name!r}"
    return EngineError(
        f"{path}: {version} does not take its {which} ({description}{facts}); {remedy}"
    )


def _failed(path: Path, gpu: Gpu, otherwise: str) -> EngineError:
    reason = tensorrt_gpu.last_error(otherwise)
    if re.search(r"memory|alloc|workspace|OutOfMemory", reason, re.IGNORECASE):
        remedy = "close what fills the GPU's memory, or change the workspace (engine.workspace_mb)"
    else:
        remedy = f"export it again, {_ELSEWHERE}"
    return EngineError(f"{path}: TensorRT {gpu.tensorrt} cannot build it ({reason}); {remedy}")
