"""Real exports of a small network: precision, metadata, batches, and what leaves no file."""

import dataclasses
import shutil

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hashvpr_ros.cli.export import command as export_command
from hashvpr_ros.datasets.folder import image_paths, read_image
from hashvpr_ros.engine.factory import create_engine, default_model_path
from hashvpr_ros.engine.onnx_file import with_digest
from hashvpr_ros.engine.preprocess import resize
from hashvpr_ros.engine.torch_engine import TorchEngine
from hashvpr_ros.errors import CheckpointError, ConfigError, EngineError
from hashvpr_ros.export import onnx as exporter
from hashvpr_ros.export import precision as conversion
from hashvpr_ros.export.folding import fold
from hashvpr_ros.export.onnx import Metadata, export_onnx
from hashvpr_ros.model.checkpoints import CheckpointInfo, save_network
from hashvpr_ros.model.graph import EngineGraph, fingerprint
from hashvpr_ros.model.network import NetworkConfig, SelaVpr

pytestmark = pytest.mark.usefixtures("shallow")
SIZE = (84, 112)
METADATA = Metadata("small", "3", "MIT", (20.0, -2.5))


def make(**config) -> SelaVpr:
    """A network whose BatchNorms and LayerScales do something, as trained ones do."""
    torch.manual_seed(0)
    network = SelaVpr(NetworkConfig(backbone="small", float_dim=96, **config)).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("gamma"):
                value.copy_(0.3 + 0.05 * torch.randn_like(value))
            elif name.endswith("head.pool.p"):
                value.fill_(2.7)
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn_like(value))
            elif name.endswith("running_var"):
                value.copy_(0.5 + torch.rand_like(value))
    return network


