"""The lite model and foreign, damaged and odd ones, all in the real ONNX Runtime."""

import hashlib
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.factory import create_engine, default_model_path
from hashvpr_ros.engine.onnx_engine import OnnxEngine
from hashvpr_ros.engine.onnx_file import with_digest
from hashvpr_ros.engine.preprocess import resize
from hashvpr_ros.errors import EngineError


def refused(path, *words, **arguments):
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(EngineError) as e:
        create_engine(path, **arguments)
    text = str(e.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, text
    return text


@pytest.fixture(scope="module")
def batch(lite):
    shape = (5, lite.info.height, lite.info.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    noise[0] = 0
    noise[1] = 255
    noise[2, :, :100] = (200, 40, 10)
    return noise


@pytest.fixture(scope="module")
def logits(batch):
    """What the lite model's bits are the signs of, [5, 512], taken out of its own graph."""
    model = onnx.load(str(default_model_path()))
    (signs,) = [n for n in model.graph.node if n.op_type == "GreaterOrEqual"]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(signs.input[0], TensorProto.FLOAT, ["N", 512])
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (values,) = session.run([signs.input[0]], {"images": batch})
    return values


# The contract, held by the model that is shipped.


def test_shapes_types_and_norms(lite, batch):
    codes, features = lite.describe(batch)
    assert codes.shape == (5, 64) and codes.dtype == np.uint8
    assert features.shape == (5, lite.info.feature_dim) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_info(lite):
    info, meta = lite.info, {
        p.key: p.value for p in onnx.load(str(default_model_path())).metadata_props
    }  # fmt: skip
    assert (info.name, info.height, info.width) == ("hashvpr_lite", 192, 256)
    assert info.fingerprint == meta["hashvpr.fingerprint"] and len(info.fingerprint) == 64
    int(info.fingerprint, 16)
    assert info.license == "Apache-2.0" and info.version == meta["hashvpr.version"]
    assert info.provider in ("CPUExecutionProvider", "CUDAExecutionProvider")
    slope, intercept = (float(v) for v in meta["hashvpr.probability_curve"].split())
    assert info.probability_curve == (slope, intercept) and slope > 0


def test_the_same_batch_gives_the_same_bytes(lite, batch):
    first, again = lite.describe(batch), create_engine().describe(batch)
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]


def test_a_batch_equals_its_images_one_by_one(lite, batch, logits):
    codes, features = lite.describe(batch)
    one_by_one = [lite.describe(image[np.newaxis]) for image in batch]
    alone = np.concatenate([f for _, f in one_by_one])
    np.testing.assert_allclose(features, alone, atol=1e-5)
    clear = np.abs(logits) > 1e-4
    assert clear.mean() > 0.99
    same = np.unpackbits(codes, axis=1) == np.unpackbits(
        np.concatenate([c for c, _ in one_by_one]), axis=1
    )
    assert same[clear].all()


def test_bits_are_the_signs_of_the_logits_most_significant_first(lite, batch, logits):
    codes, _ = lite.describe(batch)
    clear = np.abs(logits) > 1e-4
    assert (np.unpackbits(codes, axis=1) == (logits >= 0))[clear].all()
    assert not (np.unpackbits(codes, axis=1, bitorder="little") == (logits >= 0))[clear].all()


def test_views_of_one_place_are_nearer_than_of_two(lite, data):
    def describe(part, index):
        image = read_image(data / "corridor" / part / f"{index:07d}.jpg")
        codes, features = lite.describe(resize(image, 192, 256)[np.newaxis])
        return codes[0], features[0]

    for index in (10, 60, 100):
        code, feature = describe("query", index)
        (near, near_feature), (far, far_feature) = (
            describe("ref", index), describe("ref", (index + 55) % 111)
        )  # fmt: skip
        assert np.unpackbits(code ^ near).sum() < np.unpackbits(code ^ far).sum()
        assert feature @ near_feature > feature @ far_feature


def test_an_image_of_any_layout_gives_the_same(lite, batch):
    wanted = lite.describe(batch[2:4])
    views = batch[2:4][:, ::-1].copy()[:, ::-1], np.asfortranarray(batch[2:4])
    for view in views:
        assert not view.flags.c_contiguous
        for a, b in zip(wanted, lite.describe(view), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 192, 256, 3), np.float32),
        np.zeros((1, 192, 256, 3), np.int8),
        np.zeros((192, 256, 3), np.uint8),
        np.zeros((1, 256, 192, 3), np.uint8),
        np.zeros((1, 192, 256, 1), np.uint8),
        np.zeros((1, 3, 192, 256), np.uint8),
        np.zeros((0, 192, 256, 3), np.uint8),
        None,
        [],
    ],
    ids=lambda v: f"{v.dtype}{list(v.shape)}" if isinstance(v, np.ndarray) else repr(v),
)
def test_other_batches_are_refused(lite, images):
    with pytest.raises(EngineError, match=r"hashvpr_lite\.onnx: takes uint8 \[N, 192, 256, 3\]"):
        lite.describe(images)


def test_a_closed_engine_says_so():
    engine = create_engine()
    engine.warm_up()
    engine.close()
    engine.close()
    assert engine.info.feature_dim > 0
    for call in (engine.warm_up, lambda: engine.describe(np.zeros((1, 192, 256, 3), np.uint8))):
        with pytest.raises(EngineError, match=r"hashvpr_lite\.onnx: the engine is closed"):
            call()


# Other files.


