"""A rival is a candidate at another place; what counts as another place."""

import numpy as np
import pytest

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.distinct import (
    MIN_OTHER_PLACES,
    NEAR_KEYFRAMES,
    KeyframeArrays,
    RankedCandidates,
    SamePlaces,
    distinctness,
    show_one_place,
)
from hashvpr_ros.types import Candidate, Descriptor, Keyframe, Pose

STEP_NS = 10**9


@pytest.fixture
def place_map():
    with PlaceMap.open("", "ab" * 32, 4, session="one") as opened:
        yield opened


def fill(place_map, count, pose=lambda i: None, step_ns=STEP_NS):
    rng = np.random.default_rng(0)
    for i in range(count):
        descriptor = Descriptor(rng.integers(0, 256, 64, np.uint8), np.ones(4, np.float32) / 2)
        place_map.add(camera="camera", stamp_ns=i * step_ns, pose=pose(i), descriptor=descriptor)


def ranked(place_map, similarities: dict[int, float]) -> RankedCandidates:
    order = sorted(similarities, key=lambda i: -similarities[i])
    return RankedCandidates(
        place_map, [Candidate(i, 50, similarities[i], 0, rank) for rank, i in enumerate(order)]
    )


def of_rank(found: RankedCandidates, rank: int, top_k: int, same: SamePlaces) -> float:
    similarity = found.found[rank].similarity
    return distinctness(found, found.keyframe(rank), similarity, top_k, same)


def test_the_best_candidate_far_away_is_the_rival(place_map):
    fill(place_map, 100)
    found = ranked(place_map, {10: 0.9, 11: 0.89, 20: 0.88, 60: 0.7, 80: 0.6})
    assert of_rank(found, 0, 5, SamePlaces()) == pytest.approx(0.2)
    # A neighbour of the best has the same rival; the rival itself is beaten by the best.
    assert of_rank(found, 1, 5, SamePlaces()) == pytest.approx(0.19)
    assert of_rank(found, 3, 5, SamePlaces()) == pytest.approx(-0.2)


def test_dense_keyframes_are_one_place_by_their_stamps(place_map):
    fill(place_map, 300, step_ns=STEP_NS // 30)
    found = ranked(place_map, {10: 0.9, 100: 0.89, 250: 0.6})
    assert of_rank(found, 0, 3, SamePlaces()) == pytest.approx(0.3)


def test_poses_tell_a_second_lap_from_another_place(place_map):
    fill(place_map, 100, pose=lambda i: Pose((float(i % 50), 0.0, 0.0)))
    found = ranked(place_map, {10: 0.9, 60: 0.89, 30: 0.5})
    assert of_rank(found, 0, 3, SamePlaces()) == pytest.approx(0.4)


def test_poses_of_another_frame_do_not(place_map):
    fill(place_map, 100, pose=lambda i: Pose((0.0, 0.0, 0.0), frame_id="a" if i < 50 else "b"))
    found = ranked(place_map, {10: 0.9, 60: 0.89, 30: 0.5})
    assert of_rank(found, 0, 3, SamePlaces()) == pytest.approx(0.01)


def test_an_accepted_closure_makes_two_stretches_one_place(place_map):
    fill(place_map, 100)
    found = ranked(place_map, {10: 0.9, 60: 0.89, 30: 0.5})
    same = SamePlaces()
    assert of_rank(found, 0, 3, same) == pytest.approx(0.01)
    same.add(63, 12)
    assert same.linked(10, 60) and same.linked(60, 10) and not same.linked(10, 30)
    assert of_rank(found, 0, 3, same) == pytest.approx(0.4)


def test_another_session_is_no_rival(place_map):
    fill(place_map, 50)
    place_map.start_session("two")
    fill(place_map, 50)
    found = ranked(place_map, {10: 0.9, 70: 0.89, 40: 0.5})
    assert of_rank(found, 0, 3, SamePlaces()) == pytest.approx(0.4)


def test_a_small_map_says_nothing_and_a_small_rest_is_not_enough(place_map):
    fill(place_map, 13 + MIN_OTHER_PLACES)
    only = ranked(place_map, {1: 0.9})
    assert of_rank(only, 0, 100, SamePlaces()) == 0.0
    others = dict.fromkeys(range(14, 13 + MIN_OTHER_PLACES), 0.1)
    few = ranked(place_map, {1: 0.9, **others})
    assert of_rank(few, 0, 100, SamePlaces()) == 0.0
    enough = ranked(place_map, {1: 0.9, **others, 13 + MIN_OTHER_PLACES: 0.1})
    assert of_rank(enough, 0, 100, SamePlaces()) == pytest.approx(0.8)


def test_candidates_that_are_all_neighbours_give_the_least_that_is_known(place_map):
    fill(place_map, 100)
    found = ranked(place_map, {10: 0.9, 11: 0.85, 12: 0.8})
    assert of_rank(found, 0, 3, SamePlaces()) == pytest.approx(0.1)


def test_a_small_session_beside_a_large_one_says_nothing(place_map):
    fill(place_map, 6)
    place_map.start_session("large")
    fill(place_map, 50)
    found = ranked(place_map, {1: 0.8, 2: 0.79, **dict.fromkeys(range(10, 50), 0.4)})
    assert of_rank(found, 0, 42, SamePlaces()) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_arrays_and_pairs_agree(seed):
    rng = np.random.default_rng(seed)

    def some_pose():
        if rng.random() < 0.3:
            return None
        frame = str(rng.choice(["map", "odom"]))
        return Pose((float(rng.uniform(0, 30)), float(rng.uniform(0, 30)), 0.0), frame_id=frame)

    keyframes = [
        Keyframe(
            i, str(rng.choice(["a", "b"])), "camera", int(rng.integers(60)) * 10**9, some_pose()
        )
        for i in range(1, 81)
    ]
    same = SamePlaces()
    for a, b in rng.integers(1, 81, (4, 2)).tolist():
        same.add(a, b)
    arrays = KeyframeArrays(keyframes)
    for match in keyframes[::7]:
        expected = [
            k.session == match.session and not show_one_place(match, k, same) for k in keyframes
        ]
        assert arrays.elsewhere(match, NEAR_KEYFRAMES, same).tolist() == expected
