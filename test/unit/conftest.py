"""What several of the unit tests need: the real images, the lite engine, other ONNX graphs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hashvpr_ros.engine.factory import create_engine
from hashvpr_ros.engine.onnx_engine import OnnxEngine
from hashvpr_ros.engine.onnx_file import with_digest

ROOT = Path(__file__).resolve().parents[2]
# Processes that tests start find the package, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images."""
    folder = Path(os.environ.get("HASHVPR_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "corridor" / "ref").is_dir():
        pytest.skip(f"{folder} has no corridor/: set HASHVPR_DATA to the folder of real images")
    return folder


@pytest.fixture(scope="session")
def lite() -> Iterator[OnnxEngine]:
    """The lite model, loaded once; tests that close an engine make their own."""
    engine = create_engine()
    yield engine
    engine.close()


class GlobalOnly:
    """An engine that gives no local descriptors, of one that does."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.describe = engine.describe
        self.info = dataclasses.replace(engine.info, local_shape=None)


@pytest.fixture(scope="session")
def global_only(lite: OnnxEngine) -> GlobalOnly:
    """The lite model without its local descriptors."""
    return GlobalOnly(lite)


class Remembering:
    """An engine that describes the same images once, however many tests show them.

    It gives no local descriptors.
    """

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine, self.info = engine, dataclasses.replace(engine.info, local_shape=None)
        self.described: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def describe(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = images.tobytes()
        if key not in self.described:
            self.described[key] = self.engine.describe(images)
        codes, features = self.described[key]
        return codes.copy(), features.copy()


@pytest.fixture(scope="module")
def remembering() -> Iterator[Remembering]:
    """The lite model for a module whose tests look at the same images."""
    engine = create_engine(threads=1)
    yield Remembering(engine)
    engine.close()


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """ViT-S has four blocks instead of twelve, which trains and exports in a third of the time."""
    from hashvpr_ros.model.dinov2 import SIZES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "small", dataclasses.replace(SIZES["small"], depth=4))
        yield


@pytest.fixture
def few(data, tmp_path) -> Callable[..., Path]:
    """Makes a folder in the layout of VPR-Bench: the first images of the corridor."""

    def make(count: int = 4, name: str = "few", correct: list | None = None) -> Path:
        folder = tmp_path / name
        for part in ("query", "ref"):
            (folder / part).mkdir(parents=True)
            for i in range(count):
                image = f"{i:07d}.jpg"
                shutil.copy(data / "corridor" / part / image, folder / part / image)
        rows = np.empty((count, 2), object)
        for i in range(count):
            rows[i] = [i, [i] if correct is None else correct[i]]
        np.save(folder / "ground_truth_new.npy", rows, allow_pickle=True)
        return folder

    return make


@pytest.fixture
def tiny_model(tmp_path) -> Callable[..., Path]:
    """Writes a real ONNX model that any part of may be wrong."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def write(
        name: str = "tiny.onnx",
        *,
        shape: tuple = ("N", 8, 12, 3),
        image_type: int = TensorProto.UINT8,
        code_bytes: int = 64,
        code_type: int = TensorProto.UINT8,
        dim: int = 4,
        feature_type: int = TensorProto.FLOAT,
        feature_value: float = 0.5,
        names: tuple[str, str, str] = ("images", "codes", "features"),
        metadata: dict[str, str] | None = None,
    ) -> Path:
        """The mean of the image plays no part: every code is 0x80, every feature the same."""
        image, codes, features = names
        code_np = helper.tensor_dtype_to_np_dtype(code_type)
        feature_np = helper.tensor_dtype_to_np_dtype(feature_type)
        constants = [
            ("code", np.full((1, code_bytes), 0x80).astype(code_np)),
            ("feature", np.full((1, dim), feature_value).astype(feature_np)),
            ("first", np.array([0], np.int64)),
            ("one", np.array([1], np.int64)),
            ("axis", np.array([0], np.int64)),
            ("code_width", np.array([code_bytes], np.int64)),
            ("feature_width", np.array([dim], np.int64)),
        ]
        node = helper.make_node
        nodes = [
            node("Shape", [image], ["size"]),
            node("Slice", ["size", "first", "one", "axis"], ["count"]),
            node("Concat", ["count", "code_width"], ["code_shape"], axis=0),
            node("Concat", ["count", "feature_width"], ["feature_shape"], axis=0),
            node("Expand", ["code", "code_shape"], [codes]),
            node("Expand", ["feature", "feature_shape"], [features]),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(image, image_type, list(shape))],
            [
                helper.make_tensor_value_info(codes, code_type, [shape[0], code_bytes]),
                helper.make_tensor_value_info(features, feature_type, [shape[0], dim]),
            ],
            [onnx.numpy_helper.from_array(value, key) for key, value in constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        helper.set_model_props(model, metadata or {})
        path = tmp_path / name
        content = model.SerializeToString()
        if "hashvpr.fingerprint" in (metadata or {}):  # needs a digest, as an export has it
            content = with_digest(content)
        path.write_bytes(content)
        return path

    return write
