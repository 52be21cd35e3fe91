"""The probability rises with distinctness and with support, and is always one."""

import itertools

import pytest

from hashvpr_ros.engine.factory import create_engine
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.matching.probability import (
    _ALIKE,
    BUILT_IN_CURVE,
    FULL_SUPPORT,
    ProbabilityModel,
)
from hashvpr_ros.matching.runs import Position, RunEvidence


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
    assert lite(0.1, FULL_SUPPORT, 0.1) > 0.99
    assert lite(0.0, 1.0, 0.0) < 0.05
    assert lite(0.1, 0.1, 0.1) < 0.9


def test_with_odometry_a_run_may_be_alike_elsewhere_but_not_less_alike_here(lite):
    """What is the same elsewhere differs by its light; what is less alike is another place."""
    limit = _ALIKE / lite.slope
    distinct = (0.1, 0.0, 0.99 * limit, 2.5 * limit, 5.0 * limit)
    sure = [lite.by_odometry(0.99, 0.9, d) for d in distinct]
    assert sure[0] == sure[1] == sure[2] > 0.99
    assert sure[2] > sure[3] > sure[4]
    assert sure[3] < 0.9


def test_a_run_counts_by_its_lead_and_margin_and_less_in_its_own_session(lite):
    sure, unsure = Position(5, 0.4), Position(5, 3.0)

    def judge(position=sure, own_session=False, **evidence):
        run = {"views": 16, "score": 0.8, "margin": 0.2, "spread": 0.1, "lead": 10, "hits": 15}
        run |= {"advance": 10, "neighbours": 0.0}
        return lite.by_run(RunEvidence(**(run | evidence)), position, own_session=own_session)

    assert judge() > 0.99
    assert judge(lead=2) < judge() > judge(margin=0.02)
    assert judge(unsure) < 0.7
    assert judge(own_session=True) < judge()
    assert judge(own_session=True, score=0.5) < 0.1
    assert judge(own_session=True, neighbours=0.95, score=0.7) < judge(own_session=True, score=0.7)


def test_a_calibration_changes_a_run_and_its_evidence_stays_what_it_was(lite):
    run = RunEvidence(16, 0.8, 0.1, 0.1, 6, 12, 3, 0.0)
    position = Position(5, 0.4)
    calibrated = ProbabilityModel(
        lite.slope, lite.intercept, False, Calibration(0.5, -1.0, 60, 60)
    )
    before = lite.by_run(run, position, own_session=False)
    after = calibrated.by_run(run, position, own_session=False)
    assert after < before
    assert calibrated.evidence(after) == pytest.approx(lite.evidence(before))


@pytest.mark.parametrize("lack", [{"lead": 2}, {"hits": 2}, {"advance": 1}])
def test_a_margin_is_no_closure_without_a_lead_hits_and_an_advance(lite, lack):
    """One image, a robot that stands still, and two sessions that both fit are not enough."""
    run = {"views": 16, "score": 0.9, "margin": 0.5, "spread": 0.05, "lead": 12, "hits": 15}
    run |= {"advance": 3, "neighbours": 0.0}
    assert lite.by_run(RunEvidence(**run), Position(5, 0.4), own_session=False) > 0.99
    run |= lack
    assert lite.by_run(RunEvidence(**run), Position(5, 0.4), own_session=False) < 0.95
