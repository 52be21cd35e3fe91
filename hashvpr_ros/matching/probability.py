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

# For a model without a curve of its own, conservative: 0.5 at a distinctness of 0.15, 0.9 at 0.26.
BUILT_IN_CURVE = (20.0, -3.0)
# The curve of a run, relative to the model's for one image.
RUN_STEEPER = 7.6
RUN_MIDDLE = 0.32
# Log odds of a match by the filter and the sequence: factors of the filter's log odds, of the
# support, and of the run's distinctness times the model's slope; and the intercept. Fitted by
# logistic regression on rendered courses (seeds 11 and 12 without odometry; the same and one of
# look-alike halves, seed 22, with), see docs/architecture.md.
BY_IMAGES = (0.71, 4.36, 2.27, -5.81)
# Where odometry says that the robot can be there, other places that look alike count nothing; the
# third factor is of what the run's distinctness lies below _ALIKE.
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

    def over_time(
        self, mass: float, support: float, run_distinctness: float, *, by_odometry: bool
    ) -> float:
        """Probability by the filter and the sequence, 0 to 1.

        Args:
            mass: belief of the filter that the place is this one, 0 to 1.
            support: share of the preceding views that lead to the match, 0 to 1.
            run_distinctness: mean distinctness of those views and this one.
            by_odometry: odometry says that the robot can be there.
        """
        odds = math.log(max(mass, 1e-9) / max(1.0 - mass, 1e-9))
        odds = max(-_MOST_LOG_ODDS, min(_MOST_LOG_ODDS, odds))
        by_mass, by_support, by_run, intercept = BY_ODOMETRY if by_odometry else BY_IMAGES
        distinct = self.slope * run_distinctness
        if by_odometry:
            distinct = min(0.0, distinct - _ALIKE)
        log_odds = by_mass * odds + by_support * support + intercept + by_run * distinct
        if self.calibration is not None and not by_odometry:
            log_odds = self.calibration.slope * log_odds + self.calibration.intercept
        return _logistic(log_odds)

    def evidence(self, probability: float) -> float:
        """The log odds that `over_time` made a probability of, before any calibration."""
        log_odds = math.log(max(probability, 1e-15) / max(1.0 - probability, 1e-15))
        if self.calibration is not None:
            log_odds = (log_odds - self.calibration.intercept) / self.calibration.slope
        return log_odds


def _logistic(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, log_odds))))
