"""Readers of places, plans of epochs, augmentations, losses, validation and settings."""

import os
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
from hashvpr_ros.training import camera, efficiency, images, losses, places
from hashvpr_ros.training.config import (
    LossSettings,
    SourceSettings,
    TrainConfig,
    ValidationSettings,
    as_yaml,
    read_config,
)
from hashvpr_ros.training.validation import Validation

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("city", ["..", ".", "a/b", "a\0b"])
def test_gsv_cities_stays_in_its_folder(tmp_path, city):
    table = tmp_path / "Dataframes" / "Paris.csv"
    table.parent.mkdir()
    table.write_text(
        f"place_id,year,month,northdeg,city_id,lat,lon,panoid\n7,2020,1,90,{city},1.5,2.5,x\n"
    )
    with pytest.raises(DatasetError, match=r"names another folder|line contains NUL"):
        places.read_places(tmp_path, "gsv_cities")


def test_tables_that_are_no_regular_file(tmp_path):
    (tmp_path / "Dataframes").mkdir()
    os.mkfifo(tmp_path / "Dataframes" / "Paris.csv")
    with pytest.raises(DatasetError, match=r"Paris\.csv: is a FIFO"):
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


def test_an_epoch_is_a_function_of_seed_and_number():
    some = [[10 * i + j for j in range(1 + i % 3)] for i in range(10)]
    plan = images.plan_epoch(some, 4, 3, seed=1, epoch=2)
    assert plan == images.plan_epoch(some, 4, 3, seed=1, epoch=2)
    assert plan != images.plan_epoch(some, 4, 3, seed=1, epoch=3)
    labels = [label for _, part in plan for label in part]
    assert sorted(labels) == sorted(3 * list(range(10)))
    for keys, part in plan:
        assert all(n in some[label] for (n, _), label in zip(keys, part, strict=True))
    # Two images or more of a place are all used before one comes twice.
    keys, part = plan[0]
    for label in set(part):
        numbers = [n for (n, _), other in zip(keys, part, strict=True) if other == label]
        assert len(set(numbers)) == min(3, len(some[label]))


def test_a_last_batch_of_one_place_is_left_out():
    some = [[2 * i, 2 * i + 1] for i in range(5)]
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


def test_two_random_viewpoints_overlap_but_differ():
    """Each column of a ramp says where in the image it comes from."""
    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (192, 1, 3))
    shifts = []
    for seed in range(60):
        seen = camera._viewpoint(ramp, np.random.default_rng(seed))
        shifts.append((float(seen[96, 128].mean()) - 127.5) / 255)
    assert max(shifts) > 0.12 and min(shifts) < -0.12
    assert max(map(abs, shifts)) < 0.25


def test_occlusion_keeps_most_of_the_image():
    image = np.full((60, 80, 3), 7, np.uint8)
    image[:, 40:] = 9
    hidden = [
        (camera._occlude(image, np.random.default_rng(seed)) != image).any(2).mean()
        for seed in range(40)
    ]
    assert 0 < max(hidden) < 0.3 and min(hidden) == 0


FRAMES = """path,floor,video,second
frames/a/0.jpg,a,v,0
frames/a/1.jpg,a,v,1
frames/a/2.jpg,a,v,2
frames/a/3.jpg,a,v,3
frames/a/4.jpg,a,v,4
frames/b/0.jpg,b,w,0
frames/b/1.jpg,b,w,1
"""
REVISITS = """path_a,path_b,inliers
frames/a/0.jpg,frames/a/2.jpg,30
frames/a/2.jpg,frames/a/4.jpg,31
frames/b/0.jpg,frames/b/1.jpg,32
"""


def make_tower(folder, frames=FRAMES, revisits=REVISITS):
    folder.mkdir(exist_ok=True)
    (folder / "frames.csv").write_text(frames)
    (folder / "revisits.csv").write_text(revisits)
    return folder


def test_tower_joins_frames_by_their_revisits(tmp_path):
    folder = make_tower(tmp_path / "tower")
    found = places.read_source(folder, "tower")
    assert found.paths[2] == folder / "frames/a/2.jpg" and len(found.paths) == 7
    assert found.places == [[0, 2, 4], [5, 6]]  # 1 and 3 stand alone
    assert found.pairs == [(0, 2), (2, 4), (5, 6)]  # 0 and 4 need not see the same
    held_out = REVISITS + "frames/a/1.jpg,frames/a/3.jpg,33\n"
    kept = places.read_source(make_tower(folder, revisits=held_out), "tower", held_out=["b"])
    assert kept.places == [[0, 2, 4], [1, 3]] and len(kept.paths) == 5
    assert all("frames/a/" in str(p) for p in kept.paths)


@pytest.mark.parametrize(
    ("frames", "revisits", "held_out", "words"),
    [
        (FRAMES, REVISITS, ["c"], "has no floor c; held_out must name some of a, b"),
        (FRAMES, REVISITS, ["b"], "joins 1 places"),
        (FRAMES + "frames/a/0.jpg,a,v,9\n", REVISITS, [], "line 9 names frames/a/0.jpg again"),
        (FRAMES + "frames/a/9.jpg\n", REVISITS, [], "line 9 has no floor"),
        (FRAMES + "../x.jpg,a,v,9\n", REVISITS, [], "line 9 names another folder"),
        (FRAMES + "/etc/x.jpg,a,v,9\n", REVISITS, [], "line 9 names another folder"),
        ("file,floor\nx,a\n", REVISITS, [], "line 2 has no path"),
        (FRAMES, REVISITS + "frames/a/0.jpg,none.jpg,1\n", [], "line 5 names none.jpg"),
        (FRAMES, REVISITS + "frames/a/0.jpg\n", [], "line 5 has no path_b"),
        (FRAMES, "", [], "joins 0 places"),
    ],
)
def test_malformed_tower_tables(tmp_path, frames, revisits, held_out, words):
    make_tower(tmp_path / "tower", frames, revisits)
    with pytest.raises(DatasetError, match=words) as e:
        places.read_source(tmp_path / "tower", "tower", held_out=held_out)
    assert "\n" not in str(e.value)


