"""What back ends said of closures, kept in the map: statistics, and samples to calibrate by."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from dataclasses import dataclass

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import integrity


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict on one closure."""

    query_ns: int  # stamp of the query image
    match_id: int
    verdict: str  # value of `types.Verdict`
    log_odds: float | None  # that it is right, uncalibrated; None where calibration does not apply


def check(new: StoredVerdict) -> None:
    """Refuse log odds that are not a number, for which SQLite would store nothing.

    Raises:
        MapError: they are not.
    """
    if new.log_odds is not None and math.isnan(new.log_odds):
        raise MapError(f"the log odds of the closure at {new.query_ns} ns are not a number")


def read(db: sqlite3.Connection) -> list[StoredVerdict]:
    """All verdicts, by query stamp.

    Raises:
        ValueError: one of them is damaged, or missing.
    """
    return [StoredVerdict(*row) for row in integrity.checked_rows(db, "verdicts")]


def count(db: sqlite3.Connection) -> dict[str, int]:
    """How many verdicts of each kind there are.

    Raises:
        ValueError: one of them is damaged, or missing.
    """
    return dict(Counter(verdict.verdict for verdict in read(db)))
