"""A recording double of `tensorrt` and `pycuda`: it runs nothing on a GPU and measures nothing.

What it stands for is the behaviour that the code relies on, in the shapes of 8.6, 10 and 11:
- CUDA calls fail where no context is current in the calling thread; detaching counts down only
  where the context is current or was retained, and leaves it on CUDA's stack (PyCUDA 2026.1,
  src/cpp/cuda.hpp);
- copies and inference happen when the stream is synchronized, not before;
- UINT8 between layers is refused (onnx-tensorrt, ModelImporter.cpp), as are operators of a list;
- one ONNX node may become several layers (onnx-tensorrt 10.1, onnxOpImporters.cpp), and a layer
  of the network shows what its kind alone has only once its class is set (as NVIDIA's cookbook);
- an input's shape must be what the plan has, where it is static, and else within the profile;
- 8.6 has no strongly typed networks, no IProgressMonitor, no operator's name in parser errors;
  11 has no weakly typed networks and no EXPLICIT_BATCH;
- a plan or timing cache of another version or GPU is refused.
The plan holds the .onnx itself, which ONNX Runtime executes, so that numbers can be compared.
"""

from __future__ import annotations

import enum
import json
import os
import sys
import time
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cuda_double import Tracked, World, pycuda_driver

PLAN = b"ftrt-double\n"


def install(world: World, modules: dict[str, Any] | None = None) -> World:
    """Put the double where `import tensorrt` and `import pycuda.driver` find it."""
    modules = sys.modules if modules is None else modules
    driver = pycuda_driver(world)
    pycuda = types.ModuleType("pycuda")
    pycuda.driver = driver  # type: ignore[attr-defined]
    modules["pycuda"], modules["pycuda.driver"] = pycuda, driver
    modules["tensorrt"] = tensorrt_module(world)
    return world


def install_from_environment() -> None:
    """For a process of its own: the version and a slow build from HASHVPR_DOUBLE."""
    install(World(**json.loads(os.environ["HASHVPR_DOUBLE"])))


Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
DataType = enum.Enum("DataType", "FLOAT HALF INT32 INT64 BOOL UINT8")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
LayerType = enum.Enum(
    "LayerType",
    "NORMALIZATION SOFTMAX REDUCE ELEMENTWISE UNARY ACTIVATION CONVOLUTION MATRIX_MULTIPLY "
    "SHUFFLE",
)
ElementWiseOperation = enum.Enum(
    "ElementWiseOperation", "SUM PROD MAX MIN SUB DIV POW EQUAL GREATER LESS OR"
)
UnaryOperation = enum.Enum("UnaryOperation", "EXP LOG SQRT RECIP ABS NEG ERF")
_OF_ONNX = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8"}


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class Tensor:
    def __init__(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value or -1 for d in kind.shape.dim)
    return Tensor(value.name, DataType[_OF_ONNX.get(kind.elem_type, "FLOAT")], shape)


class Layer:
    """An ILayer."""

    def __init__(
        self, kind: str, op: Any, inputs: list[Any], outputs: list[Any], strongly: bool
    ) -> None:
        self.type = LayerType[kind]
        self._op = op
        self.inputs, self.outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self.strongly = strongly
        self.pinned: dict[int, DataType] = {}
        self._precision: DataType | None = None

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor | None:
        return self.outputs[index]

    @property
    def precision(self) -> DataType | None:
        return self._precision

    @precision.setter
    def precision(self, value: DataType) -> None:
        assert not self.strongly, "not allowed in a strongly typed network"
        self._precision = value

    def set_output_type(self, index: int, dtype: DataType) -> None:
        assert not self.strongly, "not allowed in a strongly typed network"
        self.pinned[index] = dtype


class IElementWiseLayer(Layer):
    @property
    def op(self) -> Any:
        assert self.type == LayerType.ELEMENTWISE, "another kind's memory would be read"
        return self._op


class IUnaryLayer(Layer):
    @property
    def op(self) -> Any:
        assert self.type == LayerType.UNARY, "another kind's memory would be read"
        return self._op


