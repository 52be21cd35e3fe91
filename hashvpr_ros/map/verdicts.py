"""What back ends said of loop closures, kept in the map: statistics, and samples to calibrate by.

The table is made with the first verdict, so that maps without any are as they were.
"""

from __future__ import annotations

import math
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.rows import texts

TABLE = """CREATE TABLE verdicts (
    query_ns INTEGER NOT NULL,
    match_id INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    log_odds REAL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (query_ns, match_id)
) WITHOUT ROWID"""


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict on one closure."""

    query_ns: int  # stamp of the query image
    match_id: int
    verdict: str  # value of `types.Verdict`
    log_odds: float | None  # that it is right, uncalibrated; None where calibration does not apply


def has_table(db: sqlite3.Connection) -> bool:
    """Whether the map has verdicts."""
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'").fetchone())


def write(db: sqlite3.Connection, new: StoredVerdict) -> None:
    """Add a verdict, or replace the one on the same closure; within a transaction.

    Raises:
        MapError: its log odds are not a number, for which SQLite would store nothing.
    """
    if new.log_odds is not None and math.isnan(new.log_odds):
        raise MapError(f"the log odds of the closure at {new.query_ns} ns are not a number")
    if not has_table(db):
        db.execute(TABLE)
    row = (new.query_ns, new.match_id, new.verdict, new.log_odds)
    db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", (*row, _crc(*row)))


def read(db: sqlite3.Connection) -> list[StoredVerdict]:
    """All verdicts, by query stamp.

    Raises:
        sqlite3.Error, TypeError: the file is damaged.
    """
    if not has_table(db):
        return []
    rows = db.execute("SELECT query_ns, match_id, verdict, log_odds FROM verdicts").fetchall()
    texts([row[2] for row in rows])
    return [StoredVerdict(*row) for row in rows]


def count(db: sqlite3.Connection) -> dict[str, int]:
    """How many verdicts of each kind there are.

    Raises:
        sqlite3.Error, TypeError: the file is damaged.
    """
    if not has_table(db):
        return {}
    counts = dict(db.execute("SELECT verdict, count(*) FROM verdicts GROUP BY verdict"))
    texts(counts)
    return counts


def problems(db: sqlite3.Connection) -> Iterator[str]:
    """Verdicts that do not match their checksum."""
    if not has_table(db):
        return
    for *row, crc in db.execute("SELECT query_ns, match_id, verdict, log_odds, crc FROM verdicts"):
        try:
            sound = _crc(*row) == crc
        except (TypeError, AttributeError, UnicodeEncodeError, struct.error):
            sound = False  # damage can change the type of a value, too
        if not sound:
            yield f"verdict on the closure at {row[0]} ns does not match its checksum"


def _crc(query_ns: int, match_id: int, verdict: str, log_odds: float | None) -> int:
    numbers = struct.pack("<qq?d", query_ns, match_id, log_odds is None, log_odds or 0.0)
    return zlib.crc32(numbers + verdict.encode())
