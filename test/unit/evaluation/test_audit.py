"""What looks alike in a map: doubles are found, neighbours and laps are none."""

import math

import numpy as np
import pytest

from hashvpr_ros.evaluation.audit import audit
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.types import Descriptor, Pose

DIM = 64


def fill(place_map, features, poses=None, start=0):
    plane = np.random.default_rng(9).normal(size=(512, DIM))
    for i, x in enumerate(features):
        x = (x / np.linalg.norm(x)).astype(np.float32)
        place_map.add(
            camera="c",
            stamp_ns=(start + i) * 10**9,
            pose=None if poses is None else poses[i],
            descriptor=Descriptor(np.packbits(plane @ x >= 0), x),
        )


def smooth(count, seed=0):
    own = np.random.default_rng(seed).normal(size=(count + 6, DIM))
    return sum(np.roll(own, k, 0) * 0.8 ** abs(k) for k in range(-3, 4))[3:-3]


@pytest.fixture
def place_map():
    with PlaceMap.open("", "ab" * 32, DIM, session="one") as opened:
        yield opened


def test_a_stretch_that_comes_twice_is_found(place_map):
    features = smooth(200)
    features[150:170] = features[30:50] + 0.05 * np.random.default_rng(1).normal(size=(20, DIM))
    fill(place_map, features)
    calls = []
    found = audit(place_map, calls.append)
    assert sum(calls) == found.keyframes == 200 and 35 <= found.alike <= 50
    for pair in found.pairs:
        assert abs((pair.second.id - pair.first.id) - 120) <= 3
        assert pair.similarity >= found.threshold and pair.apart_m is None
    assert sum(p.count for p in found.pairs) >= 20


def test_a_map_of_distinct_places_has_none(place_map):
    fill(place_map, smooth(200))
    found = audit(place_map)
    assert found.pairs == [] and found.alike == 0 and 0.5 < found.threshold < 1.0


def test_a_second_lap_is_the_same_place_where_poses_say_so(place_map):
    features = smooth(100)
    ring = [
        Pose((30 * math.cos(a), 30 * math.sin(a), 0.0))
        for a in np.linspace(0, 4 * math.pi, 200, endpoint=False)
    ]
    fill(place_map, np.concatenate([features, features]), ring)
    assert audit(place_map).pairs == []


def test_other_sessions_need_poses(place_map):
    features = smooth(60)
    fill(place_map, features)
    place_map.start_session("two")
    fill(place_map, features)
    assert audit(place_map).pairs == [] and audit(place_map).without_pose == 120
    place_map.clear()
    fill(place_map, features, [Pose((float(i), 0.0, 0.0)) for i in range(60)])
    place_map.start_session("three")
    fill(place_map, features, [Pose((float(i), 500.0, 0.0)) for i in range(60)], 1000)
    found = audit(place_map)
    assert found.without_pose == 0
    assert found.pairs and all(p.apart_m == pytest.approx(500, abs=5) for p in found.pairs)


def test_an_empty_map_and_one_of_a_single_keyframe(place_map):
    assert audit(place_map).keyframes == 0
    fill(place_map, smooth(10)[:1])
    assert audit(place_map).pairs == []
