"""From the evidence for a match to the probability that it is right.

For one image the curve over the distinctness is logistic and comes with the model, fitted on
places that the model had not seen. A run of views that leads to the match judges better: noise
averages out over its views, and look-alike places seldom follow one another in step. Its curve is
the model's, steeper and with its middle at a smaller distinctness. How much was fitted on rendered
courses (seeds 11, 12 and 14 of `simulation.course`, two laps each under other light), and held on
a course and on a real corridor that were not used (docs/architecture.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.matching.runs import TOLERANCE_KEYFRAMES, Position, RunEvidence

# For a model without a curve of its own, conservative: 0.5 at a margin of 0.2, 0.9 at 0.35.
BUILT_IN_CURVE = (15.0, -3.0)
# The curve of a run, relative to the model's for one image.
RUN_STEEPER = 7.6
RUN_MIDDLE = 0.32


@dataclass(frozen=True)
class _RunCurve:
    """Log odds of a match that odometry cannot judge, by lead in views and relative margin.

    The relative margin is the margin over the spread of other places plus a least spread, and at
    most so much. Fitted on real and rendered sets together, checked on each set left out
    (docs/log/decisions.md).
    """

    by_lead: float
    by_margin: float
    intercept: float
    least_spread: float
    most_margin: float


# Of a map of another session: the robot is mostly in it.
_OTHER_SESSION = _RunCurve(0.71, 9.9, -3.9, 0.14, 1.37)
# Of the session that is being recorded: most of its images show new places.
_OWN_SESSION = _RunCurve(0.70, 16.1, -7.3, 0.2, 0.46)
# Within a session the light hardly changes: a place that is less similar than this is another
# one. Log odds per similarity below.
_LEAST_OWN_SCORE, _BELOW_OWN_SCORE = 0.63, 85.0
# The same in relation to how similar consecutive views are.
_OF_NEIGHBOURS = 0.8
# What stands out by its margin only needs this lead, these views on the line, and this advance in
# keyframes; else it is no surer than _UNPROVEN log odds.
_LEAST_LEAD, _LEAST_HITS, _LEAST_ADVANCE = 3, 3, 3
_UNPROVEN = 2.2
# Below this relative margin another place explains the run as well. Log odds per margin below.
_LEAST_MARGIN, _BELOW_MARGIN = 0.08, 60.0
# Similarities are measured in those of the model that the constants were fitted with, by the
# slopes of the two models' probability curves.
_FITTED_SLOPE = 15.8
# Log odds of a match that odometry could have ruled out: factors of the filter's log odds, of the
# support, and of what the run's distinctness, times the model's slope, lies below _ALIKE; and the
# intercept. Fitted by logistic regression on rendered courses (seeds 11, 12 and 22).
BY_ODOMETRY = (0.64, 4.74, 4.0, -0.83)
# A run is not here that is less alike than what odometry forbids, by more than light makes of
# places that are the same: before a robot is back at its start, odometry leaves the places around
# that alone, and the best of them advance with its limit, as if in step. In units of the model's
# slope times the run's distinctness. Chosen, as the factor, on nine rendered drives (seeds 1 to 5
# and 31): right runs lie above -1.2 (99 % of each), such ones, of three drives, between -1.5 and
# -3.1.
_ALIKE = -0.9
_MOST_LOG_ODDS = 7.0  # of the filter: it is no surer than a thousand to one
# From this support on a run is a run; below, the curves are mixed.
FULL_SUPPORT = 0.8


@dataclass(frozen=True)
class ProbabilityModel:
    """P(match is right), given how distinct it is and how well the preceding views lead to it."""

    slope: float
    intercept: float
    built_in: bool  # the model brought no curve: conservative values are used
    calibration: Calibration | None = None  # of the map

    @classmethod
    def of(
        cls, curve: tuple[float, float] | None, calibration: Calibration | None = None
    ) -> ProbabilityModel:
        """The model's own curve, or the built-in one; and what the map says of it."""
        return cls(*(curve or BUILT_IN_CURVE), curve is None, calibration)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        if self.calibration is not None:
            matches = self.calibration.right + self.calibration.wrong
            return f"calibrated on this map ({matches} matches)"
        curve = "a conservative built-in curve" if self.built_in else "the model's curve"
        return f"{curve}, not calibrated on this map (`hashvpr calibrate`)"

    def __call__(
        self, distinctness: float, support: float = 0.0, run_distinctness: float = 0.0
    ) -> float:
        """Probability, 0 to 1.

        Args:
            distinctness: of the match of this image.
            support: share of the preceding views that lead to the match, 0 to 1.
            run_distinctness: mean distinctness of those views and this one.
        """
        alone = self.slope * distinctness + self.intercept
        middle = -RUN_MIDDLE * self.intercept / self.slope
        run = RUN_STEEPER * self.slope * (run_distinctness - middle)
        weight = min(1.0, support / FULL_SUPPORT)
        log_odds = (1.0 - weight) * alone + weight * run
        return _logistic(log_odds)

    def by_odometry(self, mass: float, support: float, run_distinctness: float) -> float:
        """Probability of a match that odometry could have ruled out, and did not, 0 to 1.

        Args:
            mass: belief of the filter that the place is this one, 0 to 1.
            support: share of the preceding views that lead to the match, 0 to 1.
            run_distinctness: mean distinctness of those views and this one.
        """
        odds = max(-_MOST_LOG_ODDS, min(_MOST_LOG_ODDS, _log_odds(mass, 1e-9)))
        by_mass, by_support, by_run, intercept = BY_ODOMETRY
        distinct = min(0.0, self.slope * run_distinctness - _ALIKE)
        return _logistic(by_mass * odds + by_support * support + intercept + by_run * distinct)

    def by_run(
        self,
        run: RunEvidence,
        position: Position,
        *,
        own_session: bool,
        tolerance_keyframes: float = TOLERANCE_KEYFRAMES,
    ) -> float:
        """Probability of a match by its run of views, 0 to 1.

        Args:
            run: how the run bears on the place.
            position: of the match within the place.
            own_session: the place is of the session that is being recorded.
            tolerance_keyframes: by which the position may be wrong.
        """
        unit = self.slope / _FITTED_SLOPE
        curve = _OWN_SESSION if own_session else _OTHER_SESSION
        spread = run.spread * unit + curve.least_spread
        margin = min(run.margin * unit / spread, curve.most_margin)
        log_odds = curve.by_lead * run.lead + curve.by_margin * margin + curve.intercept
        log_odds -= _BELOW_MARGIN * max(0.0, _LEAST_MARGIN - margin)
        if own_session:
            least = max(_LEAST_OWN_SCORE, _OF_NEIGHBOURS * run.neighbours)
            log_odds -= _BELOW_OWN_SCORE * unit * max(0.0, least - run.score)
        if run.lead < _LEAST_LEAD or run.hits < _LEAST_HITS or run.advance < _LEAST_ADVANCE:
            log_odds = min(log_odds, _UNPROVEN)
        probability = _logistic(log_odds) * position.probability(tolerance_keyframes)
        if self.calibration is None:
            return probability
        return _logistic(
            self.calibration.slope * _log_odds(probability, 1e-15) + self.calibration.intercept
        )

    def evidence(self, probability: float) -> float:
        """The log odds that `by_run` made a probability of, before any calibration."""
        log_odds = _log_odds(probability, 1e-15)
        if self.calibration is not None:
            log_odds = (log_odds - self.calibration.intercept) / self.calibration.slope
        return log_odds


def _logistic(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, log_odds))))


def _log_odds(probability: float, least: float) -> float:
    return math.log(max(probability, least) / max(1.0 - probability, least))
