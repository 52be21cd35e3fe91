"""What is made of candidates over time: laps, look-alike stretches, new places, each way alone."""

import math

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.matcher import Matcher
from hashvpr_ros.matching.odometer import spacing_of
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.types import Descriptor, Pose, Reason, Verdict

DIM = 128
S = 10**9


class World:
    """A circle of places, a metre apart, of which neighbours look alike."""

    def __init__(self, places, repeats=1, seed=0):
        rng = np.random.default_rng(seed)
        own = rng.normal(size=(places // repeats, DIM))
        own = np.concatenate([own] * repeats)
        # Each place shows much of its neighbours.
        self.features = sum(np.roll(own, k, 0) * 0.8 ** abs(k) for k in range(-3, 4))
        self.plane = rng.normal(size=(512, DIM))
        self.noise = np.random.default_rng(seed + 1)
        self.places = places

    def view(self, place, noise=1.0):
        x = self.features[place % self.places] + noise * self.noise.normal(size=DIM)
        x = (x / np.linalg.norm(x)).astype(np.float32)
        return Descriptor(np.packbits(self.plane @ x >= 0), x)

    def pose(self, place):
        angle = 2 * math.pi * place / self.places
        radius = self.places / (2 * math.pi)
        return planar_pose(radius * math.cos(angle), radius * math.sin(angle), angle)


@pytest.fixture
def place_map():
    with PlaceMap.open("", "ab" * 32, DIM, session="one") as opened:
        yield opened


def drive(matcher, world, places, *, poses=True, start_s=0, noise=1.0, without=()):
    """Matches of views a second apart, each of which becomes a keyframe.

    Odometry is missing for the views in `without`.
    """
    matches = []
    for i, place in enumerate(places):
        descriptor, stamp_ns = world.view(place, noise), (start_s + i) * S
        pose = world.pose(place) if poses and i not in without else None
        stamps_ns = {"camera": stamp_ns}
        matched = matcher.match({"camera": descriptor}, stamps_ns, stamp_ns, pose, exclude=True)
        id_ = matcher.map.add(camera="camera", stamp_ns=stamp_ns, pose=pose, descriptor=descriptor)
        matcher.stored({"camera": id_}, stamps_ns, stamp_ns, matched)
        matches.append(matched["camera"])
    return matches


def make(place_map, **settings):
    flat = {"matching.exclude_recent_s": 20.0, "keyframes.min_distance_m": 1.0}
    flat |= {k.replace("__", "."): v for k, v in settings.items()}
    return Matcher(place_map, from_flat(flat), ProbabilityModel.of((20.0, -2.0)))


def wrong(matches, world, tolerance=6):
    """Accepted matches of another place; keyframe i + 1 shows place i."""
    return [
        i
        for i, m in enumerate(matches)
        if m.reason is Reason.ACCEPTED
        and min(
            (i - m.hypotheses[0].keyframe.id + 1) % world.places,
            (m.hypotheses[0].keyframe.id - 1 - i) % world.places,
        )
        > tolerance
    ]


def accepted(matches):
    return sum(m.reason is Reason.ACCEPTED for m in matches)


# The filter by images alone is not to be trusted with closures: views that follow one another err
# alike, and nothing says how far apart they were.
@pytest.mark.parametrize(
    ("temporal", "poses"),
    [("sequence", True), ("sequence", False), ("filter", True), ("both", True), ("both", False)],
)
def test_a_second_lap_closes_and_nothing_closes_wrongly(place_map, temporal, poses):
    world = World(150)
    target = 0.99 if temporal == "both" else 0.9  # of which the filter alone reaches little
    matcher = make(place_map, matching__temporal=temporal, matching__target_precision=target)
    matches = drive(matcher, world, range(300), poses=poses)
    assert not wrong(matches, world)
    assert accepted(matches[:150]) == 0  # all is new
    assert accepted(matches[180:]) > (90 if temporal != "sequence" else 60)


def test_backwards_along_the_map(place_map):
    world = World(200)
    matcher = make(place_map, matching__target_precision=0.9)
    drive(matcher, world, range(150))
    back = drive(matcher, world, range(149, 20, -1), start_s=200)
    for i, m in enumerate(back):
        if m.reason is Reason.ACCEPTED:
            assert abs(m.hypotheses[0].keyframe.id - 1 - (149 - i)) <= 6
    assert accepted(back) > 60


def test_of_stretches_that_look_the_same_odometry_tells_the_right_one(place_map):
    world = World(300, repeats=2)
    matches = drive(make(place_map), world, range(600))
    assert not wrong(matches, world)
    assert accepted(matches[:300]) == 0
    assert accepted(matches[330:]) > 130


@pytest.mark.parametrize("step", [1, 3])
def test_on_later_laps_all_former_ones_are_one_place(place_map, step):
    """At the end the nearest hundred candidates all show the place; fast robots make fewer."""
    world = World(240)
    places = [p * step for p in range(9 * 240 // step)]
    matches = drive(make(place_map), world, places)
    lap = 240 // step
    for i, m in enumerate(matches):
        if m.reason is Reason.ACCEPTED:
            apart = ((m.hypotheses[0].keyframe.id - 1 - i) * step) % 240
            assert min(apart, 240 - apart) <= 6
    for n in range(2, 9):
        assert accepted(matches[n * lap : (n + 1) * lap]) > 0.85 * lap, n


def test_without_odometry_what_looks_the_same_is_taken_for_the_same(place_map):
    """The limit that docs/architecture.md states; it shows that the test above can fail."""
    world = World(300, repeats=2)
    matches = drive(make(place_map, matching__max_drift=0.0), world, range(300))
    assert len(wrong(matches, world)) > 20


def test_hypotheses_are_distinct_places(place_map):
    world = World(150)
    matcher = make(place_map)
    for m in drive(matcher, world, range(300), noise=2.0):
        ids = [h.keyframe.id for h in m.hypotheses]
        assert len(ids) <= 5
        assert all(abs(a - b) > 12 for i, a in enumerate(ids) for b in ids[:i])


def test_a_single_image_is_enough_where_it_is_asked_to_be(place_map):
    world = World(150)
    matcher = make(place_map, matching__temporal="none", matching__target_precision=0.9)
    drive(matcher, world, range(150))
    (matched,) = drive(matcher, world, [40], start_s=300, noise=0.1)
    assert matched.reason is Reason.ACCEPTED
    assert abs(matched.hypotheses[0].keyframe.id - 41) <= 2
    assert matched.hypotheses[0].sequence_support == 0.0


def test_one_image_by_itself_changes_nothing(place_map):
    world = World(150)
    matcher = make(place_map)
    drive(matcher, world, range(200))
    before = matcher._track.filter.support.tolist()
    matched = matcher.match_alone(world.view(60, 0.1), "camera", 3)
    assert abs(matched.hypotheses[0].keyframe.id - 61) <= 2
    # It can have no support by images before, and needs none; it must be the clearer.
    assert matched.reason is Reason.ACCEPTED
    unclear = matcher.match_alone(world.view(60, 2.5), "camera", 3)
    assert unclear.reason in (Reason.BELOW_TARGET, Reason.NOT_DISTINCT)
    assert matcher._track.filter.support.tolist() == before


def test_a_standing_robot_gains_no_evidence(place_map):
    """One ambiguous view, seen for a minute, is one witness, with odometry and without."""
    for poses in (True, False):
        world = World(150, repeats=2, seed=3)
        # None is accepted, for an accepted closure makes both halves one place.
        matcher = make(place_map, matching__max_drift=0.0, matching__target_precision=1.0)
        start = drive(matcher, world, range(150), poses=poses)
        assert len(start) == 150
        descriptor, pose = world.view(30), world.pose(30) if poses else None
        stood = [
            matcher.match({"camera": descriptor}, {"camera": t}, t, pose, exclude=True)["camera"]
            for t in range(400 * S, 460 * S, S)
        ]
        masses = [m.hypotheses[0].probability for m in stood]
        assert max(masses) < 0.9
        place_map.clear()


def test_an_empty_map_and_a_young_one(place_map):
    world = World(150)
    matcher = make(place_map)
    matches = drive(matcher, world, range(25))
    assert matches[0].reason is Reason.MAP_EMPTY
    assert {m.reason for m in matches[1:20]} == {Reason.NO_CANDIDATE}
    assert matches[0].new_place_probability == 1.0
    assert accepted(matches) == 0


def test_a_rejected_pair_of_places_is_not_offered_again(place_map):
    """Two halves that look the same, and no odometry that tells them apart; the back end does."""
    world = World(300, repeats=2)
    matcher = make(place_map, matching__max_drift=0.0, publish__ledger=True)
    rejected = {}
    for i in range(300):
        (matched,) = drive(matcher, world, [i], start_s=i)
        if matched.reason is Reason.ACCEPTED:  # place i - 150 looks the same
            match_id = matched.hypotheses[0].keyframe.id
            assert abs(match_id - 1 - (i - 150)) <= 6
            assert not any(
                i - before <= 5 and abs(match_id - other) <= 12
                for before, other in rejected.items()
            )
            rejected[i] = match_id
            found = matcher.verdict(i * S, "camera", match_id, Verdict.REJECTED_BY_GRAPH)
            assert found.query_place == i + 1 and found.log_odds is not None
            assert not len(matcher._track.filter.support)
    assert 0 < len(rejected) < 12


def test_right_places_are_rejected_where_the_robot_is_back_at_them(place_map):
    """On the third lap odometry says so: the rejected match of the second is not offered."""
    world = World(150)
    matcher = make(place_map)
    matches = drive(matcher, world, range(300))
    query = next(i for i in range(240, 300) if matches[i].reason is Reason.ACCEPTED)
    match_id = matches[query].hypotheses[0].keyframe.id
    assert (
        matcher.verdict(query * S, "camera", match_id, Verdict.ACCEPTED).query_place == query + 1
    )
    assert matcher.verdict(query * S, "rear", match_id, Verdict.ACCEPTED) is None
    matcher.verdict(query * S, "camera", match_id, Verdict.REJECTED_BY_GEOMETRY)
    third = drive(matcher, world, range(300, query + 151), start_s=300)
    assert all(abs(h.keyframe.id - match_id) > 12 for h in third[-1].hypotheses)
    assert third[-1].reason is Reason.ACCEPTED  # by the keyframes of the second lap


def test_a_rejection_that_is_repeated_counts_once(place_map):
    """A back end that says it with every image does not keep the robot from closing elsewhere."""
    world = World(150)
    matcher = make(place_map)
    matches = drive(matcher, world, range(200))
    query = next(i for i in range(150, 200) if matches[i].reason is Reason.ACCEPTED)
    rejected = query * S, "camera", matches[query].hypotheses[0].keyframe.id
    later = []
    for i in range(200, 290):
        assert matcher.verdict(*rejected, Verdict.REJECTED_BY_GRAPH) is not None
        later += drive(matcher, world, [i], start_s=i)
    assert accepted(later) > 60


def test_odometry_that_has_died_vouches_for_no_match(place_map):
    """It ends beside a stretch that looks like the one through which the robot drives on."""
    world = World(1000)
    world.features[200:400] = world.features[:200]
    matcher = make(place_map)
    there = [planar_pose(float(p), 0.0, 0.0) for p in range(400)]
    back = [planar_pose(400.0 - k, 3.0, math.pi) for k in range(400)]
    without = 0
    for i, (place, pose) in enumerate(
        [*enumerate(there), *((500 + k, p) for k, p in enumerate(back))]
        + [(p, None) for p in range(205, 290)]
    ):
        descriptor, stamp_ns = world.view(place), i * S
        matched = matcher.match(
            {"camera": descriptor}, {"camera": stamp_ns}, stamp_ns, pose, exclude=True
        )
        id_ = place_map.add(camera="camera", stamp_ns=stamp_ns, pose=pose, descriptor=descriptor)
        matcher.stored({"camera": id_}, {"camera": stamp_ns}, stamp_ns, matched)
        if pose is None:
            assert matched["camera"].reason is not Reason.ACCEPTED, place
            without += 1
    assert without == 85


@pytest.mark.parametrize("temporal", ["none", "sequence", "filter", "both"])
@pytest.mark.parametrize(
    "without", [{0}, {0, 1, 2}, {100}, set(range(0, 300, 50))], ids=["first", "3", "mid", "some"]
)
def test_a_keyframe_without_a_pose_does_not_hide_what_odometry_says(temporal, without):
    world = World(150)
    reasons, closed = [], []
    for missing in (set(), without):
        with PlaceMap.open("", "ab" * 32, DIM, session="one") as place_map:
            matcher = make(place_map, matching__temporal=temporal)
            matches = drive(matcher, world, range(300), without=missing)
        reasons.append([m.reason for m in matches])
        closed.append(accepted(matches))
    conflicts = [r.count(Reason.ODOMETRY_CONFLICT) for r in reasons]
    assert conflicts[0] > 50  # the first lap, when the robot is far from all that it has passed
    assert conflicts[1] == pytest.approx(conflicts[0], abs=5 * len(without))
    assert reasons[1].count(Reason.NEW_PLACE) == pytest.approx(
        reasons[0].count(Reason.NEW_PLACE), abs=15
    )
    assert closed[1] >= closed[0] - 5 * len(without)


def test_what_only_keyframes_without_a_pose_show_is_no_odometry_conflict(place_map):
    """Odometry begins after a lap: it has ruled nothing out."""
    world = World(100)
    matcher = make(place_map)
    first = drive(matcher, world, range(99), without=range(99))
    other = World(100, seed=7)
    elsewhere = drive(matcher, other, range(40), start_s=99)
    assert all(m.reason is not Reason.ODOMETRY_CONFLICT for m in first)
    new = [m.reason for m in elsewhere[5:20]]  # before own keyframes are old enough
    assert Reason.ODOMETRY_CONFLICT not in new


def test_verdicts_of_what_was_not_accepted(place_map):
    world = World(150)
    matcher = make(place_map)
    drive(matcher, world, range(20))
    assert matcher.verdict(3 * S, "camera", 1, Verdict.REJECTED_BY_GRAPH) is None


def test_the_spacing_of_a_map_is_that_of_its_places_whichever_have_gone(monkeypatch):
    rng = np.random.default_rng(0)
    with PlaceMap.open("", "ab" * 32, 4, max_index_mb=1) as place_map:
        monkeypatch.setattr(place_map._index, "most_rows", 100)
        for i in range(300):
            code = rng.integers(0, 256, 64, np.uint8)
            place_map.add(
                camera="c", stamp_ns=i * S, pose=Pose((0.7 * i, 0.0, 0.0)),
                descriptor=Descriptor(code, np.zeros(4, np.float32)),
            )  # fmt: skip
        assert place_map.left_out >= 200
        assert spacing_of(place_map) == pytest.approx(0.7)
