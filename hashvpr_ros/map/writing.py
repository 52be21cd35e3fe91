"""Changing the rows of a map's tables, and the sums over them, which must change with them.

All of it happens within a transaction, which `Store` begins and ends. What is replaced or deleted
is tested by its checksum first, so that no write makes damage look sound.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence

from hashvpr_ros.map import integrity, verdicts
from hashvpr_ros.map.rows import (
    KEYFRAME_COLUMNS,
    Row,
    is_sound,
    keyframe_crc,
    pose_columns,
    values_crc,
)
from hashvpr_ros.types import Pose


def set_meta(db: sqlite3.Connection, key: str, value: str | None) -> None:
    """Record something of the map itself; None: no longer.

    Raises:
        ValueError: the map is damaged.
    """
    _replace(db, "meta", "key = ?", (key,), None if value is None else (key, value))


def add_verdict(db: sqlite3.Connection, new: verdicts.StoredVerdict) -> None:
    """Keep what a back end said of a closure, in the place of what was said of it before.

    Raises:
        MapError: see `verdicts.check`. ValueError: the map is damaged.
    """
    verdicts.check(new)
    key = (int(new.query_ns), int(new.match_id))
    # SQLite gives a stored -0.0 back as 0.0, which would not match the checksum: add 0.0.
    log_odds = None if new.log_odds is None else float(new.log_odds) + 0.0
    _replace(db, "verdicts", "query_ns = ? AND match_id = ?", key, (*key, new.verdict, log_odds))


def _replace(
    db: sqlite3.Connection, table: str, where: str, of: Sequence, new: Sequence | None
) -> None:
    """Put a row of a small table in the place of another, or of none; None: delete it."""
    gone = integrity.small_rows(db, table, f"WHERE {where}", *of)
    db.execute(f"DELETE FROM {table} WHERE {where}", of)
    came = []
    if new is not None:
        came = [values_crc(*new)]
        marks = ", ".join("?" * (len(new) + 1))
        db.execute(f"INSERT INTO {table} VALUES ({marks})", (*new, *came))
    integrity.change(db, table, (values_crc(*row) for row in gone), came)


def values_by_table(rows: Iterable[Row], sessions: dict[str, int]) -> dict[str, list[tuple]]:
    """What a batch of keyframes puts into each table; before a transaction, which is short then.

    Args:
        sessions: the number of each by its name; sessions that are new are added.
    """
    values: dict[str, list[tuple]] = {
        "sessions": [], "keyframes": [], "features": [], "thumbnails": [],
    }  # fmt: skip
    for r in rows:
        if r.session not in sessions:
            number = max(sessions.values(), default=0) + 1
            sessions[r.session] = number
            values["sessions"].append((number, r.session, values_crc(number, r.session)))
        row = (
            r.id,
            sessions[r.session],
            r.camera,
            r.stamp_ns,
            *pose_columns(r.pose),
            r.code,
            zlib.crc32(r.feature),
            None if r.thumbnail is None else zlib.crc32(r.thumbnail),
        )
        values["keyframes"].append((*row, keyframe_crc(row)))
        values["features"].append((r.id, r.feature))
        if r.thumbnail is not None:
            values["thumbnails"].append((r.id, r.thumbnail))
    return values


def add_rows(db: sqlite3.Connection, values: Mapping[str, list[tuple]]) -> None:
    """Add what `values_by_table` gives; what has an id already is never replaced.

    Raises:
        sqlite3.IntegrityError: others have taken an id, or the number of a session. ValueError:
            the map is damaged.
    """
    keyframes = values["keyframes"]
    if not keyframes or _is_there(db, keyframes):
        return
    for table, of_table in values.items():
        if of_table:
            marks = ", ".join("?" * len(of_table[0]))
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", of_table)
    for table in ("sessions", "keyframes"):
        integrity.change(db, table, (), (row[-1] for row in values[table]))
    integrity.raise_last_id(db, max(row[0] for row in keyframes))


def _is_there(db: sqlite3.Connection, keyframes: Sequence[tuple]) -> bool:
    """Whether a batch comes again, since its commit was interrupted just after it took effect."""
    crc = "SELECT crc FROM keyframes WHERE id = ?"
    # From the last on: at the first that is not there all is clear.
    return all(db.execute(crc, (row[0],)).fetchone() == (row[-1],) for row in keyframes[::-1])


def set_poses(db: sqlite3.Connection, poses: Mapping[int, Pose]) -> None:
    """Give keyframes other poses.

    Raises:
        ValueError: a keyframe is damaged.
    """
    before, after, changed = [], [], []
    for row in _keyframes(db, list(poses)):
        new = (*row[:4], *pose_columns(poses[row[0]]), *row[12:15])
        crc = keyframe_crc(new)
        before.append(row[-1])
        after.append(crc)
        changed.append((*new[4:12], crc, row[0]))
    if len(changed) != len(poses):
        raise ValueError("a keyframe whose pose is to be changed is missing")
    db.executemany(
        "UPDATE keyframes SET frame_id = ?, px = ?, py = ?, pz = ?, qx = ?, qy = ?, qz = ?, "
        "qw = ?, crc = ? WHERE id = ?",
        changed,
    )
    integrity.change(db, "keyframes", before, after)


def _keyframes(db: sqlite3.Connection, ids: Sequence[int]) -> list[tuple]:
    """Rows of `keyframes` as they were written, `crc` included; of the ids that exist.

    Raises:
        ValueError: one of them is damaged.
    """
    rows: list[tuple] = []
    for begin in range(0, len(ids), 512):  # a statement takes a limited number of parameters
        some = ids[begin : begin + 512]
        marks = ",".join("?" * len(some))
        rows += db.execute(
            f"SELECT {KEYFRAME_COLUMNS}, crc FROM keyframes WHERE id IN ({marks})", some
        )
    for row in rows:
        if not is_sound(row):
            raise ValueError(f"keyframe {row[0]!r} does not match its checksum")
    return rows


def remove(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Delete keyframes, and sessions that are empty then.

    Raises:
        ValueError: one of them is damaged.
    """
    integrity.change(db, "keyframes", [row[-1] for row in _keyframes(db, ids)], ())
    for table in ("thumbnails", "features", "keyframes"):
        db.executemany(f"DELETE FROM {table} WHERE id = ?", ((i,) for i in ids))
    empty = "WHERE id NOT IN (SELECT session_id FROM keyframes)"
    gone = integrity.small_rows(db, "sessions", empty)
    db.execute(f"DELETE FROM sessions {empty}")
    integrity.change(db, "sessions", (values_crc(*row) for row in gone), ())


def clear(db: sqlite3.Connection, last_id: int) -> None:
    """Delete all keyframes, sessions and verdicts, and the calibration, measured on them.

    Ids up to `last_id` are not used again.

    Raises:
        ValueError: the map is damaged.
    """
    for table in ("thumbnails", "features", "keyframes", "sessions", "verdicts"):
        db.execute(f"DELETE FROM {table}")
    for table in ("keyframes", "sessions", "verdicts"):
        integrity.emptied(db, table)
    set_meta(db, "calibration", None)
    # Keyframes that were added but never written have used ids, too.
    integrity.raise_last_id(db, last_id)
