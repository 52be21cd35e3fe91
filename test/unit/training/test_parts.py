"""Readers of places, plans of epochs, augmentations, losses, validation and settings."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import setuptools
import torch
import yaml

from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.model.hashing import sign
from hashvpr_ros.model.network import SelaVpr
from hashvpr_ros.training import efficiency, images, losses, places
from hashvpr_ros.training.config import LossSettings, TrainConfig, as_yaml, read_config
from hashvpr_ros.training.validation import Validation


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))


def test_gsv_cities(tmp_path):
    rows = [
        "place_id,year,month,northdeg,city_id,lat,lon,panoid",
        "7,2015,3,9,Paris,48.85,2.350,abc-_1",
        "7,2018,11,120,Paris,48.86,2.36,def",
        "9,2016,1,5,Paris,48.1,2.1,ghi",
        "9,2017,1,5,Paris,48.1,2.1,jkl",
    ]
    table = tmp_path / "Dataframes" / "Paris.csv"
    table.parent.mkdir()
    table.write_text("\n".join(rows))
    found = places.read_places(tmp_path, "gsv_cities")
    assert [len(p) for p in found] == [2, 2]
    # Coordinates as pandas prints floats: so the archive's files are named.
    name = "Paris_0000007_2015_03_009_48.85_2.35_abc-_1.jpg"
    assert found[0][0] == tmp_path / "Images" / "Paris" / name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,2015,3,9,Paris,48.85,2.35,abc", "line 2 is malformed"),
        ("7,2015,3,9,Paris", "line 2 is malformed"),
        ("7,2015,3,9,../../etc,1.0,2.0,abc", "names another folder"),
    ],
)
def test_malformed_gsv_cities(tmp_path, row, words):
    table = tmp_path / "Dataframes" / "Paris.csv"
    table.parent.mkdir()
    table.write_text("place_id,year,month,northdeg,city_id,lat,lon,panoid\n" + row)
    with pytest.raises(DatasetError, match=words):
        places.read_places(tmp_path, "gsv_cities")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"place_id,city_id\n7,Paris\xff\xfe\n", "codec can't decode"),
        (b"place_id,city_id\n7," + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_gsv_cities_tables_that_are_no_text(tmp_path, content, words):
    table = tmp_path / "Dataframes" / "Paris.csv"
    table.parent.mkdir()
    table.write_bytes(content)
    with pytest.raises(DatasetError, match=words) as e:
        places.read_places(tmp_path, "gsv_cities")
    assert str(e.value).startswith(f"{table}: cannot be read") and "\n" not in str(e.value)


def test_folders_and_ranges(tmp_path):
    for i in range(5):
        for j in range(1 if i == 4 else 3):
            picture(tmp_path / f"place{i}" / f"{j}.png")
    assert [len(p) for p in places.read_places(tmp_path, "folders")] == [3, 3, 3, 3]
    assert len(places.read_places(tmp_path, "folders", 1, -2)) == 2
    with pytest.raises(DatasetError, match="has 1 places with at least 2 images"):
        places.read_places(tmp_path, "folders", 0, 1)
    with pytest.raises(DatasetError, match="no such folder"):
        places.read_places(tmp_path / "none", "folders")
    with pytest.raises(DatasetError, match="Dataframes"):
        places.read_places(tmp_path, "gsv_cities")


def test_the_validation_places_of_sped_are_not_trained_on(data):
    trained = places.read_places(data / "sped", "vpr_bench", 0, -150)
    held_out = Validation(data / "sped", -150)
    assert len(trained) == 439 and held_out.queries == 150
    assert not {p for place in trained for p in place} & set(held_out.paths)
    assert held_out.positives == [{i} for i in range(150)]


def test_an_epoch_is_a_function_of_seed_and_number(tmp_path):
    some = [[tmp_path / f"{i}{j}" for j in range(1 + i % 3)] for i in range(10)]
    plan = images.plan_epoch(some, 4, 3, seed=1, epoch=2)
    assert plan == images.plan_epoch(some, 4, 3, seed=1, epoch=2)
    assert plan != images.plan_epoch(some, 4, 3, seed=1, epoch=3)
    labels = [label for _, part in plan for label in part]
    assert sorted(labels) == sorted(3 * list(range(10)))
    flat = [p for place in some for p in place]
    for keys, part in plan:
        assert all(
            flat[number] in some[label] for (number, _), label in zip(keys, part, strict=True)
        )
    # Two images or more of a place are all used before one comes twice.
    keys, part = plan[0]
    for label in set(part):
        numbers = [n for (n, _), other in zip(keys, part, strict=True) if other == label]
        assert len(set(numbers)) == min(3, len(some[label]))


def test_a_last_batch_of_one_place_is_left_out(tmp_path):
    some = [[tmp_path / f"{i}{j}" for j in range(2)] for i in range(5)]
    assert [len(labels) for _, labels in images.plan_epoch(some, 2, 2, 0, 0)] == [4, 4]


@pytest.mark.parametrize("kind", ["camera", "randaugment", "none"])
def test_augmentations(kind):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (64, 48))
    first = images.augment(image, kind, 5)
    assert first.shape == image.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, images.augment(image, kind, 5))
    np.testing.assert_array_equal(image, images.augment(image, kind, images.PLAIN))
    different = not np.array_equal(first, images.augment(image, kind, 6))
    assert different == (kind != "none")


def test_a_reader_of_mirror_images_flips_them(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), image)
    plain, mirror = (
        images.ImageReader([tmp_path / "x.png"], 8, 8, kind)[0, images.PLAIN]
        for kind in ("none", "mirror")
    )
    assert torch.equal(mirror, plain.flip(1)) and not torch.equal(mirror, plain)


def test_workers_change_nothing(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        picture(path, 50 * i)
    reader = images.ImageReader(paths, 8, 8, "camera")
    keys = [[(0, 3), (1, 4)], [(2, 5), (3, images.PLAIN)], [(1, 6)]]
    alone, helped = (list(reader.batches(keys, workers)) for workers in (0, 2))
    assert [len(b) for b in alone] == [2, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence(tmp_path, workers):
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    reader = images.ImageReader([tmp_path / "good.png", tmp_path / "bad.png"], 8, 8, "none")
    batches = reader.batches([[(0, 0)], [(0, 0), (1, 0)]], workers)
    assert len(next(batches)) == 1
    with pytest.raises(DatasetError) as e:
        next(batches)
    assert str(e.value).startswith(f"{tmp_path}/bad.png: ") and "\n" not in str(e.value)


def test_losses_prefer_places_that_lie_together():
    torch.manual_seed(0)
    labels = torch.arange(8).repeat_interleave(2)
    centres = torch.nn.functional.normalize(torch.randn(8, 64))
    good = torch.nn.functional.normalize(centres.repeat_interleave(2, 0) + 0.01)
    bad = torch.nn.functional.normalize(torch.randn(16, 64))
    for name in ("float", "hash"):
        loss = losses.LOSSES[name](LossSettings())
        assert loss(good, labels)[0] < loss(bad, labels)[0]


def test_the_similarity_constraint_as_written():
    torch.manual_seed(0)
    logits = torch.randn(6, 512)
    codes = sign(logits)
    index = torch.tensor([0, 1])
    pairs = (index, index + 1, index[:1], index[:1] + 4)
    got = losses.similarity_constraint(logits, codes, pairs)
    terms = []
    for i, j in ((0, 1), (1, 2), (0, 4)):
        cosine = logits[i] @ logits[j] / logits[i].norm() / logits[j].norm()
        terms.append((cosine - codes[i] @ codes[j] / 512) ** 2)
    assert float(got) == pytest.approx(float(sum(terms) / 3), rel=1e-5)
    empty = index[:0]
    assert float(losses.similarity_constraint(logits, codes, (empty,) * 4)) == 0.0


def test_gradients_pass_the_codes():
    logits = torch.nn.functional.normalize(torch.randn(8, 512)).requires_grad_()
    loss, _ = losses.HashLoss(LossSettings())(logits, torch.arange(4).repeat_interleave(2))
    loss.backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) > 0


def test_every_setting_is_in_the_example(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(as_yaml())
    assert read_config(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: {epochs: many}", "optimizer.epochs must be of type int"),
        ("optimiser: {epochs: 3}", "unknown setting 'optimiser.epochs'"),
        ("data: {layout: mine}", "data.layout must be one of"),
        ("[1, 2]", "holds no settings"),
        ("a: [", "is no YAML"),
        ("loss: {alpha: .nan}", "must be a finite number"),
        ("loss: {alpha: nan}", "must be a finite number"),
        ("loss: {alpha: much}", "loss.alpha must be of type float, not 'much'"),
        ("optimizer: {seed: 99999999999999999999}", "optimizer.seed must be at most"),
        ("optimizer: {epochs: }", "optimizer.epochs must be of type int, not None"),
        ("data: {layout: }", "data.layout must be one of"),
        ("[" * 5000, "is no YAML"),
        ("data: &x {folder: *x}", "is no YAML"),
        ("output: 2024-13-45", "is no YAML"),
    ],
)
def test_bad_settings_are_explained(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as e:
        read_config(path)
    assert str(path) in str(e.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_overrides_win(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"optimizer": {"epochs": 3}}))
    assert read_config(path, {"optimizer.epochs": 5}).optimizer.epochs == 5


def test_what_yaml_takes_for_something_else_is_read_as_meant(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("model:\noptimizer: {learning_rate: 4e-4}\ndata: {folder: }\n")
    config = read_config(path, {"data.validation_folder": None, "loss.beta": "1e1"})
    assert config.optimizer.learning_rate == 4e-4 and config.loss.beta == 10.0
    assert config.data.folder == config.data.validation_folder == ""
    assert config.model == TrainConfig().model


def test_the_settings_say_what_the_lite_network_takes_and_how_ranges_end():
    text = as_yaml()
    assert "for lite of 96" in text and "for lite a multiple of 128" in text
    assert "-150: 150 from the end" in text.split("validation_first:")[0].splitlines()[-2]


def test_the_cost_of_a_step_is_measured_from_the_same_start(monkeypatch):
    """Cached features come from a process of its own: the backbone's memory would hide theirs."""
    order = []
    peak, way = efficiency._peak_mb, efficiency._FORWARD["cached"]
    monkeypatch.setattr(efficiency, "_peak_mb", lambda: order.append("peak") or peak())
    monkeypatch.setitem(
        efficiency._FORWARD, "cached", lambda *a: order.append("features") or way(*a)
    )
    monkeypatch.setattr(SelaVpr, "stages", lambda *_: order.append("backbone"))
    result = efficiency.measure("cached", "small", 28, 4, 1)
    assert order == ["peak", "features", "peak"] and len(result["step_s"]) == 1


def test_pip_brings_a_torch_that_has_what_is_called(monkeypatch):
    """GradScaler is in torch.amp from 2.3, the exporter that is asked for in torch from 2.5."""
    root, given = Path(__file__).resolve().parents[3], {}
    monkeypatch.setattr(setuptools, "setup", lambda **k: given.update(k))
    runpy.run_path(str(root / "setup.py"))
    wanted = given["extras_require"]["train"]
    assert [r for r in wanted if r.startswith("torch")] == ["torch>=2.5"]
    lines = (root / "requirements" / "train.txt").read_text().splitlines()
    named = {r for r in lines if r[0] not in "#-" and not r.startswith("torch==")}
    assert len(named) >= 5 and named <= set(wanted)
