"""Files that are damaged or made to do harm, for tests and for longer runs of the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from hashvpr_ros.engine.onnx_engine import OnnxEngine
from hashvpr_ros.errors import EngineError

HEIGHT, WIDTH, DIM = 8, 12, 4


def constant(name: str, value: object) -> onnx.TensorProto:
    """An initializer."""
    return onnx.numpy_helper.from_array(np.array(value), name)


def model(
    nodes: list[onnx.NodeProto],
    *more: onnx.TensorProto,
    functions: list[onnx.FunctionProto] | None = None,
    features: bool = True,
) -> onnx.ModelProto:
    """A model of the contract for one image: constant codes, and features if no node makes any."""
    own = [helper.make_node("Identity", ["code"], ["codes"])]
    if features:
        own.append(helper.make_node("Identity", ["feature"], ["features"]))
    graph = helper.make_graph(
        [*own, *nodes],
        "attack",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, HEIGHT, WIDTH, 3])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, 64]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, DIM]),
        ],
        [
            constant("code", np.full((1, 64), 0x80, np.uint8)),
            constant("feature", np.full((1, DIM), 0.5, np.float32)),
            *more,
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions or [])
    made.ir_version = 8
    return made


def loop(times: int) -> onnx.ModelProto:
    """Features that a Loop computes, so many times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Mul", ["before", "one"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1, DIM]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1, DIM]),
        ],
    )
    node = helper.make_node("Loop", ["times", "go", "feature"], ["features"], body=body)
    return model(
        [node],
        constant("times", np.int64(times)),
        constant("go", True),
        constant("one", np.float32(1)),
        features=False,
    )


def branch() -> onnx.ModelProto:
    """Features of an If."""

    def one(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, DIM])
        return helper.make_graph(
            [helper.make_node("Identity", ["feature"], [name])], name, [], [output]
        )

    node = helper.make_node(
        "If", ["which"], ["features"], then_branch=one("a"), else_branch=one("b")
    )
    return model([node], constant("which", True), features=False)


def doubling(depth: int = 40) -> onnx.ModelProto:
    """Functions that each call the next one twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    functions = []
    for i in range(depth):
        following = f"F{i + 1}" if i + 1 < depth else "Identity"
        domain = {"domain": "ours"} if i + 1 < depth else {}
        calls = [
            helper.make_node(following, ["x"], ["y"], **domain),
            helper.make_node(following, ["y"], ["z"], **domain),
        ]
        functions.append(helper.make_function("ours", f"F{i}", ["x"], ["z"], calls, opsets))
    node = helper.make_node("F0", ["feature"], ["features"], domain="ours")
    return model([node], functions=functions, features=False)


def external(location: str) -> onnx.ModelProto:
    """Features whose values lie in another file."""
    made = model([])
    tensor = made.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * DIM))):
        tensor.external_data.add(key=key, value=value)
    return made


def sparse() -> onnx.ModelProto:
    """A sparse tensor that says it has 10^12 elements."""
    made = model([])
    values = helper.make_tensor("large", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10**12]))
    return made


def large(elements: int) -> onnx.ModelProto:
    """Features cut out of a tensor of so many elements."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["all"]),
        helper.make_node("Slice", ["all", "from", "to"], ["four"]),
        helper.make_node("Reshape", ["four", "row"], ["features"]),
    ]
    numbers = {"size": [elements], "from": [0], "to": [DIM], "row": [1, DIM]}
    constants = [constant(k, np.array(v, np.int64)) for k, v in numbers.items()]
    return model(nodes, *constants, features=False)


def declared(shape: list[int], dim: int = DIM) -> onnx.ModelProto:
    """Images and features that are said to be of other sizes."""
    made = model([])
    for value, sizes in ((made.graph.input[0], shape), (made.graph.output[1], [shape[0], dim])):
        for axis, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            axis.dim_value = size
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = shape[0]
    return made


def with_locals(shape: list[int]) -> onnx.ModelProto:
    """A model with local descriptors of a shape, the number of images included."""
    names = {"shape": np.array(shape, np.int64), "value": np.float32(0.1)}
    made = model(
        [helper.make_node("Expand", ["value", "shape"], ["locals"])],
        *(constant(name, value) for name, value in names.items()),
    )
    made.graph.output.append(helper.make_tensor_value_info("locals", TensorProto.FLOAT, shape))
    return made


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)


def flip_bits(whole: bytes, path: Path, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Open a model with one bit flipped, again and again.

    Args:
        whole: of a file with a digest.
        path: where to write.

    Returns:
        the flips, as byte and bit, that were not refused by an EngineError.
    """
    rng, missed = random.Random(seed), []
    for _ in range(count):
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        path.write_bytes(flipped(whole, at, bit))
        try:
            OnnxEngine(path, ["CPUExecutionProvider"], 1).close()
            missed.append((at, bit))
        except EngineError as e:
            assert str(e).startswith(str(path)), str(e)
            assert "\n" not in str(e) and len(str(e)) < 600 + len(str(path)), str(e)
    return missed


def fuzz_models(whole: bytes, path: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Open and run mutated models without a digest; anything but an EngineError escapes.

    Returns:
        how many answered and how many were refused.
    """
    rng, found = random.Random(seed), {"answered": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(mutate(whole, rng))
        try:
            engine = OnnxEngine(path, ["CPUExecutionProvider"], 1)
            codes, features = engine.describe(
                np.zeros((1, engine.info.height, engine.info.width, 3), np.uint8)
            )
            assert codes.shape == (1, 64) and features.shape == (1, engine.info.feature_dim)
            assert np.isfinite(features).all()
            found["answered"] += 1
        except EngineError as e:
            assert str(e).startswith(str(path)), str(e)
            assert "\n" not in str(e) and len(str(e)) < 700 + len(str(path)), str(e)
            found["refused"] += 1
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, a part left out, or a part doubled."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(len(changed) or 1), rng.randrange(4)
        if not changed:
            break
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 40)]
        else:
            changed[at:at] = changed[at : at + rng.randrange(1, 40)]
    return bytes(changed)
