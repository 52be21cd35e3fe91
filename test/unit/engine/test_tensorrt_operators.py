"""The operators of our graphs against the list of TensorRT's parser."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hashvpr_ros.engine.factory import default_model_path
from hashvpr_ros.engine.tensorrt_operators import (
    SINCE_10,
    SUPPORTED,
    cast_first,
    uint8_inside,
    unsupported_operators,
)


def graph_of(*nodes, outputs=(("codes", TensorProto.FLOAT),), **more):
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 4, 6, 3])
    outs = [helper.make_tensor_value_info(n, t, None) for n, t in outputs]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    graph = helper.make_graph(list(nodes), "g", [image], outs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


node = helper.make_node
TRANSPOSE = node("Transpose", ["images"], ["t"], name="move", perm=[0, 3, 1, 2])
CAST = node("Cast", ["t"], ["codes"], to=TensorProto.FLOAT)


@pytest.fixture(scope="module")
def lite_graph():
    return onnx.load(str(default_model_path()))


@pytest.mark.parametrize("major", [8, 10, 11])
def test_every_operator_of_the_lite_model_is_listed(lite_graph, major):
    assert unsupported_operators(lite_graph, major=major) == []


def test_the_lite_model_has_no_uint8_inside_once_the_cast_comes_first(lite_graph):
    model = onnx.ModelProto.FromString(lite_graph.SerializeToString())
    cast_first(model)
    assert uint8_inside(model) == []
    onnx.checker.check_model(model)
    batch = np.random.default_rng(0).integers(0, 256, (2, 192, 256, 3), np.uint8)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"images": batch})
        for m in (lite_graph, model)
    )
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_vision_transformers_need_is_listed():
    needed = "LayerNormalization Softmax MatMul Erf Gemm Where Split Sqrt Tanh"
    assert set(needed.split(" ")) <= SUPPORTED
    assert "Gelu" in SINCE_10 and not SINCE_10 & SUPPORTED


def test_what_is_not_listed_is_named():
    branch = helper.make_graph(
        [node("Unique", ["x"], ["y"])], "b", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    function = helper.make_function(
        "ours", "Both", ["a"], ["b"], [node("DFT", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = graph_of(
        TRANSPOSE, CAST, node("QLinearConv", ["t"], ["q"]), node("Gelu", ["q"], ["r"]),
        node("If", ["c"], ["s"], then_branch=branch, else_branch=branch),
        node("Attention", ["s"], ["u"], domain="com.microsoft"),
        node("Both", ["u"], ["v"], domain="ours"), functions=[function],
    )  # fmt: skip
    rest = ["DFT", "QLinearConv", "Unique", "com.microsoft.Attention"]
    assert unsupported_operators(model) == [*rest[:1], "Gelu", *rest[1:]]
    assert unsupported_operators(model, major=10) == rest


def test_uint8_is_found_inside():
    assert uint8_inside(graph_of(TRANSPOSE, CAST)) == ["Transpose 'move' takes the uint8 'images'"]
    inner = [
        node("Cast", ["images"], ["f"], to=TensorProto.FLOAT),
        node("Cast", ["f"], ["c"], name="back", to=TensorProto.UINT8),
        node("Reshape", ["c", "s"], ["codes"], name="shape"),
    ]
    assert uint8_inside(graph_of(*inner)) == [
        "Cast 'back' gives the uint8 'c' to other nodes",
        "Reshape 'shape' takes the uint8 'c'",
    ]
    assert uint8_inside(graph_of(inner[0], node("Cast", ["f"], ["codes"], to=2))) == []


def test_what_is_not_a_cast_of_a_transpose_is_left():
    first = node("Cast", ["images"], ["f"], to=TensorProto.FLOAT)
    for model in (
        graph_of(first, node("Transpose", ["f"], ["codes"], perm=[0, 3, 1, 2])),
        graph_of(TRANSPOSE, CAST, node("Shape", ["t"], ["s"])),  # another user
        graph_of(TRANSPOSE, CAST, outputs=[("codes", 1), ("t", 2)]),
        graph_of(TRANSPOSE, node("Cast", ["t"], ["codes"], to=TensorProto.INT32)),
        graph_of(TRANSPOSE, node("Identity", ["t"], ["codes"])),
    ):
        before = model.SerializeToString()
        assert not cast_first(model)
        assert model.SerializeToString() == before
