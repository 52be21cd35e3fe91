"""Two cameras, ahead and behind: a course driven back is recognised, instants are one place."""

import math

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.distinct import SamePlaces
from hashvpr_ros.matching.matched import Matched, vote
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.simulation.course import DAY, Course
from hashvpr_ros.types import Hypothesis, Keyframe, Mode, Reason

HEADINGS = {"front": 0.0, "rear": math.pi}
STEP_M, STEP_NS = 0.5, 250_000_000


class Counting:
    """An engine that notes how many images it is given at a time."""

    def __init__(self, engine):
        self.engine, self.info, self.batches = engine, engine.info, []

    def describe(self, images):
        self.batches.append(len(images))
        return self.engine.describe(images)


@pytest.fixture(scope="module")
def engine(remembering):
    return Counting(remembering)


@pytest.fixture(scope="module")
def drive():
    """A lap, and the same way back: (stamp, images by camera, x, y, yaw) of each instant."""
    course = Course(60.0, seed=5, size=(96, 128))
    rng = np.random.default_rng(1)
    there = np.arange(0.0, course.length_m, STEP_M)
    ways = [(d, 0.0, 0.0) for d in there] + [(d, 0.3, math.pi) for d in there[::-1]]
    instants = []
    for i, (distance_m, lateral_m, turned) in enumerate(ways):
        x, y, yaw = course.pose_at(distance_m, lateral_m, turned)
        images = {c: course.render(x, y, yaw + h, DAY, rng) for c, h in HEADINGS.items()}
        instants.append((100 * 10**9 + i * STEP_NS, images, x, y, yaw))
    return instants


def open_map(engine):
    return PlaceMap.open("", engine.info.fingerprint, engine.info.feature_dim)


def run(engine, place_map, drive, cameras=("front", "rear"), headings=HEADINGS):
    config = from_flat({"matching.exclude_recent_s": 10.0, "keyframes.min_distance_m": 0.0})
    vpr = Recognizer(engine, place_map, config, mode=Mode.SLAM)
    vpr.set_headings(headings)
    return [
        vpr.process_instant({c: images[c] for c in cameras}, stamp, planar_pose(x, y, yaw))
        for stamp, images, x, y, yaw in drive
    ]


@pytest.fixture(scope="module")
def both(engine, drive):
    engine.batches.clear()
    with open_map(engine) as place_map:
        decisions = run(engine, place_map, drive)
        ids = place_map.ids()
        yield decisions, place_map.keyframes(ids), list(engine.batches)


def closures(decisions, drive, camera):
    """Of each accepted match: the match, metres between both poses, the turn between them."""
    at = {stamp: (x, y, yaw) for stamp, _, x, y, yaw in drive}
    found = []
    for instant in decisions:
        decision = instant.get(camera)
        if decision is None or not decision.accepted:
            continue
        match = decision.hypotheses[0]
        here, there = at[decision.stamp_ns], at[match.keyframe.stamp_ns]
        apart_m = math.hypot(here[0] - there[0], here[1] - there[1])
        found.append((match, apart_m, here[2] - there[2]))
    return found


def test_a_camera_behind_knows_on_the_way_back_what_was_seen_ahead(both, drive):
    decisions, _, _ = both
    for camera, other in (("front", "rear"), ("rear", "front")):
        found = closures(decisions, drive, camera)
        assert len(found) > 0.5 * len(drive) / 2
        for match, apart_m, turned in found:
            assert apart_m < 4.0
            if match.keyframe.camera == other:
                # As the poses say, which the headings know nothing of; corners are not far away.
                error = math.remainder(match.relative_heading_rad - turned, 2 * math.pi)
                assert abs(error) < 0.6
        assert sum(m.keyframe.camera == other for m, _, _ in found) > 0.9 * len(found)


def test_one_camera_alone_closes_less_on_the_way_back(both, engine, drive):
    with open_map(engine) as place_map:
        alone = closures(run(engine, place_map, drive, cameras=("front",)), drive, "front")
    assert len(alone) < 0.2 * len(closures(both[0], drive, "front"))


def test_images_of_an_instant_are_one_batch_and_views_of_one_place(both, drive):
    decisions, keyframes, batches = both
    assert batches == [2] * len(drive)
    assert len(keyframes) == 2 * len(drive)
    for i in range(0, len(keyframes), 2):
        a, b = keyframes[i : i + 2]
        assert (a.camera, b.camera) == ("front", "rear")
        assert a.stamp_ns == b.stamp_ns and a.place == b.place and b.id == a.id + 1
    assert [k.place for k in keyframes[::2]] == list(range(1, len(drive) + 1))
    assert [d["rear"].keyframe_id for d in decisions] == [k.id for k in keyframes[1::2]]


def test_cameras_vote_for_a_place(both, drive):
    decisions, _, _ = both
    accepted = [d["front"] for d in decisions if d["front"].accepted]
    assert sum(d.hypotheses[0].votes == 2 for d in accepted) > 0.8 * len(accepted)
    for instant in decisions:
        for decision in instant.values():
            assert all(0 <= h.votes <= 2 for h in decision.hypotheses)


@pytest.mark.parametrize(("session", "votes"), [("one", 2), ("two", 1)])
def test_poses_make_places_one_within_a_session_alone(session, votes):
    """Odometry of another session begins elsewhere, in a frame of the same name."""

    def sees(id_, session):
        pose = planar_pose(1.0, 2.0, 0.0)
        keyframe = Keyframe(id_, session, "front", id_ * 10**12, pose)
        hypothesis = Hypothesis(keyframe, 10, 0.9, 0.2, 0.9, 0.9)
        return Matched(Reason.ACCEPTED, (hypothesis,))

    voted = vote({"front": sees(10, "one"), "rear": sees(500, session)}, SamePlaces())
    assert [m.hypotheses[0].votes for m in voted.values()] == [votes, votes]
    assert {m.reason for m in voted.values()} == {Reason.ACCEPTED}


def test_without_headings_the_turn_is_unknown(engine, drive):
    with open_map(engine) as place_map:
        decisions = run(engine, place_map, drive, headings={})
    found = closures(decisions, drive, "front")
    assert found
    assert all(m.relative_heading_rad is None and apart_m < 4.0 for m, apart_m, _ in found)


def test_headings_are_kept_in_the_map(engine, drive, tmp_path):
    info, path = engine.info, tmp_path / "two.vprmap"
    with PlaceMap.open(path, info.fingerprint, info.feature_dim) as place_map:
        run(engine, place_map, drive[:3])
    with PlaceMap.open(path, info.fingerprint, info.feature_dim, read_only=True) as place_map:
        assert place_map.headings_rad == HEADINGS
        assert [k.place for k in place_map.keyframes(place_map.ids())] == [1, 1, 2, 2, 3, 3]


def test_headings_reach_the_map_of_a_robot_that_begins_to_write(engine):
    with open_map(engine) as place_map:
        vpr = Recognizer(engine, place_map, from_flat({}), mode=Mode.LOCALIZATION)
        vpr.set_headings(HEADINGS)
        assert not place_map.headings_rad
        vpr.set_mode(Mode.SLAM)
        assert place_map.headings_rad == HEADINGS
