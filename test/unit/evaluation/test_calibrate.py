"""Calibration on synthetic places: what is fitted holds on views that it was not fitted to."""

import math

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.errors import ConfigError, MapError
from hashvpr_ros.evaluation.calibrate import Queries, calibrate, right_by_pose
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.map.calibration import Calibration, from_text, to_text
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.verdicts import StoredVerdict
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Descriptor, Mode

DIM, PLACES = 64, 300
INFO = EngineInfo("synthetic", "ab" * 32, 8, 8, DIM, "none", probability_curve=(20.0, -2.0))
CONFIG = from_flat({"mode": "localization"})


class World:
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        own = rng.normal(size=(PLACES, DIM))
        self.features = sum(np.roll(own, k, 0) * 0.8 ** abs(k) for k in range(-3, 4))
        self.plane = rng.normal(size=(512, DIM))

    def drive(self, noise, seed):
        rng = np.random.default_rng(seed)
        x = self.features + noise * rng.normal(size=(PLACES, DIM))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        codes = np.packbits(x @ self.plane.T >= 0, axis=1)
        stamps = [(i + 1) * 10**9 for i in range(PLACES)]
        return Queries(codes, x, stamps, [planar_pose(float(i), 0.0, 0.0) for i in range(PLACES)])


@pytest.fixture
def world():
    return World()


@pytest.fixture
def place_map(world):
    with PlaceMap.open("", INFO.fingerprint, DIM, session="made") as opened:
        made = world.drive(0.5, 1)
        for i in range(PLACES):
            opened.add(
                camera="c",
                stamp_ns=made.stamps_ns[i],
                pose=made.poses[i],
                descriptor=Descriptor(made.codes[i], made.features[i]),
            )
        yield opened


def accepted(place_map, queries, right, calibrated=True):
    """Right and wrong matches that the recognizer accepts."""
    engine = RecordedEngine(INFO, queries.codes, queries.features)
    vpr = Recognizer(engine, place_map, CONFIG, mode=Mode.LOCALIZATION, calibrated=calibrated)
    found = [vpr.process(engine.blank, s, None) for s in queries.stamps_ns]
    taken = [
        d.hypotheses[0].keyframe.id in r for d, r in zip(found, right, strict=True) if d.accepted
    ]
    return sum(taken), len(taken) - sum(taken)


def test_what_is_fitted_holds_on_another_drive(world, place_map):
    fitted, held = world.drive(1.5, 2), world.drive(1.5, 3)
    right = right_by_pose(fitted, place_map, 4.0, 0.7)
    assert all(len(r) >= 5 for r in right)
    calls = []
    fit = calibrate(fitted, right, place_map, INFO, CONFIG, lambda: calls.append(None))
    assert len(calls) == 3 * PLACES
    assert fit.calibration.right > 200 and fit.calibration.wrong > 150
    assert fit.error_after < 0.1 and fit.brier_after < fit.brier_before + 0.01
    place_map.set_calibration(fit.calibration)
    good, bad = accepted(place_map, held, right)
    assert good > 50 and bad <= 0.02 * (good + bad)


def test_a_map_that_is_too_sure_becomes_cautious(world, place_map):
    """With a curve that finds everything right, calibration has to take it back."""
    fitted = world.drive(1.5, 2)
    right = right_by_pose(fitted, place_map, 4.0, 0.7)
    from dataclasses import replace

    sure = replace(INFO, probability_curve=(200.0, 5.0))
    fit = calibrate(fitted, right, place_map, sure, CONFIG)
    assert fit.accepted_before[1] > 10  # wrong ones
    assert fit.accepted_after[1] <= 0.02 * sum(fit.accepted_after)
    assert fit.error_after < fit.error_before


def test_it_is_kept_in_the_file_and_used_from_then_on(world, place_map, tmp_path):
    path = tmp_path / "m.vprmap"
    place_map.copy_to(path)
    queries = world.drive(0.7, 4)
    right = right_by_pose(queries, place_map, 4.0, 0.7)
    cautious = Calibration(1.0, -50.0, 10, 20)
    with PlaceMap.open(path, create=False) as opened:
        assert opened.calibration is None
        opened.set_calibration(cautious)
    with PlaceMap.open(path, read_only=True, create=False) as opened:
        assert opened.calibration == cautious and opened.verify() == []
        assert accepted(opened, queries, right) == (0, 0)
        assert accepted(opened, queries, right, calibrated=False)[0] > 50
        with pytest.raises(MapError, match="read-only"):
            opened.set_calibration(None)
    with PlaceMap.open(path, create=False) as opened:
        opened.set_calibration(None)
        assert opened.calibration is None


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"slope": 0, "intercept": 0, "right": 1, "wrong": 1}',
     '{"slope": "x", "intercept": 0, "right": 1, "wrong": 1}',
     '{"slope": NaN, "intercept": 0, "right": 1, "wrong": 1}',
     '{"slope": 1, "intercept": Infinity, "right": 1, "wrong": 1}', "[" * 100_000],
)  # fmt: skip
def test_a_malformed_calibration_is_a_damaged_map(place_map, tmp_path, text):
    with pytest.raises(ValueError):
        from_text(text)
    path = tmp_path / "m.vprmap"
    place_map.copy_to(path)
    with PlaceMap.open(path, create=False) as opened:
        opened._store.set_meta("calibration", text)
    with pytest.raises(MapError, match="damaged"):
        PlaceMap.open(path, create=False)


def test_text_and_back():
    calibration = Calibration(0.1 + 0.2, -1 / 3, 400, 300)
    assert from_text(to_text(calibration)) == calibration


def test_what_cannot_be_fitted(world, place_map):
    queries = world.drive(1.0, 2)
    few = Queries(
        queries.codes[:20], queries.features[:20], queries.stamps_ns[:20], queries.poses[:20]
    )
    right = right_by_pose(few, place_map, 4.0, 0.7)
    with pytest.raises(ConfigError, match="at least 50 of each"):
        calibrate(few, right, place_map, INFO, CONFIG)
    nowhere = Queries(queries.codes, queries.features, queries.stamps_ns, [None] * PLACES)
    with pytest.raises(ConfigError, match="no poses of a common frame"):
        right_by_pose(nowhere, place_map, 4.0, 0.7)


def test_right_is_near_and_looking_the_same_way(place_map):
    queries = Queries(
        np.zeros((3, 64), np.uint8),
        np.zeros((3, DIM), np.float32),
        [1, 2, 3],
        [planar_pose(10.0, 3.0, 0.0), planar_pose(10.0, 0.0, math.pi), None],
    )
    # Keyframe i + 1 is at i metres; 3 m aside, 4 m reach 2.6 m along.
    assert right_by_pose(queries, place_map, 4.0, 0.7) == [{9, 10, 11, 12, 13}, set(), set()]


def test_verdicts_of_back_ends_count_beside_the_images(world, place_map):
    queries = world.drive(1.0, 2)
    right = right_by_pose(queries, place_map, 4.0, math.pi)
    before = calibrate(queries, right, place_map, INFO, CONFIG).calibration
    for i in range(200):
        place_map.add_verdict(StoredVerdict(i, 1, "accepted", 6.0))
        place_map.add_verdict(StoredVerdict(i, 2, "rejected_by_graph", 5.0))
    place_map.add_verdict(StoredVerdict(1, 3, "accepted", None))  # odometry had a say in it
    after = calibrate(queries, right, place_map, INFO, CONFIG).calibration
    assert (after.right, after.wrong) == (before.right + 200, before.wrong + 200)
    assert after.intercept < before.intercept - 0.5 or after.slope < 0.9 * before.slope
