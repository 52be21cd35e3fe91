"""From distinctness and sequence support to the probability that a match is right.

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

# For a model without a curve of its own, conservative: 0.5 at a distinctness of 0.15, 0.9 at 0.26.
BUILT_IN_CURVE = (20.0, -3.0)
# The curve of a run, relative to the model's for one image.
RUN_STEEPER = 7.6
RUN_MIDDLE = 0.32
# From this support on a run is a run; below, the curves are mixed.
FULL_SUPPORT = 0.8


@dataclass(frozen=True)
class ProbabilityModel:
    """P(match is right), given how distinct it is and how well the preceding views lead to it."""

    slope: float
    intercept: float
    built_in: bool  # the model brought no curve: conservative values are used

    @classmethod
    def of(cls, curve: tuple[float, float] | None) -> ProbabilityModel:
        """The model's own curve, or the built-in one."""
        return cls(*(curve or BUILT_IN_CURVE), built_in=curve is None)

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
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, log_odds))))
