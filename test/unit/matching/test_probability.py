"""The probability rises with distinctness and with support, and is always one."""

import itertools

import pytest

from hashvpr_ros.engine.factory import create_engine
from hashvpr_ros.matching.probability import (
    _ALIKE,
    BUILT_IN_CURVE,
    FULL_SUPPORT,
    ProbabilityModel,
)


@pytest.fixture(scope="module")
def lite() -> ProbabilityModel:
    return ProbabilityModel.of(create_engine().info.probability_curve)


def test_a_model_without_a_curve_gets_the_built_in_one_which_is_more_careful(lite):
    built_in = ProbabilityModel.of(None)
    assert built_in.built_in and not lite.built_in
    assert (built_in.slope, built_in.intercept) == BUILT_IN_CURVE
    for distinctness in (0.05, 0.1, 0.2):
        assert built_in(distinctness) < lite(distinctness)


def test_it_rises_with_distinctness_and_stays_within_0_and_1(lite):
    for support in (0.0, 0.5, 1.0):
        values = [lite(d, support, d) for d in (-2.0, -0.1, 0.0, 0.02, 0.04, 0.06, 0.2, 2.0)]
        assert all(a <= b for a, b in itertools.pairwise(values))
        assert 0.0 <= values[0] < 0.1 and 0.9 < values[-1] <= 1.0


def test_no_single_image_of_little_distinctness_is_a_closure(lite):
    assert lite(0.1) < 0.6
    assert lite(0.0) < 0.1


def test_a_run_makes_a_small_distinctness_sure_and_none_at_all_unlikely(lite):
    assert lite(0.07, FULL_SUPPORT, 0.07) > 0.99
    assert lite(0.0, 1.0, 0.0) < 0.05
    assert lite(0.07, 0.1, 0.07) < 0.9


def test_with_odometry_a_run_may_be_alike_elsewhere_but_not_less_alike_here(lite):
    """What is the same elsewhere differs by its light; what is less alike is another place."""
    limit = _ALIKE / lite.slope
    distinct = (0.1, 0.0, 0.99 * limit, 2.5 * limit, 5.0 * limit)
    sure = [lite.over_time(0.99, 0.9, d, by_odometry=True) for d in distinct]
    assert sure[0] == sure[1] == sure[2] > 0.99
    assert sure[2] > sure[3] > sure[4]
    assert sure[3] < 0.9
    alone = [lite.over_time(0.99, 0.9, d, by_odometry=False) for d in (0.1, 0.0, -0.1)]
    assert alone[0] > alone[1] > alone[2]
