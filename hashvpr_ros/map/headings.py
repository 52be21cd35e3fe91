"""How the cameras of a map are turned in their robot: kept in the file, as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def to_text(headings_rad: Mapping[str, float]) -> str:
    """Headings by camera, radians to the left, as they are kept in the map."""
    return json.dumps(dict(headings_rad), allow_nan=False)


def from_text(text: str) -> dict[str, float]:
    """What `to_text` gave.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"its camera headings are malformed ({e})") from e
    if not all(math.isfinite(value) for value in found.values()):
        raise ValueError("its camera headings are not finite")
    return found
