"""Readers of places, plans of epochs, augmentations, losses, validation and settings."""

import cv2
import numpy as np
import pytest
import torch
import yaml

from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.model.hashing import sign
from hashvpr_ros.training import images, losses, places
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