_KINDS = {
    "Softmax": "SOFTMAX", "LayerNormalization": "NORMALIZATION", "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Clip": "ACTIVATION",
    "Relu": "ACTIVATION", "GlobalAveragePool": "REDUCE",
}  # fmt: skip
_ELEMENTWISE = {
    "Add": "SUM", "Mul": "PROD", "Max": "MAX", "Min": "MIN", "Sub": "SUB", "Div": "DIV",
    "Pow": "POW", "Equal": "EQUAL", "Greater": "GREATER", "Less": "LESS",
}  # fmt: skip
_UNARY = {
    "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Reciprocal": "RECIP", "Abs": "ABS",
    "Neg": "NEG", "Erf": "ERF",
}  # fmt: skip
# What is done before and after the sum of a reduction.
_AROUND = {
    "ReduceSumSquare": ("PROD", ""), "ReduceL2": ("PROD", "SQRT"), "ReduceLogSum": ("", "LOG"),
    "ReduceLogSumExp": ("EXP", "LOG"),
}  # fmt: skip


def _layers(node: Any, types_of: dict[str, Tensor], strongly: bool) -> list[Layer]:
    """What the parser makes of a node; one of no kind that concerns us is a SHUFFLE."""
    taken = [types_of.get(i) for i in node.input]
    given = [types_of.get(o) for o in node.output]
    op = node.op_type
    if op == "GreaterOrEqual":
        parts = [Tensor(f"{node.output[0]}_{n}", DataType.BOOL, ()) for n in ("greater", "equal")]
        return [
            *(
                Layer("ELEMENTWISE", ElementWiseOperation[name], taken, [part], strongly)
                for name, part in zip(("GREATER", "EQUAL"), parts, strict=True)
            ),
            Layer("ELEMENTWISE", ElementWiseOperation.OR, parts, given, strongly),
        ]
    if op in _ELEMENTWISE:
        return [
            Layer("ELEMENTWISE", ElementWiseOperation[_ELEMENTWISE[op]], taken, given, strongly)
        ]
    if op in _UNARY:
        return [Layer("UNARY", UnaryOperation[_UNARY[op]], taken, given, strongly)]
    if not op.startswith("Reduce"):
        return [Layer(_KINDS.get(op, "SHUFFLE"), None, taken, given, strongly)]
    before, after = _AROUND.get(op, ("", ""))
    made: list[Layer] = []
    data, result = taken[0], given[0]
    assert data is not None and result is not None
    if before:
        inner = Tensor(f"{result.name}_{before}", data.dtype, data.shape)
        if before == "PROD":
            square = ElementWiseOperation.PROD
            made.append(Layer("ELEMENTWISE", square, [data, data], [inner], strongly))
        else:
            made.append(Layer("UNARY", UnaryOperation[before], [data], [inner], strongly))
        data = inner
    total = Tensor(f"{result.name}_SUM", result.dtype, result.shape) if after else result
    made.append(Layer("REDUCE", None, [data], [total], strongly))
    if after:
        made.append(Layer("UNARY", UnaryOperation[after], [total], [result], strongly))
    return made


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.strongly = bool(flags & 2)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []
        self.graph = b""

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def unmark_output(self, tensor: Tensor) -> None:
        self.outputs.remove(tensor)


class ParserError:
    def __init__(self, index: int, text: str) -> None:
        self._index, self._text = index, text

    def node(self) -> int:
        return self._index

    def desc(self) -> str:
        return self._text


class ParserError10(ParserError):
    def __init__(self, index: int, text: str, operator: str, name: str) -> None:
        super().__init__(index, text)
        self._operator, self._name = operator, name

    def node_operator(self) -> str:
        return self._operator

    def node_name(self) -> str:
        return self._name


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