@pytest.fixture(scope="module")
def network():
    return make()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (16, 6, 8, 3), np.uint8)
    return [cv2.resize(i, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for i in small]


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "small.onnx"
    return export_onnx(network, path, SIZE, METADATA)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("aggregation", ["gem", "boq", "salad"])
def test_folding_changes_nothing(aggregation, registers):
    network = make(aggregation=aggregation, registers=registers)
    size = (112, 126) if aggregation == "salad" else SIZE
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        want, got = network(pixels), fold(network, *size)(pixels)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_fp32_is_what_pytorch_gives(exported, network, images):
    assert exported.largest_error < 1e-4 and exported.bits_equal == 1.0
    engine = create_engine(exported.path)
    batch = np.stack(images[:3])
    codes, features = engine.describe(batch)
    with torch.no_grad():
        logits, want, *_ = EngineGraph(network).unpacked(torch.from_numpy(batch))
    np.testing.assert_allclose(features, want.numpy(), rtol=0, atol=1e-5)
    differ = np.unpackbits(codes, axis=1).astype(bool) != (logits.numpy() >= 0)
    assert not differ[np.abs(logits.numpy()) > 1e-4].any()
    one, _ = engine.describe(batch[:1])
    np.testing.assert_array_equal(one[0], codes[0])


def test_the_file_says_what_it_is(exported, network):
    info = create_engine(exported.path).info
    assert (info.name, info.version, info.license) == ("small", "3", "MIT")
    assert info.probability_curve == (20.0, -2.5)
    assert (info.height, info.width, info.feature_dim) == (*SIZE, 96)
    assert info.fingerprint == exported.fingerprint == fingerprint(network, *SIZE)
    model = onnx.load(exported.path)
    operators = {n.op_type for n in model.graph.node}
    assert "BatchNormalization" not in operators and "Resize" not in operators
    assert not [p.name for p in exported.path.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(("aggregation", "size"), [("boq", SIZE), ("salad", (112, 126))])
def test_other_aggregations(aggregation, size, tmp_path):
    report = export_onnx(make(aggregation=aggregation), tmp_path / "x.onnx", size, METADATA)
    assert report.largest_error < 1e-4


def test_fp16(network, images, tmp_path, exported):
    report = export_onnx(
        network, tmp_path / "x.onnx", SIZE, METADATA, precision="fp16", images=images
    )
    assert report.cosine > 0.999 and report.bits_equal > 0.99
    assert report.megabytes < 0.6 * exported.megabytes
    assert report.fingerprint != exported.fingerprint
    model = onnx.load(tmp_path / "x.onnx")
    shapes = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type.tensor_type.elem_type for v in shapes.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceL2"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    halves = [n for n in products if types[n.output[0]] == onnx.TensorProto.FLOAT16]
    assert len(halves) > 0.9 * len(products)


@pytest.fixture(scope="module")
def quantised(network, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "small.onnx"
    return export_onnx(network, path, SIZE, METADATA, precision="int8", images=images)


def test_int8(quantised, exported):
    assert quantised.bits_equal >= 0.97
    assert quantised.megabytes < 0.4 * exported.megabytes
    assert create_engine(quantised.path).info.name == "small"


def test_int8_of_the_lite_model(data, tmp_path):
    """Depthwise convolutions and projections stay in float32; otherwise it is refused."""
    path = tmp_path / "lite.onnx"
    shutil.copy(default_model_path(), path)
    plain = create_engine(path)
    ref, query = (
        [resize(read_image(i), plain.info.height, plain.info.width) for i in chosen]
        for chosen in (image_paths(data / "corridor" / part)[::8] for part in ("ref", "query"))
    )
    model = conversion.to_int8(path, ref, 0)
    (tmp_path / "int8.onnx").write_bytes(with_digest(model.SerializeToString()))
    codes, features = create_engine(tmp_path / "int8.onnx").describe(np.stack(query))
    want_codes, want_features = plain.describe(np.stack(query))
    assert 1.0 - np.unpackbits(codes ^ want_codes).mean() >= 0.97
    assert (features * want_features).sum(1).min() >= 0.99


def test_int8_of_another_calibration_is_another_model(network, images, tmp_path, quantised):
    """Descriptors of two calibrations differ, so a map of one must refuse the other."""
    darker = [image // 2 for image in images[:12]]
    other = export_onnx(
        network, tmp_path / "x.onnx", SIZE, METADATA, precision="int8", images=darker
    )
    batch = np.stack(images[:4])
    features = []
    for report in (quantised, other):
        engine = create_engine(report.path)
        features.append(engine.describe(batch)[1])
        assert engine.info.fingerprint == report.fingerprint
        constants = conversion.constants(onnx.load(report.path))
        assert fingerprint(network, *SIZE, "int8", constants) == report.fingerprint
    assert (features[0] != features[1]).any()
    assert quantised.fingerprint != other.fingerprint


def test_int8_needs_images(network, images, tmp_path):
    with pytest.raises(ConfigError, match="at least 12 images to calibrate and to check, not 11"):
        export_onnx(
            network, tmp_path / "x.onnx", SIZE, METADATA, precision="int8", images=images[:11]
        )


def test_a_fixed_batch(network, tmp_path):
    export_onnx(network, tmp_path / "x.onnx", SIZE, METADATA, batch=3)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert session.get_inputs()[0].shape == [3, *SIZE, 3]


def test_an_export_that_differs_leaves_no_file(network, tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"the old one")

    def wrong(network, height, width):
        folded = fold(network, height, width)
        folded.float_branch.head.output.bias.data[0] += 0.01
        return folded

    monkeypatch.setattr(exporter, "fold", wrong)
    with pytest.raises(EngineError, match="not written, for the exported graph differs"):
        export_onnx(network, tmp_path / "x.onnx", SIZE, METADATA)
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_bytes() == b"the old one"


@pytest.mark.parametrize("batch", ["²", "0", "257", "-1", "1.5", "", "9" * 5000])
def test_the_command_refuses_a_batch_that_is_none(batch, tmp_path):
    arguments = [str(tmp_path / "none.pth"), str(tmp_path / "x.onnx"), "--batch", batch]
    with pytest.raises(ConfigError, match="--batch must be a number or dynamic, 1 to 256, not"):
        export_command.main(arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "fp8"}, "precision must be one of"),
        ({"batch": 999}, "batch must be from 1 to 256"),
        ({"path": "x.engine"}, "must end in .onnx"),
        ({"path": "none/x.onnx"}, "no such folder"),
    ],
)
def test_bad_arguments(network, tmp_path, arguments, words):
    path = tmp_path / arguments.pop("path", "x.onnx")
    with pytest.raises(ConfigError, match=words):
        export_onnx(network, path, SIZE, METADATA, **arguments)


def test_one_branch_is_no_engine(tmp_path):
    network = make(hash_branch=False)
    with pytest.raises(CheckpointError, match="no hash branch, so it gives no codes"):
        export_onnx(network, tmp_path / "x.onnx", SIZE, METADATA)


def test_the_engine_of_checkpoints(network, images, tmp_path, exported):
    info = CheckpointInfo(SIZE, "MIT", "3", (20.0, -2.5))
    save_network(tmp_path / "x.pth", network, info)
    engine = create_engine(tmp_path / "x.pth")
    other = create_engine(exported.path)
    assert dataclasses.replace(engine.info, provider="", name="") == dataclasses.replace(
        other.info, provider="", name=""
    )
    batch = np.stack(images[:2])
    np.testing.assert_allclose(engine.describe(batch)[1], other.describe(batch)[1], atol=1e-5)
    with pytest.raises(EngineError, match="resize the images first"):
        engine.describe(batch[:, :-1])
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.warm_up()
    with pytest.raises(EngineError, match="multiples of 14"):
        TorchEngine(tmp_path / "x.pth", (50, 50))
    save_network(tmp_path / "float.pth", make(hash_branch=False), info)
    with pytest.raises(EngineError, match=r"float.pth: the network has no hash branch"):
        create_engine(tmp_path / "float.pth")
    with pytest.raises(EngineError, match=r"none.pth: no such file"):
        create_engine(tmp_path / "none.pth")
