"""Which folders are image sets, what a row holds, and that one bad set stops nothing."""

import json
import math

import cv2
import numpy as np
import pytest

from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.evaluation.report import write_suite
from hashvpr_ros.evaluation.suite import (
    COLUMNS,
    ImageSet,
    SetResult,
    find_sets,
    means,
    open_set,
    run_set,
    table_of,
)

DIM = 16


class ByTexture:
    """A made engine: small gray images by a random projection."""

    def __init__(self, seed=0):
        self.info = EngineInfo(
            "made up", "ab" * 32, 8, 8, DIM, "none", probability_curve=(9.0, -1.0)
        )
        rng = np.random.default_rng(seed)
        self._plane = rng.normal(size=(64, DIM)).astype(np.float32)
        self._bits = rng.normal(size=(DIM, 512)).astype(np.float32)

    def describe(self, images):
        x = (images[..., 0].reshape(len(images), -1) / 255 - 0.5).astype(np.float32) @ self._plane
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return np.packbits(x @ self._bits >= 0, axis=1), x


def texture(seed):
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(patches, (96, 64), interpolation=cv2.INTER_NEAREST)


def images(folder, seeds):
    folder.mkdir(parents=True)
    for i, seed in enumerate(seeds):
        assert cv2.imwrite(str(folder / f"{i:03d}.png"), texture(seed))


def pair(folder, count=6):
    for part in ("query", "ref"):
        images(folder / part, range(count))
    rows = np.empty((count, 2), object)
    for i in range(count):
        rows[i] = [i, [i]]
    np.save(folder / "ground_truth_new.npy", rows, allow_pickle=True)
    return folder


def drive(folder, count=40):
    images(folder / "images", [*range(count), *range(6)])
    np.save(folder / "places.npy", np.array([*range(count), *range(6)]))
    return folder


def test_sets_are_found_two_folders_deep(tmp_path):
    pair(tmp_path / "a")
    pair(tmp_path / "b" / "one")
    drive(tmp_path / "b" / "two")
    (tmp_path / "b" / "three").mkdir()
    pair(tmp_path / "c" / "deep" / "too deep")
    (tmp_path / "d" / "query").mkdir(parents=True)
    pair(tmp_path / ".hidden")
    (tmp_path / "README.md").write_text("text")
    sets, skipped = find_sets(tmp_path)
    assert [(s.name, s.layout) for s in sets] == [
        ("a", "vpr-bench"), ("b/one", "vpr-bench"), ("b/two", "drive"),
    ]  # fmt: skip
    assert skipped == ["b/three", "c", "d"]


def test_a_folder_with_two_layouts_is_two_sets(tmp_path):
    drive(pair(tmp_path / "both"))
    sets, skipped = find_sets(tmp_path)
    assert [s.name for s in sets] == ["both (vpr-bench)", "both (drive)"] and not skipped
    assert len(open_set(sets[1]).images) == 46
    one, _ = find_sets(tmp_path / "both")  # a set by itself
    assert [s.name for s in one] == ["both (vpr-bench)", "both (drive)"]


def test_a_folder_without_sets(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no image set.*give the folder"):
        find_sets(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        find_sets(tmp_path / "no")


def test_a_range_of_queries(tmp_path):
    (found,), _ = find_sets(pair(tmp_path / "a"))
    assert len(open_set(found, (2, 5)).references) == 3
    with pytest.raises(ConfigError, match="a: the range of queries 2:9 does not fit 6"):
        open_set(found, (2, 9))
    (found,), _ = find_sets(drive(tmp_path / "b"))
    with pytest.raises(ConfigError, match="is a drive"):
        open_set(found, (0, 3))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    pair(folder / "pair")
    drive(folder / "two laps")
    bad = pair(folder / "bad")
    for image in (bad / "ref").iterdir():
        image.write_text("text")
    (folder / "pair" / "query" / "003.png").write_text("text")
    sets, _ = find_sets(folder)
    calls = []
    found = [
        run_set(
            s, ByTexture(), compare={"other.onnx": ByTexture(1)}, baselines=["hog", "vlad"],
            progress=lambda: calls.append(None),
        )
        for s in sets
    ]  # fmt: skip
    assert len(calls) >= 2 * 12 + 2 * 12 + 2 * 46 + 2 * 92
    return found


def test_one_bad_set_stops_nothing(results):
    assert [r.name for r in results] == ["bad", "pair", "two laps"]
    assert (
        "no image of the data set can be read" in results[0].error
        and not results[1].error
        and not results[2].error
    )
    assert results[0].as_json() == {"layout": "vpr-bench", "error": results[0].error}
    assert results[0].row() == {}
    # One image that cannot be read is left out, by baselines and further models, too.
    assert "003.png" in results[1].skipped[0] and results[1].summary["queries"] == 5
    assert results[1].compared["other.onnx"]["queries"] == 5


def test_a_row(results):
    for result in results[1:]:
        row = result.row()
        assert list(row) == [*COLUMNS, "hog", "vlad", "other.onnx"]
        assert row["recall_at_1"] == row["hog"] == row["vlad"] == row["other.onnx"] == 100.0
        assert row["hash_ratio"] == pytest.approx(row["recall_at_1_binary"] / 100)
        json.dumps(result.row(), allow_nan=False)
    # Of a drive only what is old enough is searched, by baselines, too.
    assert results[2].summary["ground_truth"]["left_out"] == 40
    assert results[2].summary["closures"]["revisits"] == 6


def test_a_ratio_of_nothing(results):
    summary = dict(results[1].summary)
    summary["recall"] = {
        k: dict.fromkeys(("1", "5"), 0.0 if k == "float" else math.nan) for k in summary["recall"]
    }
    row = SetResult("x", "drive", summary, {}, {}).row()
    assert row["hash_ratio"] is None and row["recall_at_1"] is None


def test_means_are_over_the_sets_that_have_a_value():
    rows = [{"a": 1.0, "b": None}, {}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "c": None}]
    assert means(rows) == {"a": 3.0, "b": 5.0, "c": None}
    assert means([{}]) == {}


def test_the_table(results):
    head, *rows = table_of(results, ["hog", "vlad"], ["other.onnx"])
    assert head[:2] == ("set", "R@1") and head[-3:] == ("HOG R@1", "VLAD R@1", "other.onnx R@1")
    assert [row[0] for row in rows] == ["bad", "pair", "two laps", "mean"]
    assert {len(row) for row in (head, *rows)} == {len(COLUMNS) + 4}
    assert rows[0][1] == "failed" and rows[1][1] == rows[3][1] == "100.0"
    assert "nan" not in str(rows)


def test_the_report(results, tmp_path):
    path = tmp_path / "suite.html"
    info = ByTexture().info
    write_suite(
        results, ["hog", "vlad"], ["other.onnx"], path, "a machine", info, {"tolerance": 0}
    )
    text = path.read_text()
    assert text.count("<svg") == 2 and "two laps" in text and "bad failed: " in text
    assert "other.onnx R@1" in text and "nan" not in text.split("<svg")[0]


def test_a_set_that_has_gone(tmp_path):
    gone = ImageSet("gone", tmp_path / "gone", "drive")
    assert "no such folder" in run_set(gone, ByTexture()).error