def tensorrt_module(world: World) -> types.ModuleType:
    module = types.ModuleType("tensorrt")
    module.__version__ = world.version  # type: ignore[attr-defined]
    weak = "FP16 PREFER_PRECISION_CONSTRAINTS " if world.major < 11 else ""
    flag = enum.Enum("BuilderFlag", weak + "TF32")  # type: ignore[misc]
    creation = {8: {"EXPLICIT_BATCH": 0}, 11: {"STRONGLY_TYPED": 1}}.get(
        world.major, {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    mark = f"timing {world.version} {world.gpu}".encode()

    def say(logger: Any, text: str) -> None:
        logger.log(Severity.ERROR, text)

    class Config:
        def __init__(self) -> None:
            self.flags = {flag.TF32}  # type: ignore[attr-defined]
            self.profiles: list[Profile] = []
            self.pools: dict[Any, int] = {}
            self.cache: TimingCache | None = None
            if world.major >= 10:
                self.progress_monitor: Any = None
            world.configs.append(self)

        def set_flag(self, value: Any) -> None:
            self.flags.add(value)

        def clear_flag(self, value: Any) -> None:
            self.flags.discard(value)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.pools[pool] = size

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, content: bytes) -> TimingCache | None:
            if content and not content.startswith(b"timing"):
                return None if world.major >= 10 else self._refuse()
            return TimingCache(content)

        def _refuse(self) -> None:
            raise ValueError("not a timing cache")

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            if cache.content and cache.content != mark:
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> TimingCache | None:
            return self.cache

    class Builder(Tracked):
        def __init__(self, logger: Any) -> None:
            world.need_context("Builder")
            super().__init__(world)
            self.logger = logger

        def create_network(self, flags: int = 0) -> Network:
            allowed = sum(1 << int(v) for v in creation.values())
            if flags & ~allowed:
                raise ValueError(f"flags {flags} are not of this version")
            if world.major >= 11:
                flags |= 2
            world.networks.append(Network(flags))
            return world.networks[-1]

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> Any:
            world.need_context("build_serialized_network")
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building", None, 4)
            for step in range(4):
                time.sleep(world.build_s / 4)  # which, as the real one, lets others run
                if monitor is not None and not monitor.step_complete("Building", step):
                    return None
            if monitor is not None:
                monitor.phase_finish("Building")
            if "build" in world.fail:
                say(self.logger, world.fail["build"])
                return None
            if network.strongly and flag.__members__.get("FP16") in config.flags:
                say(self.logger, "FP16 is set and the network is strongly typed")
                return None
            if config.cache is not None:
                config.cache.content = mark
            high = config.profiles[0].shapes["images"][2] if config.profiles else None
            facts = {
                "version": world.version,
                "gpu": world.gpu,
                "max_batch": high[0] if high else network.inputs[0].shape[0],
            }
            return memoryview(PLAN + json.dumps(facts).encode() + b"\n" + network.graph)

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.logger = network, logger
            self.errors: list[ParserError] = []

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, index: int) -> ParserError:
            return self.errors[index]

        def parse(self, content: bytes) -> bool:
            network = self.network
            if world.major < 10 and not network.flags & 1:
                say(self.logger, "this parser takes explicit batches alone")
                return False
            model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
            graph = model.graph
            values = (*graph.value_info, *graph.input, *graph.output)
            types_of = {v.name: _tensor(v) for v in values}
            outputs = {o.name for o in graph.output}
            uint8 = {i.name for i in graph.input if i.type.tensor_type.elem_type == 2}
            for index, node in enumerate(graph.node):
                text = ""
                if node.op_type in world.refused_operators:
                    text = f"No importer registered for op: {node.op_type}"
                elif uint8 & set(node.input) and node.op_type != "Cast":
                    kept = node.op_type == "Transpose" and not set(node.output) & outputs
                    if kept:
                        text = "TensorRT does not support UINT8 types for intermediate tensors!"
                if text:
                    if world.major >= 10:
                        self.errors.append(ParserError10(index, text, node.op_type, node.name))
                    else:
                        self.errors.append(ParserError(index, text))
                    return False
            network.inputs = [_tensor(i) for i in graph.input]
            network.outputs = [_tensor(o) for o in graph.output]
            network.layers = [
                layer for n in graph.node for layer in _layers(n, types_of, network.strongly)
            ]
            network.graph = content
            return True

    class Execution(Tracked):
        def __init__(self, engine: Any) -> None:
            super().__init__(world)
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.shape: tuple[int, ...] = ()

        def set_tensor_address(self, name: str, address: int) -> bool:
            world.calls.append(("set_tensor_address", name))
            self.addresses[name] = address
            return address in world.device

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            world.calls.append(("set_input_shape", name))
            want = self.engine.tensors[name].shape
            if want[0] < 0 and 1 <= shape[0] <= self.engine.max_batch:
                want = (shape[0], *want[1:])
            if tuple(shape) != want:
                static = "Static dimension mismatch while setting input shape"
                say(self.engine.logger, f"{static} for {name}: {tuple(shape)}, not {want}")
                return False
            self.shape = want
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name == "images":
                return self.shape
            found = next(o for o in self.engine.session.get_outputs() if o.name == name)
            return (self.shape[0], *found.shape[1:])

        def execute_async_v3(self, stream_handle: int) -> bool:
            world.need_context("execute_async_v3")
            if "execute" in world.fail:
                say(self.engine.logger, world.fail["execute"])
                return False
            shape, addresses = self.shape, dict(self.addresses)

            def run() -> None:
                size = int(np.prod(shape))
                images = np.frombuffer(bytes(world.device[addresses["images"]][:size]), np.uint8)
                names = [name for name in addresses if name != "images"]
                results = self.engine.session.run(names, {"images": images.reshape(shape)})
                for name, result in zip(names, results, strict=True):
                    world.device[addresses[name]][: result.nbytes] = result.tobytes()

            world.streams[stream_handle].append(run)
            return True

    class Engine(Tracked):
        def __init__(self, logger: Any, facts: dict[str, Any], graph: bytes) -> None:
            super().__init__(world)
            self.logger, self.max_batch = logger, facts["max_batch"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(graph, options)
            model = onnx.load_model_from_string(graph).graph
            self.inputs = [_tensor(i) for i in model.input]
            self.outputs = [_tensor(o) for o in model.output]
            # As the graph says, which leaves dimensions open that only inference knows.
            self.tensors = {t.name: t for t in (*self.inputs, *self.outputs)}
            self.num_io_tensors = len(self.tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            inputs = [t.name for t in self.inputs]
            return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return self.tensors[name].dtype

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.tensors[name].shape

        def create_execution_context(self) -> Execution | None:
            world.need_context("create_execution_context")
            if "context" in world.fail:
                say(self.logger, world.fail["context"])
                return None
            return Execution(self)

    class Runtime(Tracked):
        def __init__(self, logger: Any) -> None:
            world.need_context("Runtime")
            super().__init__(world)
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            world.need_context("deserialize_cuda_engine")
            if "deserialize" in world.fail:
                say(self.logger, world.fail["deserialize"])
                return None
            if not plan.startswith(PLAN):
                say(self.logger, "magicTag: serialization assertion failed")
                return None
            facts, _, graph = plan[len(PLAN) :].partition(b"\n")
            known = json.loads(facts)
            if known["version"] != world.version or known["gpu"] != world.gpu:
                say(self.logger, "the engine plan file is not compatible with this version")
                return None
            return Engine(self.logger, known, graph)

    module.BuilderFlag = flag  # type: ignore[attr-defined]
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(**creation)  # type: ignore[attr-defined]
    if world.major >= 10:
        module.IProgressMonitor = IProgressMonitor  # type: ignore[attr-defined]
    for thing in (
        ILogger, Builder, OnnxParser, Runtime, DataType, TensorIOMode, MemoryPoolType, LayerType,
        ElementWiseOperation, IElementWiseLayer, IUnaryLayer, UnaryOperation,
    ):  # fmt: skip
        setattr(module, thing.__name__, thing)
    return module
