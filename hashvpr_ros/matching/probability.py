"""From similarity and agreement to the probability that a match is right.

The curve over the cosine is logistic and comes with the model, fitted on places that the model had
not seen. Preceding images that agree multiply the odds: a wrong match that the image before also
makes is rarer than a right one that it makes. The factor is small, because consecutive images see
much the same and so err alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# For a model without a curve of its own: 0.5 at a cosine of 0.8, 0.9 at 0.91.
BUILT_IN_CURVE = (20.0, -16.0)
# Odds are multiplied by this for each agreeing image.
AGREEMENT_ODDS = 3.0


@dataclass(frozen=True)
class ProbabilityModel:
    """P(match is right), given the cosine and how many preceding images agree."""

    slope: float
    intercept: float
    built_in: bool  # the model brought no curve: conservative values are used

    @classmethod
    def of(cls, curve: tuple[float, float] | None) -> ProbabilityModel:
        """The model's own curve, or the built-in one."""
        return cls(*(curve or BUILT_IN_CURVE), built_in=curve is None)

    def __call__(self, similarity: float, agreeing: int = 0) -> float:
        """Probability, 0 to 1.

        Args:
            similarity: cosine of the float features.
            agreeing: number of preceding images that point to the same place.
        """
        log_odds = self.slope * similarity + self.intercept
        log_odds += agreeing * math.log(AGREEMENT_ODDS)
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, log_odds))))
