"""What the node accepts on described images, and the numbers made of it."""

import json

import cv2
import numpy as np
import pytest

from hashvpr_ros.config import Config
from hashvpr_ros.datasets.drive import DriveFolder
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.evaluation import closures
from hashvpr_ros.evaluation.evaluate import evaluate, task_of
from hashvpr_ros.evaluation.run_result import Answer

DIM = 32


def answer(match, *, accepted=True, right=True, possible=True, probability=0.995):
    stamp = 0 if match is None else closures.stamp_of(match)
    return Answer(
        1, accepted, "", probability, 0.9, 0 if match is None else match + 1, stamp, {}, possible,
        right,
    )  # fmt: skip


def test_closures_by_hand():
    answers = [
        answer(4),
        answer(7, right=False),
        answer(0, right=False, possible=False),  # no reference shows the place
        answer(1, accepted=False),
        answer(None, accepted=False, right=False, probability=0.0),
    ]
    found = closures.closures(answers, [{3, 4, 5}, {4, 5}, set(), {1}, {2}])
    assert found == {
        "accepted": 3,
        "correct": 1,
        "unknown": 0,
        "precision_percent": 33.3,
        "revisits": 4,
        "closed_percent": 25.0,
        "position_error_frames": {"median": 1.25, "p95": 2.375},
    }


def test_what_the_ground_truth_says_nothing_of_is_neither_right_nor_wrong():
    judged = [answer(4), answer(7, right=False), answer(0, right=False, possible=False)]
    unknown = [
        answer(1, right=None, possible=None),
        answer(1, right=None, possible=True),  # matched with a keyframe of an unknown place
        answer(None, accepted=False, right=None, possible=None),
    ]
    correct = [{4}, {4}, set(), set(), {1}, set()]
    found = closures.closures(judged + unknown, correct)
    assert (found["accepted"], found["correct"], found["unknown"]) == (5, 1, 2)
    without = closures.closures(judged, correct[:3])
    for key in ("precision_percent", "closed_percent"):
        assert found[key] == without[key]
    assert closures.calibration(judged + unknown) == closures.calibration(judged)
    nothing = closures.closures(unknown, [set()] * 3)
    assert nothing["precision_percent"] is None and nothing["closed_percent"] is None


def test_a_match_within_the_current_visit_closes_no_revisit():
    found = closures.closures([answer(0, possible=False)], [{0}])
    assert (found["accepted"], found["correct"], found["precision_percent"]) == (1, 1, 100.0)
    assert (found["revisits"], found["closed_percent"]) == (0, None)


def test_without_closures_there_is_no_nan():
    for answers in ([], [answer(None, accepted=False, right=False)]):
        found = closures.closures(answers, [set()] * len(answers))
        assert found["precision_percent"] is None
        assert found["position_error_frames"] == {"median": None, "p95": None}
        calibration = closures.calibration(answers)
        assert calibration["expected_calibration_error"] is None
        assert calibration["at_least_0_99"]["precision_percent"] is None
        json.dumps([found, calibration], allow_nan=False)


@pytest.mark.parametrize(
    ("match", "correct", "error"),
    [
        (5, {5}, 0.0),
        (5, {4, 5}, 0.5),
        (9, {4, 5, 6}, 4.0),
        (2, {0, 1, 2, 20, 21}, 1.0),
        (18, {0, 1, 2, 20, 21}, 2.5),  # the nearest run counts
        (7, {0, 1, 2, 3, 4, 5, 6, 10}, 4.0),  # by its nearest image, not by its middle
        (3, set(), None),
    ],
)
def test_position_error(match, correct, error):
    assert closures.position_error(match, correct) == error


