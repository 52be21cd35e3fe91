"""Building by the double of TensorRT: what is asked of its API in each version, and its errors."""

import re
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hashvpr_ros.engine import tensorrt_progress
from hashvpr_ros.engine.factory import default_model_path
from hashvpr_ros.engine.tensorrt_build import BuildOptions, build
from hashvpr_ros.engine.tensorrt_file import read_engine, write_engine
from hashvpr_ros.errors import EngineError


def flags_of(world):
    return {f.name for f in world.configs[-1].flags}


def refused(call, *words):
    with pytest.raises(EngineError) as e:
        call()
    text = str(e.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.fixture
def typed_model(tmp_path):
    """An .onnx of the contract with layers that float16 concerns, in float32 or float16."""

    def write(kind):
        node = helper.make_node
        half = np.float16 if kind == TensorProto.FLOAT16 else np.float32
        constants = {
            "w": np.full((3, 512), 0.1, half), "shape": np.array([-1, 64, 8], np.int64),
            "values": 2.0 ** np.arange(7, -1, -1, dtype=np.float32).reshape(8, 1),
            "flat": np.array([-1, 64], np.int64), "zero": np.zeros((), half),
            "half": np.full((), 0.5, half),
        }  # fmt: skip
        nodes = [
            node("Transpose", ["images"], ["t"], perm=[0, 3, 1, 2]),
            node("Cast", ["t"], ["x"], to=kind),
            node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
            node("MatMul", ["m", "w"], ["y"]),
            node("Softmax", ["y"], ["s"], axis=1),
            node("Mul", ["s", "half"], ["scaled"]),
            node("Clip", ["scaled", "zero"], ["clipped"]),
            node("Pow", ["clipped", "half"], ["power"]),
            node("ReduceL2", ["power"], ["norm"], axes=[1]),
            node("ReduceLogSumExp", ["y"], ["lse"], axes=[1]),
            node("Mul", ["power", "power"], ["square"]),
            node("ReduceMean", ["square"], ["mean"], axes=[1]),
            node("Add", ["mean", "half"], ["variance"]),
            node("Sqrt", ["variance"], ["deviation"]),
            node("Div", ["power", "norm"], ["unit"]),
            node("Div", ["unit", "deviation"], ["z"]),
            node("Sub", ["z", "lse"], ["lowered"]),
            node("Cast", ["lowered"], ["features"], to=TensorProto.FLOAT),
            node("GreaterOrEqual", ["y", "zero"], ["b"]),
            node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
            node("Reshape", ["bf", "shape"], ["r"]),
            node("MatMul", ["r", "values"], ["v"]),
            node("Reshape", ["v", "flat"], ["f"]),
            node("Cast", ["f"], ["codes"], to=TensorProto.UINT8),
        ]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "typed", [info("images", TensorProto.UINT8, ["N", 8, 12, 3])],
            [
                info("codes", TensorProto.UINT8, ["N", 64]),
                info("features", TensorProto.FLOAT, ["N", 512]),
            ],
            [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / f"typed{kind}.onnx"
        onnx.save(model, str(path))
        return path

    return write


def test_the_header_says_what_was_built(world, tiny_model, tmp_path):
    meta = {"hashvpr.name": "tiny", "hashvpr.fingerprint": "ab" * 32,
            "hashvpr.probability_curve": "12.5 -3", "hashvpr.license": "MIT"}  # fmt: skip
    header, plan = build(tiny_model(metadata=meta), BuildOptions("fp32", 512, 4))
    assert (header.name, header.fingerprint, header.license) == ("tiny", "ab" * 32, "MIT")
    assert (header.height, header.width, header.feature_dim) == (8, 12, 4)
    assert header.probability_curve == (12.5, -3.0)
    assert (header.tensorrt, header.gpu, header.compute_capability) == (
        world.version, "Orin", "8.7",
    )  # fmt: skip
    assert (header.precision, header.max_batch) == ("fp32", 4)
    write_engine(tmp_path / "t.engine", header, plan)
    assert read_engine(tmp_path / "t.engine") == (header, plan)
    config = world.configs[-1]
    assert list(config.pools.values()) == [512 << 20]
    one, four = (1, 8, 12, 3), (4, 8, 12, 3)
    assert config.profiles[0].shapes == {"images": (one, one, four)}


@pytest.mark.parametrize("fixed", [1, 2, 8])
def test_a_model_of_a_fixed_batch_has_no_profile(world, tiny_model, caplog, fixed):
    header, _ = build(tiny_model(shape=(fixed, 8, 12, 3)), BuildOptions(max_batch=4))
    assert header.max_batch == fixed and world.configs[-1].profiles == []
    assert f"runs {fixed} images at a time" in caplog.text


def test_a_float32_graph_in_fp32(world, typed_model):
    header, _ = build(typed_model(TensorProto.FLOAT), BuildOptions("fp32"))
    assert header.precision == "fp32"
    assert flags_of(world) == set()  # neither FP16 nor TF32


def test_a_float32_graph_in_fp16(world, typed_model, caplog):
    header, _ = build(typed_model(TensorProto.FLOAT), BuildOptions("fp16"))
    network = world.networks[-1]
    if world.major >= 11:
        assert header.precision == "fp32" and "takes the precision from the file" in caplog.text
        return
    assert header.precision == "fp16"
    assert {"FP16", "PREFER_PRECISION_CONSTRAINTS"} <= flags_of(world)
    assert not network.strongly
    kept = [layer for layer in network.layers if layer.precision is not None]
    assert all(k.precision.name == "FLOAT" and k.pinned[0].name == "FLOAT" for k in kept)
    # ReduceL2 is a product, a sum and a root to the parser; each alone would overflow in float16.
    assert {(k.type.name, k.outputs[0].name) for k in kept} == {
        ("REDUCE", "m"), ("SOFTMAX", "s"), ("ELEMENTWISE", "power"),
        ("ELEMENTWISE", "norm_PROD"), ("REDUCE", "norm_SUM"), ("UNARY", "norm"),
        ("UNARY", "lse_EXP"), ("REDUCE", "lse_SUM"), ("UNARY", "lse"),
        ("ELEMENTWISE", "square"), ("REDUCE", "mean"), ("ELEMENTWISE", "variance"),
        ("UNARY", "deviation"),
    }  # fmt: skip


def test_a_float16_graph_says_itself_where(world, typed_model):
    header, _ = build(typed_model(TensorProto.FLOAT16), BuildOptions("fp16"))
    assert header.precision == "fp16"
    if world.major >= 10:
        assert world.networks[-1].strongly
        assert "FP16" not in flags_of(world)


def test_the_cast_of_the_images_is_put_first(world, typed_model, make_engine):
    """The parser refuses uint8 between layers; the exporter casts first, older files may not."""
    for path in (typed_model(TensorProto.FLOAT), default_model_path()):
        build(path, BuildOptions())
        nodes = onnx.load_model_from_string(world.networks[-1].graph).graph.node
        (first,) = [n for n in nodes if "images" in n.input]
        (second,) = [n for n in nodes if first.output[0] in n.input]
        assert (first.op_type, second.op_type) == ("Cast", "Transpose")


def test_without_the_package_onnx_the_error_says_what_helps(world, typed_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(
        lambda: build(typed_model(TensorProto.FLOAT), BuildOptions()),
        ".onnx", "does not take its", "UINT8", "onnx installed", "hashvpr export",
        *(["operator Transpose"] if world.major >= 10 else []),
    )  # fmt: skip


def test_an_int8_model_is_refused(world, typed_model):
    path = typed_model(TensorProto.FLOAT)
    model = onnx.load(str(path))
    image, scale, zero = model.graph.node[2].input[0], "scale", "zero_point"
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(v, k)
        for k, v in ((scale, np.array(0.5, np.float32)), (zero, np.array(3, np.uint8)))
    )
    quantise = helper.make_node("QuantizeLinear", [image, scale, zero], ["q"])
    back = helper.make_node("DequantizeLinear", ["q", scale, zero], ["dq"])
    model.graph.node[2].input[0] = "dq"
    for node in (back, quantise):
        model.graph.node.insert(2, node)
    onnx.save(model, str(path))
    refused(lambda: build(path, BuildOptions()), str(path), "int8", "fp16 or fp32")
    assert not world.count("build_serialized_network")


def test_an_operator_that_is_not_taken_is_named(world, tiny_model):
    world.refused_operators = ("Expand",)
    refused(
        lambda: build(tiny_model(), BuildOptions()),
        "tiny.onnx", f"TensorRT {world.version} does not take its operator Expand",
        "No importer registered", "hashvpr export", "engine.tensorrt off",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("could not find any implementation for node", "export it again"),
        ("Requested amount of GPU memory could not be allocated", "engine.workspace_mb"),
    ],
)
def test_a_build_that_fails_says_why(world, tiny_model, reason, remedy):
    world.fail["build"] = reason
    refused(lambda: build(tiny_model(), BuildOptions()), "tiny.onnx", reason, remedy)


def test_no_context_is_an_engine_error(world, tiny_model):
    world.fail["retain"] = "cuDevicePrimaryCtxRetain failed: out of memory"
    refused(lambda: build(tiny_model(), BuildOptions()), "no context", "out of memory")


def test_an_unknown_precision(world, tiny_model):
    refused(lambda: build(tiny_model(), BuildOptions("int8")), "fp16, fp32", "'int8'")


# The timing cache.


def test_the_timing_cache_is_read_and_written_back(world, tiny_model, tmp_path):
    file = tmp_path / "cache" / "timing.cache"
    for _ in range(2):
        build(tiny_model(), BuildOptions(), timing_cache=file)
        assert file.read_bytes() == f"timing {world.version} Orin".encode()
    assert [p.name for p in file.parent.iterdir()] == ["timing.cache"]


@pytest.mark.parametrize("content", [b"garbage", b"timing 10.0.1 A100", b"timing"])
def test_a_timing_cache_of_another_gpu_or_damaged_is_begun_anew(
    world, tiny_model, tmp_path, content
):
    file = tmp_path / "timing.cache"
    file.write_bytes(content)
    build(tiny_model(), BuildOptions(), timing_cache=file)
    assert file.read_bytes() == f"timing {world.version} Orin".encode()


def test_a_timing_cache_that_cannot_be_kept_is_no_error(world, tiny_model, tmp_path, caplog):
    (tmp_path / "timing.cache").mkdir()
    build(tiny_model(), BuildOptions(), timing_cache=tmp_path / "timing.cache")
    assert "cannot be read" in caplog.text and "is not kept" in caplog.text


# Progress.


def test_progress_is_told_while_it_builds(world, tiny_model, monkeypatch):
    monkeypatch.setattr(tensorrt_progress, "PERIOD_S", 0.02)
    world.build_s = 0.4
    told = []
    build(tiny_model(metadata={"hashvpr.name": "tiny"}), BuildOptions(), progress=told.append)
    # Seconds pass where the machine is busy.
    assert all(
        re.match(r"building TensorRT engine of tiny \(fp16, Orin\), \d+ s", s) for s in told
    )
    assert len(told) > 5
    phase = "Building 2/4" if world.major >= 10 else "trying kernels"
    assert any(phase in s for s in told), told
    count, _ = len(told), time.sleep(0.1)
    assert len(told) == count  # its thread has ended
    assert "tensorrt_progress" not in [t.name for t in threading.enumerate()]
