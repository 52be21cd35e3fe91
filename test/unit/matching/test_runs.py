"""Runs of views: what speaks for a place, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.runs import View, evidence_for, score_runs

PLACES = 60


def views(path, similarity=0.7, elsewhere=0.3, seed=0):
    """Views along places of the map, the latest first: similarity falls off beside the place."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(1, PLACES + 1)
    made = []
    for place in path:
        near = np.exp(-0.5 * ((numbers - place) / 1.5) ** 2)
        seen = elsewhere + (similarity - elsewhere) * near + rng.normal(0, 0.02, PLACES)
        made.append(View(numbers, seen))
    return made[::-1]


def judge(path, place, own_session=False, **kind):
    """Highest probability of a place over the lengths of the run."""
    present, *before = views(path, **kind)
    model = ProbabilityModel(15.8, -2.4, False)
    best = 0.0
    for scores in score_runs(present, before, True):
        far = np.abs(scores.places - place) > 12
        run = evidence_for(scores, place, far)
        assert run is not None
        position = scores.position(place)
        best = max(best, model.by_run(run, position, own_session=own_session))
    return best


@pytest.mark.parametrize("advance", [-2.0, -1.0, 0.5, 1.0, 2.0])
def test_a_run_along_the_map_is_found_in_both_directions(advance):
    path = 30 + advance * np.arange(-14, 1)
    present, *before = views(path)
    longest = score_runs(present, before, True)[0]
    assert abs(longest.places[np.argmax(longest.scores)] - 30) <= 1
    assert longest.hits.max() == 15
    assert judge(path, 30) > 0.99


def test_a_few_views_are_enough_where_the_place_stands_out():
    assert judge([27, 28, 29, 30], 30) > 0.99
    assert judge([27, 28, 29, 30], 30, similarity=0.36) < 0.9


def test_a_run_that_just_began_counts_without_the_views_before():
    rng = np.random.default_rng(1)
    lost = rng.integers(1, PLACES, 8).tolist()
    path = [*lost, *range(23, 31)]
    present, *before = views(path)
    model = ProbabilityModel(15.8, -2.4, False)
    by_length = {}
    for scores in score_runs(present, before, True):
        run = evidence_for(scores, 30, np.abs(scores.places - 30) > 12)
        by_length[scores.views] = model.by_run(run, scores.position(30), own_session=False)
    assert max(by_length.values()) > 0.99
    assert by_length[16] < max(by_length.values())


def test_scattered_views_are_no_run():
    path = np.random.default_rng(2).integers(1, PLACES, 15).tolist()
    assert judge(path, int(path[-1]), similarity=0.4) < 0.5


def test_two_places_that_look_alike_are_not_distinct():
    path = np.arange(1, 16)
    made = []
    for first in views(path):
        double = np.roll(first.similarities, 30)
        made.append(View(first.places, np.maximum(first.similarities, double)))
    scores = score_runs(made[0], made[1:], True)[0]
    run = evidence_for(scores, 15, np.abs(scores.places - 15) > 12)
    assert run.margin == pytest.approx(0.0, abs=0.03)
    probability = ProbabilityModel(15.8, -2.4, False).by_run(
        run, scores.position(15), own_session=False
    )
    assert probability < 0.9


def test_within_a_session_a_weak_likeness_is_another_place():
    path = np.arange(16, 31)
    assert judge(path, 30, own_session=True, similarity=0.75) > 0.99
    assert judge(path, 30, own_session=True, similarity=0.5) < 0.5
    assert judge(path, 30, own_session=False, similarity=0.5) > 0.99


def test_too_few_other_places_say_nothing():
    present, *before = views(range(20, 31))
    scores = score_runs(present, before, True)[0]
    assert evidence_for(scores, 30, np.abs(scores.places - 30) > 26) is None


def test_the_position_is_the_middle_and_its_spread_says_how_sure_it_is():
    present, *before = views(np.arange(16, 31))
    position = score_runs(present, before, True)[0].position(30)
    assert abs(position.place - 30) <= 1
    assert position.stddev_keyframes < 1.0 and position.probability() > 0.95


def test_the_best_similarity_of_each_place_counts():
    view = View.of(np.array([5, 3, 5, 9]), np.array([0.1, 0.2, 0.4, 0.3]))
    assert view.places.tolist() == [3, 5, 9]
    assert view.similarities.tolist() == [0.2, 0.4, 0.3]
    at = view.at(np.array([5.2, 6.0, 40.0]), around=True)
    assert at.tolist() == [0.4, 0.4, 0.2]
    assert view.at(np.array([6.0]), around=False).tolist() == [0.2]


def test_a_robot_that_stands_still_does_not_advance():
    moving, standing = views(np.arange(16, 31)), views(np.full(15, 30.0))
    assert score_runs(moving[0], moving[1:], True)[0].advance(30) >= 10
    assert score_runs(standing[0], standing[1:], False)[0].advance(30) <= 2


def test_a_similarity_that_is_no_number_counts_as_the_least():
    view = View.of(np.array([3, 5, 9]), np.array([np.nan, 0.2, 0.4]))
    assert view.best == 9 and view.similarities.tolist() == [-1.0, 0.2, 0.4]


def test_places_far_apart_are_looked_up_as_near_ones_are():
    numbers, similarities = np.array([3, 5, 9]), np.array([0.1, 0.4, 0.3])
    near, far = (
        View(numbers, similarities),
        View(np.append(numbers, 10**6), np.append(similarities, 0.1)),
    )
    positions = np.array([2.0, 4.2, 6.0, 9.0, 50.0])
    for around in (False, True):
        assert (
            near.at(positions, around=around).tolist() == far.at(positions, around=around).tolist()
        )
