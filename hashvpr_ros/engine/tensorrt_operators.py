"""Which ONNX operators TensorRT's parser takes, and the one change that our graphs may need.

Source: docs/operators.md of github.com/onnx/onnx-tensorrt, rows marked Y, at the branches
release/8.6-GA (opset up to 17) and 10.1-GA (TensorRT 10: opset 9 to 20). `SUPPORTED` has what both
list, `SINCE_10` what came after 8.6. Limits of that document which concern our graphs:

- UINT8 only as type of network inputs and outputs, next to a Cast from or to a float type. Even
  a Transpose of uint8 is refused (ModelImporter.cpp; NVIDIA/TensorRT issue 3985), so `images` must
  be cast first and transposed then: `cast_first` does that to a graph that has it the other way.
- QuantizeLinear and DequantizeLinear take a zero point of 0 alone; our int8 models have uint8
  activations with others, which suit CPUs, and are for ONNX Runtime.
- AveragePool and Conv in two or three dimensions; `axes` of Slice, Pad and the reductions must be
  constant; Resize without antialiasing.
- Constants and shapes of int64 are cast to int32 by 8.6, double to float by all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_LISTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish Identity If ImageScaler
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod
Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear
RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
Trilu Unsqueeze Upsample Where Xor
"""
_LISTED_SINCE_10 = "CastLike DeformConv Gelu Hardmax Mish"

SUPPORTED = frozenset(_LISTED.split())
SINCE_10 = frozenset(_LISTED_SINCE_10.split())
_UINT8 = 2  # onnx.TensorProto.UINT8
_FLOATS = (1, 10)  # FLOAT, FLOAT16


def unsupported_operators(model: onnx.ModelProto, *, major: int = 8) -> list[str]:
    """The operators of a graph, its subgraphs and functions that TensorRT does not list.

    Args:
        major: of the version of TensorRT; 8 stands for 8.6.

    Returns:
        their names, sorted, with the domain before those that are not ONNX's own.
    """
    known = SUPPORTED if major < 10 else SUPPORTED | SINCE_10
    local = {(f.domain, f.name) for f in model.functions}
    used: set[str] = set()

    def walk(nodes: list[onnx.NodeProto]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                for graph in [attribute.g, *attribute.graphs]:
                    walk(list(graph.node))
            if (node.domain, node.op_type) in local:
                continue
            own = node.domain in ("", "ai.onnx")
            used.add(node.op_type if own else f"{node.domain}.{node.op_type}")

    walk(list(model.graph.node))
    for function in model.functions:
        walk(list(function.node))
    return sorted(used - known)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in int8 by QuantizeLinear, as `hashvpr export --precision int8`."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def uint8_inside(model: onnx.ModelProto) -> list[str]:
    """Nodes that take or give uint8 otherwise than a Cast at the graph's inputs and outputs.

    Returns:
        a half sentence for each, e.g. "Transpose 'a' takes the uint8 'images'".
    """
    graph = model.graph
    outputs = {o.name for o in graph.output}
    uint8 = {i.name for i in graph.input if i.type.tensor_type.elem_type == _UINT8}
    problems = []
    for node in graph.node:
        taken = [i for i in node.input if i in uint8]
        if taken and node.op_type != "Cast":
            problems.append(f"{node.op_type} {node.name!r} takes the uint8 {taken[0]!r}")
            if node.op_type in ("Transpose", "Reshape", "Slice", "Concat", "Identity"):
                uint8.update(node.output)  # it moves data and keeps their type
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        if node.op_type == "Cast" and to == _UINT8:
            uint8.update(node.output)
            inner = [o for o in node.output if o not in outputs]
            if inner:
                problems.append(f"Cast {node.name!r} gives the uint8 {inner[0]!r} to other nodes")
    return problems


def cast_first(model: onnx.ModelProto) -> bool:
    """Turn Cast(Transpose(images)) into Transpose(Cast(images)), which is the same.

    Changes the model in place.

    Returns:
        whether anything had to be changed.
    """
    graph = model.graph
    inputs = {i.name for i in graph.input if i.type.tensor_type.elem_type == _UINT8}
    outputs = {o.name for o in graph.output}
    changed = False
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in inputs:
            continue
        image, middle = node.input[0], node.output[0]
        users = [i for i, n in enumerate(graph.node) if middle in n.input]
        if len(users) != 1 or middle in outputs:
            continue
        cast = graph.node[users[0]]
        if cast.op_type != "Cast" or next(a.i for a in cast.attribute) not in _FLOATS:
            continue
        for value in [v for v in graph.value_info if v.name == middle]:
            graph.value_info.remove(value)  # its type is another now
        # Each takes the other's place, since nodes stand in the order of execution.
        transpose = type(node).FromString(node.SerializeToString())
        transpose.input[0], transpose.output[0] = middle, cast.output[0]
        node.CopyFrom(cast)
        node.input[0], node.output[0] = image, middle
        cast.CopyFrom(transpose)
        changed = True
    return changed
