"""What other robots see, matched with this robot's map: each has a past of its own."""

import numpy as np
import pytest
from test_matcher import DIM, S, World

from hashvpr_ros.config import KeyframeConfig, from_flat
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.matching.track import Track
from hashvpr_ros.types import Mode, Verdict

PLACES = 120
FINGERPRINT = "ab" * 32


@pytest.fixture
def world():
    return World(PLACES, seed=1)


@pytest.fixture
def robot(world):
    """A recognizer whose map holds each place of the world."""
    views = [world.view(p) for p in range(PLACES)]
    engine = RecordedEngine(
        EngineInfo("none", FINGERPRINT, 8, 8, DIM, "none"),
        np.array([v.code for v in views]),
        np.array([v.feature for v in views]),
    )
    config = from_flat({"matching.exclude_recent_s": 20.0, "keyframes.min_distance_m": 0.0})
    with PlaceMap.open("", FINGERPRINT, DIM) as place_map:
        vpr = Recognizer(engine, place_map, config, mode=Mode.SLAM)
        for i in range(PLACES):
            vpr.process(engine.blank, i * S, world.pose(i))
        yield vpr


def hear(robot, world, place, second, topic="/fleet", map_id="b", session="s", camera="camera"):
    return robot.match_peer(
        topic, map_id, session, camera, world.view(place), second * S, world.pose(place)
    )


@pytest.mark.parametrize("other", [{"session": "t"}, {"map_id": "c"}, {"topic": "/other"}])
def test_another_robot_leaves_the_past_of_one_alone(robot, world, other):
    accepted = 0
    for i in range(60):
        hear(robot, world, i + 50, i, **other)
        accepted += hear(robot, world, i, i).accepted
    assert accepted > 40


def test_the_past_of_so_many_robots_is_remembered_and_no_more(robot, world):
    for i in range(40):
        hear(robot, world, 3, i, session=str(i))
        hear(robot, world, 3, i, session="stays")
    assert len(robot._peers) == 16
    assert {key[2] for key in robot._peers} == {"stays", *map(str, range(25, 40))}


def test_cameras_that_another_robot_names_without_end_do_not_pile_up(robot, world):
    for i in range(200):
        hear(robot, world, i, i, camera=f"camera {i}")
    (matcher,) = robot._peers.values()
    assert list(matcher._track._witnesses) == [f"camera {i}" for i in range(184, 200)]


def test_a_robot_of_many_cameras_keeps_them_all(world):
    codes = {f"camera {i}": world.view(i).code for i in range(20)}
    track = Track(15, KeyframeConfig(), lambda places: np.zeros(len(places), np.int32))
    for second in range(3):
        track.begin(second * S, codes, None)
        assert all(track.views(camera) for camera in codes)


def test_a_verdict_is_on_the_closure_of_the_robot_that_it_names(robot, world):
    """Clocks and names of cameras may be the same, and so the match."""
    heard = [hear(robot, world, i, PLACES + i, map_id=m) for i in range(40) for m in ("b", "c")]
    closure = next(d for d in heard[::-1] if d.accepted)
    said = closure.stamp_ns, closure.camera, closure.hypotheses[0].keyframe.id, Verdict.ACCEPTED
    assert not robot.verdict(*said)
    assert not robot.verdict(*said, "unknown")
    assert robot.verdict(*said, "b") and robot.verdict(*said, "c")
    robot.verdict(*said[:3], Verdict.REJECTED_BY_GRAPH, "c")
    b, c = robot._peers.values()
    assert len(b._verdicts._rejected) == 0 and len(c._verdicts._rejected) == 1
    assert len(robot._matcher._verdicts._rejected) == 0
