"""Engine graphs at lower precision: fp16 for GPUs, int8 for CPUs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

LEAST_IMAGES = 8  # for calibration
_CALIBRATION_BATCH = 4
_LARGE = 1_000  # elements: below that a cast takes as much space as it spares
# In a network with depthwise convolutions these first ones stay in float32. So do all depthwise
# convolutions, the projections behind them, pooling and linear layers: their channels differ much
# in range, and the whitened descriptor is sensitive. On queries of Corridor 98 % of the lite
# model's bits stay equal; with only the first nine in float32 it is 95 %.
_FIRST_CONVOLUTIONS = 9

# Operators that stay in float32 at fp16. The squares inside a ViT's LayerNorm, the sums of its
# softmax and the norms of the pooling leave the range of a half; (1e-6)^3 of GeM vanishes in it.
FLOAT32_OPERATORS = (
    "LayerNormalization",
    "Softmax",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceLogSumExp",
    "Pow",
    "Sqrt",
    "Clip",
    "Div",
    "Exp",
    "Log",
)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and most operators in half precision; inputs and outputs keep their types."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(
        float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS],
        )
    )
    converted.topological_sort()  # the casts were appended at the end
    return converted.model


def shrink(model: onnx.ModelProto) -> None:
    """Store large weights that float16 holds without loss as such, and widen them in the graph.

    Runtimes fold the cast when they load the file.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _LARGE:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


class _Images:
    """What ONNX Runtime's calibration asks for images."""

    def __init__(self, images: Sequence[NDArray[np.uint8]], batch: int) -> None:
        self._images, self._batch, self._next = images, batch, 0

    def get_next(self) -> dict[str, Any] | None:
        part = self._images[self._next : self._next + self._batch]
        self._next += self._batch
        return {"images": np.stack(part)} if len(part) == self._batch else None


def to_int8(path: Path, images: Sequence[NDArray[np.uint8]], batch: int) -> onnx.ModelProto:
    """Static quantisation by ONNX Runtime: weights per channel, activations by calibration.

    Products of two activations (attention) stay in float32, and so do pooling and the last linear
    layer of each branch: a hundredth of the time, and what decides the bits.

    Args:
        path: of the fp32 graph.
        images: uint8 [H, W, 3] each, for calibration.
        batch: of the graph, 0 for any.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
        shape_inference,
    )

    CalibrationDataReader.register(_Images)
    with _quiet_root_logger(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        shape_inference.quant_pre_process(
            str(path), str(prepared), skip_symbolic_shape=True, skip_optimization=False
        )
        quantize_static(
            str(prepared),
            str(quantised),
            _Images(images, batch or _CALIBRATION_BATCH),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            nodes_to_exclude=_kept_in_float(onnx.load(str(prepared))),
            per_channel=True,
            # Seven bits for weights: with eight, processors without VNNI saturate where they add
            # products, and codes made on one machine would not fit a map made on another.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
        return onnx.load(str(quantised))


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The constants of a graph by name."""
    return {v.name: onnx.numpy_helper.to_array(v) for v in model.graph.initializer}


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantiser warns of each choice that it makes, through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _kept_in_float(model: onnx.ModelProto) -> list[str]:
    """Names of the last linear layer of each branch, of the packing, and of the first layers."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    kept = []
    for output in ("codes", "features"):
        # Breadth first from the output backwards, as far as what feeds the head.
        names, products = [output], 0
        while names and products < 2:
            node = made_by.get(names.pop(0))
            if node is None:  # a weight, or the graph's input
                continue
            if node.op_type in ("Conv", "LayerNormalization"):
                break
            if node.op_type in ("MatMul", "Gemm"):
                kept.append(node.name)
                products += 1
            names += list(node.input)
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    depthwise = [any(a.name == "group" and a.i > 1 for a in n.attribute) for n in convolutions]
    if not any(depthwise):
        return [*kept, convolutions[0].name]
    kept += [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    kept += [n.name for n in convolutions[:_FIRST_CONVOLUTIONS]]
    after = [False, *depthwise[:-1]]
    kept += [
        n.name
        for n, one, behind in zip(convolutions, depthwise, after, strict=True)
        if one or behind
    ]
    return list(dict.fromkeys(kept))
