"""What a map knows of how sure its matches are: kept in the file, as text."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """P(match is right) = 1 / (1 + exp(-(slope * x + intercept))) over the log odds x without it.

    It holds for matches that odometry cannot object to, see `matching.probability`.
    """

    slope: float
    intercept: float
    right: int  # matches that it was fitted to
    wrong: int


def to_text(calibration: Calibration) -> str:
    """As it is kept in the map."""
    return json.dumps(dataclasses.asdict(calibration), allow_nan=False)


def from_text(text: str) -> Calibration:
    """What `to_text` gave.

    Raises:
        ValueError: it is something else.
    """
    try:
        values = json.loads(text)
        found = Calibration(
            float(values["slope"]),
            float(values["intercept"]),
            int(values["right"]),
            int(values["wrong"]),
        )
    except (TypeError, KeyError, OverflowError, RecursionError) as e:
        raise ValueError(f"its calibration is malformed ({e})") from e
    if not (0.0 < found.slope < 1e6 and math.isfinite(found.intercept)):
        raise ValueError(f"its calibration has slope {found.slope}, intercept {found.intercept}")
    return found
