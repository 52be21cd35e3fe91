"""The valid part of a damaged map; the rest is left out, counted and listed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hashvpr_ros.map import integrity
from hashvpr_ros.map.rows import values_crc
from hashvpr_ros.map.schema import DAMAGE, MAX_ID, check_meta
from hashvpr_ros.map.store import Store
from hashvpr_ros.map.verdicts import StoredVerdict

_CHUNK = 512  # ids that are looked for at once
# Questions that may fail. Each page that cannot be read costs some for each keyframe that it held;
# where the root of the table is lost, all fail.
_MOST_FAILURES = 100_000


@dataclass(frozen=True)
class Salvage:
    """The valid part of a map."""

    meta: dict[str, str]
    sessions: dict[int, str]  # names by number
    batches: list[list[tuple]]  # rows of `keyframes` with `crc`, by id, whose content is sound
    verdicts: list[StoredVerdict]
    last_id: int  # the highest that was ever used, as far as is known
    left_out: tuple[str, ...]  # what is not valid, a line each

    def __len__(self) -> int:
        return sum(map(len, self.batches))


def salvage(store: Store) -> Salvage:
    """Find the valid part of a map: every keyframe is read and tested with all of its data.

    Raises:
        DamagedMapError: what made the map or which one it is cannot be read, so that nothing of
            it can be used.
    """
    db = store.db
    path = store.path or Path("map in memory")
    left_out: list[str] = []
    meta = {str(key): str(value) for key, value in _sound(db, "meta", left_out)}
    check_meta(meta, {}, path)
    try:
        expected = integrity.sums(db)
        count, last = expected["keyframes"][0], integrity.last_id(db)
    except DAMAGE:
        left_out.append("the counts of what was written")
        count, last = None, 0
    highest = max(last, _highest(db))
    batches = list(_batches(db, int(meta["feature_dim"]), highest))
    found = sum(map(len, batches))
    if batches:
        highest = max(last, batches[-1][-1][0])
    if count is None:
        left_out.insert(0, f"an unknown number of keyframes; {found} are valid")
    elif count != found:
        left_out.insert(0, f"{count - found} of {count} keyframes")
    sessions = {int(number): str(name) for number, name in _sound(db, "sessions", left_out)}
    for number in sorted({row[1] for batch in batches for row in batch} - sessions.keys()):
        name = f"session {number} of a damaged map"
        while name in sessions.values():
            name += "_"
        sessions[number] = name
        left_out.append(f"the name of session {number}, which is {name!r} now")
    said = [StoredVerdict(*row) for row in _sound(db, "verdicts", left_out)]
    return Salvage(meta, sessions, batches, said, min(highest, MAX_ID), tuple(left_out))


def _sound(db: sqlite3.Connection, table: str, left_out: list[str]) -> list[tuple]:
    """Rows of a small table that match their checksums, as far as the table can be read."""
    rows: list[tuple] = []
    try:
        seen: set[tuple] = set()
        for row in db.execute(f"SELECT * FROM {table}"):
            if row in seen:
                break  # a tree that leads back into itself may have no end
            seen.add(row)
            if values_crc(*row[:-1]) == row[-1]:
                rows.append(row[:-1])
    except DAMAGE:
        left_out.append(f"the rest of table {table}, which cannot be read")
    try:
        count = integrity.sums(db)[table][0]
    except DAMAGE:
        return rows
    if count != len(rows):
        left_out.append(f"{count - len(rows)} of {count} rows of table {table}")
    return rows


def _highest(db: sqlite3.Connection) -> int:
    try:
        (highest,) = db.execute("SELECT coalesce(max(id), 0) FROM keyframes").fetchone()
    except DAMAGE:
        return MAX_ID
    return int(highest)


def _batches(db: sqlite3.Connection, feature_dim: int, last: int) -> Iterator[list[tuple]]:
    """Valid keyframes by id; a range that cannot be read is halved until the rest of it can."""
    failures = 0
    ranges = [(1, last)]  # the next at the end
    while ranges:
        begin, end = ranges.pop()
        try:
            if not db.execute(
                "SELECT 1 FROM keyframes WHERE id BETWEEN ? AND ? LIMIT 1", (begin, end)
            ).fetchone():
                continue
            if end - begin < _CHUNK:
                rows = db.execute(
                    f"SELECT {integrity.ALL_COLUMNS} WHERE k.id BETWEEN ? AND ? ORDER BY k.id",
                    (begin, end),
                )
                if sound := _sound_rows(rows, feature_dim, begin):
                    yield sound
                continue
        except DAMAGE:
            failures += 1
            if begin == end or failures > _MOST_FAILURES:
                continue
        middle = (begin + end) // 2
        ranges += [(middle + 1, end), (begin, middle)]


def _sound_rows(rows: Iterable[tuple], feature_dim: int, begin: int) -> list[tuple]:
    sound: list[tuple] = []
    last = begin - 1
    for *row, feature, jpeg in rows:
        if row[0] <= last:
            break  # a tree that leads back into itself may have no end
        last = row[0]
        if not integrity.problem_of(row, feature, jpeg, feature_dim):
            sound.append(tuple(row))
    return sound
