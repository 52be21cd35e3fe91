"""Intervals against what the binomial distribution says of them."""

import math

import numpy as np
import pytest

from hashvpr_ros.evaluation.bootstrap import block_length, interval


def _share(hits):
    return lambda i: float(hits[i].mean())


def _coverage(samples_of, truth, trials=250, **settings):
    random = np.random.default_rng(7)
    held = 0
    for _ in range(trials):
        hits = samples_of(random)
        lower, upper = interval(_share(hits), len(hits), samples=200, **settings)
        held += lower <= truth <= upper
    return held / trials


def test_the_width_is_that_of_the_binomial():
    hits = np.arange(1000) % 10 < 7
    lower, upper = interval(_share(hits), 1000, samples=4000)
    spread = math.sqrt(0.7 * 0.3 / 1000)
    assert lower == pytest.approx(0.7 - 1.96 * spread, abs=0.1 * spread)
    assert upper == pytest.approx(0.7 + 1.96 * spread, abs=0.1 * spread)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_holds_the_true_share_as_often_as_the_level_says(level):
    # 250 trials tell a level of 0.95 to 0.014, one of 0.8 to 0.025.
    held = _coverage(lambda random: random.uniform(size=300) < 0.7, 0.7, level=level)
    assert held == pytest.approx(level, abs=0.05)


def test_neighbours_that_hit_together_need_blocks():
    def drive(random):
        return np.repeat(random.uniform(size=100) < 0.7, 10)  # 100 places, 10 images each

    assert _coverage(drive, 0.7) < 0.6
    # 20 blocks tell the spread a little too small.
    assert _coverage(drive, 0.7, block=50) == pytest.approx(0.92, abs=0.05)


def test_blocks_are_runs_of_neighbours():
    seen = []

    def statistic(i):
        seen.append(i.copy())
        return 0.0

    interval(statistic, 103, samples=200, block=10)
    assert all(i.shape == (103,) and i.dtype == np.int64 for i in seen)
    runs = [run for i in seen for run in np.split(i, range(10, 103, 10))]
    assert all((np.diff(run) == 1).all() for run in runs)
    # Every place where a run can begin is drawn, the first and the last too.
    assert {int(run[0]) for run in runs} == set(range(94))
    assert max(int(i.max()) for i in seen) == 102


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(0).uniform(size=100)
    a = interval(_share(values), 100, seed=5, block=3)
    assert interval(_share(values), 100, seed=5, block=3) == a
    assert interval(_share(values), 100, seed=6, block=3) != a


def test_resamples_without_a_value_are_left_out():
    def of_the_first(i):
        return 1.0 if (i == 0).any() else math.nan

    assert interval(of_the_first, 10) == (1.0, 1.0)
    assert all(math.isnan(v) for v in interval(lambda _: math.nan, 10))


def test_several_numbers_have_the_intervals_of_each_alone():
    hits = np.random.default_rng(0).uniform(size=(50, 2)) < (0.3, 0.7)

    def also_none(i):
        return [*hits[i].mean(0), math.nan, 1.0 if (i == 0).any() else math.nan]

    lower, upper = interval(also_none, 50, samples=200)
    for column in (0, 1):
        alone = interval(_share(hits[:, column]), 50, samples=200)
        assert (lower[column], upper[column]) == alone
    assert math.isnan(lower[2]) and math.isnan(upper[2])
    assert lower[3] == upper[3] == 1.0


def test_too_few_queries_tell_no_spread():
    for n, block in ((0, 1), (1, 1), (9, 5)):
        assert all(math.isnan(v) for v in interval(lambda _: 0.5, n, block=block))
    assert interval(lambda _: 0.5, 10, block=5) == (0.5, 0.5)


@pytest.mark.parametrize(
    "wrong", [{"level": 0.0}, {"level": 95}, {"samples": 0}, {"block": 0}, {"level": math.nan}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError):
        interval(lambda _: 0.5, 10, **wrong)


@pytest.mark.parametrize(
    ("positives", "block"),
    [
        ([{i} for i in range(100)], 1),  # webcams: no query shares a place with another
        ([{i // 5} for i in range(100)], 10),  # each place for 5 queries
        ([set(range(i, i + 5)) for i in range(100)], 10),  # a tolerance of 2 does the same
        ([{i // 40} for i in range(200)], 50),  # a quarter of the queries
        ([{i // 60} for i in range(200)], None),  # longer than a quarter
        ([{0}, {1}, {0}, {1}] * 10, 1),  # the same places, never in a row
        ([set()] * 40, 1),
        ([{1}] * 3, None),
        ([], None),
    ],
)
def test_a_block_spans_twice_the_time_that_a_place_is_in_view(positives, block):
    assert block_length(positives) == block