def test_calibration_by_hand():
    answers = [
        answer(0, probability=1.0),
        answer(0, probability=0.99, right=False),
        answer(0, probability=0.5, accepted=False),
        answer(None, accepted=False, right=False, probability=0.0),  # no hypothesis: left out
    ]
    found = closures.calibration(answers)
    assert found["queries"] == 3
    assert found["at_least_0_99"] == {"count": 2, "correct": 1, "precision_percent": 50.0}
    # Two bins: mean 0.995 against 0.5, and 0.5 against 1.
    assert found["expected_calibration_error"] == pytest.approx((2 * 0.495 + 0.5) / 3, abs=1e-4)


class ByPlace:
    """A made engine: the descriptor depends on the gray level of the image, with noise."""

    def __init__(self):
        self.info = EngineInfo(
            "made up", "ab" * 32, 8, 8, DIM, "none", probability_curve=(20.0, -2.0)
        )
        rng = np.random.default_rng(0)
        self._features = rng.normal(size=(256, DIM)).astype(np.float32)
        self._plane = rng.normal(size=(DIM, 512)).astype(np.float32)
        self._noise = np.random.default_rng(1)
        self.images = 0

    def describe(self, images):
        self.images += len(images)
        noise = 0.1 * self._noise.normal(size=(len(images), DIM))
        features = self._features[images[:, 0, 0, 0]] + noise.astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return np.packbits(features @ self._plane >= 0, axis=1), features


@pytest.fixture
def laps(tmp_path):
    """A drive of two laps of 60 places, and the labels of its images."""
    labels = np.tile(np.arange(60), 2)
    (tmp_path / "images").mkdir()
    for i, label in enumerate(labels):
        image = np.full((8, 8, 3), label, np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
    return tmp_path, labels


def test_a_drive(laps):
    folder, labels = laps
    np.save(folder / "places.npy", labels)
    engine, calls = ByPlace(), []
    done = evaluate(DriveFolder(folder), engine, progress=lambda: calls.append(None))
    assert engine.images == len(calls) == 120  # each image is described once
    summary = done.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["queries"] == summary["references"] == 120
    assert summary["ground_truth"] == {
        "queries": 120, "with_correct_reference": 60, "left_out": 60,
        "median_correct_references": 1,
    }  # fmt: skip
    assert summary["recall_of_all_queries"]["float"]["1"] == 50.0
    assert summary["recall"]["float"]["1"] == 100.0
    closed = summary["closures"]
    assert closed["revisits"] == 60 and closed["accepted"] > 20
    assert closed["precision_percent"] == 100.0
    assert closed["position_error_frames"] == {"median": 0.0, "p95": 0.0}
    assert summary["calibration"]["queries"] > 60
    # The same ground truth as pairs of images.
    (folder / "places.npy").unlink()
    np.save(folder / "loops.npy", labels[:, None] == labels[None])
    again = evaluate(DriveFolder(folder), ByPlace()).summary()
    for key in ("recall", "closures", "calibration", "ground_truth"):
        assert again[key] == summary[key]


def test_a_drive_searches_outside_the_recent_past_only(laps):
    folder, labels = laps
    np.save(folder / "places.npy", labels)
    task = task_of(DriveFolder(folder))
    recent = round(Config().matching.exclude_recent_s)
    assert task.allowed[:recent] == [0] * recent
    assert task.allowed[recent : recent + 3] == [1, 2, 3]
    done = evaluate(DriveFolder(folder), ByPlace())
    for ranked in (done.hash_ranked, done.float_ranked, done.rerank_ranked):
        assert all(j <= i - recent for i, found in enumerate(ranked) for j in found)
        assert ranked[recent - 1] == [] and ranked[recent] == [0]


def test_images_that_show_one_place_for_long_are_no_revisits(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(50):
        assert cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.zeros((8, 8, 3), np.uint8))
    np.save(tmp_path / "places.npy", np.zeros(50, int))
    summary = evaluate(DriveFolder(tmp_path), ByPlace()).summary()
    assert summary["closures"]["revisits"] == 0
    assert summary["closures"]["accepted"] == summary["closures"]["correct"]