def test_a_missing_file_a_folder_and_a_suffix(tmp_path):
    refused(tmp_path / "no.onnx", "no such engine file", "correct the path")
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", "is not a file")
    for name in ("model.pt", "model", "model.onnx.bak"):
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, ".onnx, .engine, .plan")
    for name in ("model.engine", "model.plan", "MODEL.ENGINE"):
        refused(tmp_path / name, "no such engine file", "correct the path")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08", bytes(1000)])
def test_a_file_of_another_kind(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    refused(path, "export it again")
    assert path.read_bytes() == content


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_model(tmp_path, share):
    whole = default_model_path().read_bytes()
    path = tmp_path / "truncated.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "cannot be loaded as an ONNX model", "export it again")


def test_a_tiny_model_of_the_contract_works(tiny_model):
    path = tiny_model(metadata={"hashvpr.name": "tiny", "hashvpr.fingerprint": "ab" * 32})
    engine = OnnxEngine(path, threads=1)
    info = engine.info
    assert (info.name, info.fingerprint) == ("tiny", "ab" * 32)
    assert (info.height, info.width, info.feature_dim) == (8, 12, 4)
    assert (info.license, info.version, info.probability_curve) == ("", "", None)
    codes, features = engine.describe(np.zeros((3, 8, 12, 3), np.uint8))
    np.testing.assert_array_equal(codes, np.full((3, 64), 0x80, np.uint8))
    np.testing.assert_array_equal(features, np.full((3, 4), 0.5, np.float32))


def test_a_model_without_metadata_is_known_by_its_bytes(tiny_model):
    path = tiny_model("plain.onnx")
    info = create_engine(path).info
    assert info.name == "plain"
    assert info.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert create_engine(tiny_model("other.onnx", dim=8)).info.fingerprint != info.fingerprint


FOREIGN = {
    "input name": ({"names": ("input", "codes", "features")}, "'input'"),
    "output name": ({"names": ("images", "codes", "embedding")}, "'embedding'"),
    "float images": ({"image_type": TensorProto.FLOAT}, "not uint8 [N, H, W, 3]"),
    "channels first": ({"shape": ("N", 3, 8, 12)}, "not uint8 [N, H, W, 3]"),
    "three axes": ({"shape": ("N", 8, 12)}, "not uint8 [N, H, W, 3]"),
    "dynamic size": ({"shape": ("N", "H", "W", 3)}, "no fixed height and width"),
    "unknown size": ({"shape": ("N", None, None, 3)}, "no fixed height and width"),
    "short code": ({"code_bytes": 32}, "not uint8 [N, 64]"),
    "code of floats": ({"code_type": TensorProto.FLOAT}, "not uint8 [N, 64]"),
    "features of double": ({"feature_type": TensorProto.DOUBLE}, "not float32 [N, D]"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_model_of_another_contract(tiny_model, case):
    arguments, word = FOREIGN[case]
    refused(tiny_model(**arguments), "not a model of hashvpr_ros", word, "hashvpr export")


def test_a_model_of_one_image_at_a_time_works_one_by_one(tiny_model):
    engine = create_engine(tiny_model(shape=(1, 8, 12, 3)))
    engine.warm_up()
    assert engine.describe(np.zeros((2, 8, 12, 3), np.uint8))[0].shape == (2, 64)


def test_a_failure_of_the_runtime_is_explained_with_a_double_of_it(tiny_model):
    class Failing:
        def run(self, *_):
            raise RuntimeError("out of memory\nand more")

    engine = create_engine(tiny_model())
    engine._session = Failing()
    with pytest.raises(
        EngineError, match=r"tiny\.onnx: the runtime failed \(out of memory\); exp"
    ):
        engine.warm_up()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_handed_on(tiny_model, value):
    engine = create_engine(tiny_model(feature_value=value))
    with pytest.raises(EngineError, match=r"tiny\.onnx: the model gave NaN or infinity; export"):
        engine.warm_up()


@pytest.mark.parametrize("curve", ["7", "1 2 3", "a b", "nan 1", "1 inf", "0 1", "-3 1", " "])
def test_a_malformed_probability_curve(tiny_model, curve):
    path = tiny_model(metadata={"hashvpr.probability_curve": curve})
    refused(path, "probability curve", "malformed", "export it again")


def test_a_probability_curve_is_read(tiny_model):
    path = tiny_model(metadata={"hashvpr.probability_curve": "12.5 -3"})
    assert create_engine(path).info.probability_curve == (12.5, -3.0)


def test_providers_that_are_not_there(tiny_model, caplog):
    path = tiny_model()
    with caplog.at_level(logging.WARNING):
        engine = create_engine(path, providers=["NoSuchProvider", "CPUExecutionProvider"])
    assert engine.info.provider == "CPUExecutionProvider"
    assert "NoSuchProvider" in caplog.text and "CPUExecutionProvider" in caplog.text
    with pytest.raises(EngineError, match=r"NoSuchProvider.*CPUExecutionProvider.*engine\.prov"):
        create_engine(path, providers=["NoSuchProvider"])


def test_the_default_is_the_file_of_the_package():
    assert default_model_path().name == "hashvpr_lite.onnx"
    assert create_engine("").info == create_engine(default_model_path()).info


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_model_of_a_fixed_batch_takes_any_number(lite, batch, tmp_path, count):
    model = onnx.load(str(default_model_path()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "two.onnx").write_bytes(with_digest(model.SerializeToString()))
    got = create_engine(tmp_path / "two.onnx").describe(batch[:count])
    want = lite.describe(batch[:count])
    assert got[0].shape == (count, 64)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert np.unpackbits(got[0] ^ want[0]).mean() < 0.01
