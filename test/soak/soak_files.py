"""Damaged bags, engines and YAML files: read, or refused in a sentence."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from soak_fuzz import EDITS, Edit, damaged, fuzz, stderr_of

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag import BagFrames
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import ConfigError, DatasetError, EngineError
from hashvpr_ros.types import Pose

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 6


def bags(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Bags of both storages with a damaged file.

    Raises:
        AssertionError: what is raised is no sentence.
        Exception: none of those that a user is shown.
    """
    rng = np.random.default_rng(0)
    frames = [
        Frame(rng.integers(0, 256, (8, 12, 3), np.uint8), i * 10**9, Pose((i, 0.0, 0.0)), "c")
        for i in range(1, FRAMES + 1)
    ]
    for storage in ("sqlite3", "mcap"):
        write_bag(folder / storage, frames, storage=storage)
    files = [p for s in ("sqlite3", "mcap") for p in sorted((folder / s).iterdir())]

    def check(edits: list[Edit], which: int) -> str:
        file = files[which % len(files)]
        case = folder / "case" / file.parent.name
        shutil.rmtree(case.parent, ignore_errors=True)
        shutil.copytree(file.parent, case)
        (case / file.name).write_bytes(damaged(file.read_bytes(), edits))
        try:
            bag = BagFrames(case, IMAGE_TOPIC, ODOMETRY_TOPIC)
            read = sum(1 for _ in bag)
        except DatasetError as e:
            assert "\n" not in str(e), str(e)
            return "refused"
        return "read" if read == FRAMES else "some images left out"

    return fuzz(check, count, seed, seconds, edits=EDITS, which=st.integers(0, 100))


def tiny_model(path: Path) -> Path:
    """A real ONNX model that gives each image the same code and feature."""
    import onnx
    from onnx import TensorProto, helper

    def info(name: str, kind: int, *shape: object) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["N", *shape])

    constants = {
        "code": np.full((1, 64), 0x80, np.uint8),
        "feature": np.full((1, 4), 0.5, np.float32),
        "first": np.array([0]),
        "one": np.array([1]),
        "axis": np.array([0]),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["images"], ["size"]),
        node("Slice", ["size", "first", "one", "axis"], ["count"]),
        node("Concat", ["count", "one"], ["shape"], axis=0),
        node("Expand", ["code", "shape"], ["codes"]),
        node("Expand", ["feature", "shape"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [info("images", TensorProto.UINT8, 8, 12, 3)],
        [info("codes", TensorProto.UINT8, 64), info("features", TensorProto.FLOAT, 4)],
        [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def engines(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Damaged .onnx files, loaded and run.

    Raises:
        AssertionError: a result of another shape, or an error that is no sentence.
        Exception: another error than EngineError.
    """
    from hashvpr_ros.engine.factory import create_engine

    path = tiny_model(folder / "tiny.onnx")
    sound = path.read_bytes()
    create_engine(path, threads=1).close()

    def check(edits: list[Edit]) -> str:
        path.write_bytes(damaged(sound, edits))
        try:
            engine = create_engine(path, threads=1)
        except EngineError as e:
            assert "\n" not in str(e), str(e)
            return "refused"
        try:
            info = engine.info
            if info.height * info.width > 10**6:
                return "loaded"
            codes, features = engine.describe(np.zeros((2, info.height, info.width, 3), np.uint8))
        except EngineError as e:
            assert "\n" not in str(e), str(e)
            return "refused when run"
        finally:
            engine.close()
        assert codes.shape == (2, 64) and codes.dtype == np.uint8
        assert features.shape == (2, info.feature_dim) and np.isfinite(features).all()
        return "loaded"

    with stderr_of():  # ONNX Runtime writes there
        return fuzz(check, count, seed, seconds, edits=EDITS)


_YAML = (
    "{}",
    "[]",
    "~",
    ".nan",
    ".inf",
    "1e999",
    "2024-01-01",
    "&a [*a]",
    "- ",
    "'",
    "\t",
    "!!set",
)


def yamls(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Damaged parameter files of the node and of training.

    Raises:
        AssertionError: an error that is no sentence.
        Exception: another error than ConfigError.
    """
    from hashvpr_ros.cli.settings import read_parameter_file
    from hashvpr_ros.training.config import read_config

    logging.getLogger("hashvpr_ros").setLevel(logging.ERROR)
    sources = [ROOT / "config" / "vpr.yaml", *sorted((ROOT / "config" / "train").glob("*.yaml"))]
    texts = [p.read_bytes() for p in sources]
    path = folder / "case.yaml"

    def check(edits: list[Edit], which: int, word: str, where: float) -> str:
        number = which % len(texts)
        data = texts[number]
        if which % 2:  # another value somewhere, which is YAML still
            lines = data.splitlines(keepends=True)
            at = int(where * len(lines))
            lines[at] = lines[at].split(b":")[0] + b": " + word.encode() + b"\n"
            data = b"".join(lines)
        else:
            data = damaged(data, edits)
        path.write_bytes(data)
        try:
            if number == 0:
                from_flat(read_parameter_file(path))
            else:
                read_config(path)
        except ConfigError as e:
            assert "\n" not in str(e), str(e)
            return "refused"
        return "read"

    return fuzz(
        check,
        count,
        seed,
        seconds,
        edits=EDITS,
        which=st.integers(0, 1000),
        word=st.one_of(st.sampled_from(_YAML), st.text(max_size=12)),
        where=st.floats(0.0, 1.0, exclude_max=True),
    )