def test_tower_without_tables(tmp_path):
    with pytest.raises(DatasetError, match=r"frames.csv: cannot be read"):
        places.read_source(tmp_path, "tower")
    with pytest.raises(DatasetError, match="use held_out, not a range"):
        places.read_source(make_tower(tmp_path / "tower"), "tower", 1)
    with pytest.raises(DatasetError, match="layout folders has no areas"):
        places.read_source(tmp_path, "folders", held_out=["a"])


def test_several_sources_are_joined(tmp_path):
    for i in range(3):
        for j in range(3 if i == 1 else 2):
            picture(tmp_path / "folders" / f"place{i}" / f"{j}.png")
    parts = [
        places.read_source(make_tower(tmp_path / "tower"), "tower"),
        places.read_source(tmp_path / "folders", "folders"),
    ]
    # The first image of every place, then the second.
    names = [p.parent.name + p.stem for p in parts[1].paths]
    assert names == ["place00", "place10", "place20", "place01", "place11", "place21", "place12"]
    assert parts[1].places == [[0, 3], [1, 4, 6], [2, 5]]
    joined = places.join_sources(parts)
    assert joined.paths == parts[0].paths + parts[1].paths
    assert joined.places == [[0, 2, 4], [5, 6], [7, 10], [8, 11, 13], [9, 12]]
    assert (8, 13) in joined.pairs and (0, 4) not in joined.pairs and len(joined.pairs) == 8
    assert joined.sources == [range(7), range(7, 14)]
    assert joined.spread(100) == list(range(14)) and joined.spread(2) == [0, 4, 7, 11]


def test_the_floors_of_tower_that_are_held_out(data):
    held_out = read_config(ROOT / "config/train/lite_float.yaml").data.sources[0].held_out
    every, kept = (places.read_source(data / "tower", "tower", held_out=h) for h in ([], held_out))
    floors = {p.parts[-3] for p in every.paths} - {p.parts[-3] for p in kept.paths}
    assert floors == set(held_out) and len(kept.paths) < len(every.paths)


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
        ("a: [", "cannot be read as YAML"),
        ("loss: {alpha: .nan}", "must be a finite number"),
        ("loss: {alpha: nan}", "must be a finite number"),
        ("loss: {alpha: much}", "loss.alpha must be of type float, not 'much'"),
        ("optimizer: {seed: 99999999999999999999}", "optimizer.seed must be at most"),
        ("optimizer: {epochs: }", "optimizer.epochs must be of type int, not None"),
        ("data: {layout: }", "data.layout must be one of"),
        ("[" * 5000, "cannot be read as YAML"),
        ("data: &x {folder: *x}", "cannot be read as YAML"),
        ("output: 2024-13-45", "cannot be read as YAML"),
        ("data: {sources: ../images}", "data.sources must be a list of mappings with some of"),
        ("data: {sources: [../images]}", "data.sources must be a list of mappings"),
        ("data: {sources: [{layout: mine}]}", "entry 0 of data.sources: layout must be one of"),
        ("data: {sources: [{}, {path: x}]}", "entry 1 of data.sources: unknown setting 'path'"),
        ("data: {sources: [{held_out: floor6}]}", "held_out must be a list of strings"),
        ("data: {validation: [{first: -1.5}]}", "entry 0 of data.validation: first must be"),
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


def test_training_and_validation_sets_are_named_in_one_way(tmp_path):
    path = tmp_path / "x.yaml"

    def data(text):
        path.write_text(text)
        return read_config(path).data

    single = data("data: {folder: a, last_place: -150, validation_folder: b, validation_last: 9}")
    assert single.training() == [SourceSettings("vpr_bench", "a", 0, -150)]
    assert single.validations() == [ValidationSettings("b", 0, 9, True)]
    several = data(
        "data: {sources: [{folder: a}, {folder: b, layout: tower, held_out: [c]}],"
        " validation: [{folder: d}, {folder: e, first: -5}]}"
    )
    assert [s.held_out for s in several.training()] == [[], ["c"]]
    assert several.validations()[1] == ValidationSettings("e", -5)
    assert TrainConfig().data.validations() == []
    for text, words in (
        ("data: {folder: }", "data.folder is empty"),
        ("data: {folder: a, sources: [{folder: b}]}", "are both set"),
        ("data: {sources: [{layout: tower}]}", "entry 0 of data.sources has no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            data(text).training()
    for text, words in (
        ("data: {validation_folder: a, validation: [{folder: b}]}", "are both set"),
        ("data: {validation: [{folder: b}, {first: 1}]}", "entry 1 of data.validation has no"),
    ):
        with pytest.raises(ConfigError, match=words):
            data(text).validations()


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
    assert text.count("for lite of 16, such as") == 2
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
