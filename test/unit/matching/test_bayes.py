"""The belief follows who retraces the map, and stays with "new" for who does not."""

import itertools
import math

import numpy as np
import pytest

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.matching.bayes import (
    FilterSettings,
    Motion,
    PlaceFilter,
    likelihood_ratios,
)

PLACES = 100_000
SESSION = 1000  # keyframes
STEP = Motion(0.5, 0.5)  # one keyframe
K = 100


def sessions_of(ids):
    return np.where((ids >= 1) & (ids <= PLACES), (ids - 1) // SESSION, -1)


def new_filter(**settings) -> PlaceFilter:
    return PlaceFilter(sessions_of, FilterSettings(**settings))


def image(rng, *at, peak=0.2):
    """Candidates of an image that looks like these places, among others at random."""
    near = [np.arange(round(p) - 6, round(p) + 7) for p in at]
    ids = np.unique(np.concatenate([*near, rng.integers(1, PLACES + 1, K)]))
    ids = ids[(ids >= 1) & (ids <= PLACES)]
    similarities = rng.normal(0.6, 0.04, len(ids))
    for p in at:
        similarities += peak * np.exp(-(((ids - p) / 4.0) ** 2))
    return ids.astype(np.int32), similarities.astype(np.float32)


def see(places, rng, *at, motion=STEP, weight=None):
    ids, similarities = image(rng, *at)
    places.predict(motion)
    places.update(ids, likelihood_ratios(similarities), weight)
    total = places.belief(places.support).sum() + places.new_place
    assert total == pytest.approx(1.0) and 0.0 <= places.new_place <= 1.0
    return places.best()


def retrace(places, rng, start, count, advance):
    """Drive along the map; the last keyframe seen."""
    for i in range(count):
        see(places, rng, start + i * advance)
    return start + (count - 1) * advance


@pytest.mark.parametrize(("advance", "least"), [(1.0, 0.9), (-1.0, 0.9), (0.6, 0.9), (-1.4, 0.5)])
@pytest.mark.parametrize("motion", [STEP, Motion(1.0, keyframes=1.0)], ids=["odometry", "images"])
def test_a_retrace_is_followed_though_3_of_10_images_mislead(advance, least, motion):
    places, rng = new_filter(), np.random.default_rng(3)
    right, masses = [], []
    for i in range(100):
        at = 20_500 + i * advance
        best = see(
            places, rng, at if rng.random() > 0.3 else rng.integers(1, PLACES), motion=motion
        )
        right.append(abs(best.keyframe_id - at) <= 6)
        masses.append(best.mass)
        assert right[-1] or best.mass < 0.5
    assert np.mean(right[20:]) > 0.95 and np.median(masses[40:]) > least
    here = round(20_500 + 99 * advance)
    assert places.around(np.array([here, 77_000])) == pytest.approx([masses[-1], 0.0], abs=0.2)


def test_to_know_the_direction_tells_more():
    means = []
    for turn_back in (FilterSettings().turn_back, 1.0):
        places, rng, masses = new_filter(turn_back=turn_back), np.random.default_rng(5), []
        for at in range(20_900, 20_800, -1):
            misleads = rng.random() < 0.3
            masses.append(see(places, rng, rng.integers(1, PLACES) if misleads else at).mass)
        means.append(np.mean(masses))
    assert means[0] > means[1] + 0.03


def test_one_image_decides_nothing():
    places = new_filter()
    best = see(places, np.random.default_rng(0), 20_500)
    assert abs(best.keyframe_id - 20_500) <= 3 and best.mass < 0.9


def test_a_new_place_stays_new_though_some_candidate_is_always_best():
    places, rng = new_filter(), np.random.default_rng(1)
    least = 1.0
    for _ in range(200):
        see(places, rng, rng.integers(1, PLACES))
        least = min(least, places.new_place)
    assert least > 0.5 and places.new_place > 0.8
    for _ in range(200):
        see(places, rng)
    assert places.new_place > 0.9


def test_who_leaves_the_map_is_at_a_new_place():
    places, rng = new_filter(), np.random.default_rng(2)
    retrace(places, rng, 20_500, 40, 1.0)
    assert places.new_place < 0.05
    for _ in range(40):
        see(places, rng)
    assert places.new_place > 0.9


def test_a_kidnapped_robot_is_found_again():
    places, rng = new_filter(), np.random.default_rng(4)
    retrace(places, rng, 20_500, 60, 1.0)
    at = retrace(places, rng, 70_500, 40, -1.0)
    best = places.best()
    assert abs(best.keyframe_id - at) <= 5 and best.mass > 0.9


def test_look_alikes_stay_open_until_an_image_tells_them_apart():
    places, rng = new_filter(), np.random.default_rng(6)
    for i in range(40):
        see(places, rng, 20_300 + i, 50_300 + i)
        assert places.best().mass < 0.8
    pair = places.around(np.array([20_339, 50_339]))
    assert pair.sum() > 0.9 and pair.min() > 0.2
    for i in range(40, 50):
        best = see(places, rng, 50_300 + i)
    assert abs(best.keyframe_id - 50_349) <= 3 and best.mass > 0.95


def test_belief_never_passes_into_another_session():
    places, rng = new_filter(), np.random.default_rng(7)
    last = 21 * SESSION
    retrace(places, rng, last - 40, 38, 1.0)
    assert places.best().mass > 0.9
    for _ in range(6):  # on beyond the end of the session, unseen
        places.predict(Motion(2.0, 2.0))
        beyond = places.belief(np.arange(last + 1, last + 100))
        assert beyond.sum() < 1e-3  # what candidates at random left
    assert places.new_place > 0.5


def test_near_keyframes_of_another_session_are_another_place():
    places = new_filter()
    first = SESSION  # of the next is first + 1
    for _ in range(20):
        places.predict(Motion(0.1, 0.0))
        places.update(np.array([first, first + 1]), np.array([30.0, 10.0]), 1.0)
    own = places.belief(np.array([first, first + 1]))
    assert places.best() == (first, pytest.approx(own[0]))
    assert own.min() > 0.0 and places.around(np.array([first + 1]))[0] == pytest.approx(own[1])


def test_what_the_map_does_not_hold_is_not_believed():
    places = new_filter()
    places.predict(STEP)
    places.update(np.array([-5, 0, PLACES + 1, 40]), np.full(4, 30.0))
    assert places.support.tolist() == [40]


def test_the_rate_of_the_images_does_not_matter():
    beliefs = []
    for parts in (1, 5, 200):
        places = new_filter()
        motion = Motion(0.5 / parts, 0.5 / parts)
        ids = np.arange(500, 560)
        for i in range(20):
            ratios = np.where(np.abs(ids - 510 - i) <= 3, 8.0, 0.2)
            for _ in range(parts):
                places.predict(motion)
                places.update(ids, ratios)
        beliefs.append([places.around(np.array([530]))[0], places.new_place])
    assert beliefs[1] == pytest.approx(beliefs[0], abs=0.05)
    assert beliefs[2] == pytest.approx(beliefs[1], abs=0.02)


def test_who_stands_still_is_no_more_certain_of_what_it_sees():
    places, rng = new_filter(), np.random.default_rng(8)
    see(places, rng, 20_500)
    before = places.best()
    for _ in range(50):
        see(places, rng, 20_500, motion=Motion(0.1, 0.0))
    assert places.best() == before
    for _ in range(50):
        see(places, rng, 20_500, motion=Motion(0.0), weight=0.0)
    assert places.best() == before


def test_a_turn_passes_keyframes_too():
    places, rng = new_filter(), np.random.default_rng(9)
    for i in range(40):
        best = see(places, rng, 20_500 + i, motion=Motion(0.5, 0.0, turned_rad=0.35))
    assert abs(best.keyframe_id - 20_539) <= 4 and best.mass > 0.9


def test_support_is_bounded_in_a_large_map():
    places, rng = new_filter(), np.random.default_rng(10)
    largest = 0
    for i in range(100):
        at = [20_100 + i] if i % 20 < 10 else []
        see(places, rng, *at, motion=Motion(0.5, 0.5 if i % 3 else 8.0))
        largest = max(largest, len(places.support))
    assert K < largest <= FilterSettings().max_support
    small = new_filter(max_support=7)
    retrace(small, rng, 20_500, 30, 1.0)
    assert len(small.support) <= 7 and small.best().mass > 0.5


def test_a_jump_in_time_is_a_reset():
    for motion in (
        Motion(-0.1),
        Motion(-0.1, 0.5),
        Motion(1.0, keyframes=1e9),
        Motion(math.nan),
        Motion(1, 1e9),
    ):
        places = new_filter()
        retrace(places, np.random.default_rng(11), 20_500, 20, 1.0)
        places.predict(motion)
        assert places.new_place == 1.0 and places.best() == (0, 0.0)
        assert not len(places.support) and not places.belief(np.array([1, 2])).any()


def test_who_is_parked_for_a_night_knows_by_odometry_where():
    places = new_filter()
    retrace(places, np.random.default_rng(12), 20_500, 40, 1.0)
    before = places.best()
    places.predict(Motion(3e4, 0.0))
    assert places.best() == before


HOSTILE_IDS = [[], [5], [5, 5, 5], [1, PLACES], list(range(1, 40)), [-7, 0, 2**31 - 1]]
HOSTILE = [0.0, -1.0, 1e300, math.inf, -math.inf, math.nan, 1.0]
MOTIONS = [Motion(0.0), Motion(0.0, 0.0), Motion(1.0, -3.0), Motion(1.0, math.nan)]
MOTIONS += [
    Motion(1.0, 1.0, math.nan),
    Motion(1.0, keyframes=16.0),
    Motion(1.0, 15.9),
    Motion(1e-9, 1e-9),
]


def test_hostile_input_leaves_a_belief():
    places = new_filter()
    for ids, value, motion in itertools.product(HOSTILE_IDS, HOSTILE, MOTIONS):
        for weight in (None, 1.0, math.nan, -1.0, 9.0):
            places.predict(motion)
            places.update(np.array(ids, np.int32), np.full(len(ids), value), weight)
            mass = places.belief(places.support)
            assert (mass >= 0.0).all() and (np.diff(places.support) > 0).all()
            assert mass.sum() + places.new_place == pytest.approx(1.0)
            assert 0.0 <= places.best().mass <= 1.0


def test_ratios_and_ids_must_agree():
    with pytest.raises(ValueError, match="ratios"):
        new_filter().update(np.array([1, 2]), np.array([1.0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_m": 0.0},
        {"stay_new": 1.1},
        {"miss_ratio": 0.0},
        {"max_ratio": math.inf},
        {"spread": -0.5},
        {"max_advance": math.inf},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError):
        FilterSettings(**wrong)


def test_ratios_tell_what_stands_out_whatever_the_style_of_the_place():
    rng = np.random.default_rng(13)
    similarities = rng.normal(0.0, 1.0, K)
    similarities[:10] = 4.0
    for scale, offset in ((0.04, 0.6), (0.01, 0.9), (0.2, 0.0)):
        ratios = likelihood_ratios(offset + scale * similarities)
        assert ratios[:10].min() > 10.0 and np.median(ratios[10:]) < 1.0
    # Several places that stand out do not hide one another.
    similarities[10:20] = 4.0
    assert likelihood_ratios(similarities)[:20].min() > 10.0


def test_ratios_of_what_says_nothing():
    for similarities in ([], [0.7], [0.7] * 19, [0.7] * 100, [0.1] * 50, [math.nan] * 100):
        ratios = likelihood_ratios(np.array(similarities, np.float32))
        assert len(ratios) == len(similarities)
        assert (ratios > 0.0).all() and (ratios < 1.0).all()
    mixed = likelihood_ratios(np.array([math.nan, math.inf, -math.inf] + [0.5, 0.6] * 40))
    assert np.isfinite(mixed).all() and mixed[1] > 1.0 and mixed[2] < 1.0
