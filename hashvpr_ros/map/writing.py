"""Changing the rows of a map's tables, and the sums over them, which must change with them.

All of it happens within a transaction, which `Store` begins and ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import checks, verdicts
from hashvpr_ros.map.remedy import remedy
from hashvpr_ros.map.rows import Row, matches_crc, pose_columns, row_crc
from hashvpr_ros.types import Pose


def set_meta(db: sqlite3.Connection, key: str, value: str | None) -> None:
    """Record something of the map itself; None: no longer."""
    if value is None:
        db.execute("DELETE FROM meta WHERE key = ?", (key,))
    else:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    checks.count_anew(db, "meta")


def add_verdict(db: sqlite3.Connection, new: verdicts.StoredVerdict) -> None:
    """Keep what a back end said of a closure; see `verdicts.write`."""
    before = checks.rows(db, "verdicts", [new.query_ns])
    verdicts.write(db, new)
    checks.change(db, "verdicts", before, checks.rows(db, "verdicts", [new.query_ns]))


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
            sessions[r.session] = max(sessions.values(), default=0) + 1
            values["sessions"].append((sessions[r.session], r.session))
        pose = pose_columns(r.pose)
        crc = row_crc(r.camera, r.stamp_ns, pose, r.code, r.feature, r.thumbnail)
        values["keyframes"].append(
            (r.id, sessions[r.session], r.camera, r.stamp_ns, *pose, r.code, crc)
        )
        values["features"].append((r.id, r.feature))
        if r.thumbnail is not None:
            values["thumbnails"].append((r.id, r.thumbnail))
    return values


def add_rows(db: sqlite3.Connection, values: Mapping[str, list[tuple]]) -> None:
    """Add what `values_by_table` gives."""
    keyframes = values["keyframes"]
    # A batch may come again where its commit was interrupted just after it took effect.
    before = checks.rows(db, "keyframes", [k[0] for k in keyframes])
    for table, of_table in values.items():
        if of_table:
            marks = ", ".join("?" * len(of_table[0]))
            db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", of_table)
    checks.change(db, "keyframes", before, [(k[0], k[1], k[-1]) for k in keyframes])
    checks.count_anew(db, "sqlite_sequence")
    if values["sessions"]:
        checks.count_anew(db, "sessions")


def set_poses(db: sqlite3.Connection, poses: Mapping[int, Pose], path: Path | None) -> None:
    """Give keyframes other poses.

    Args:
        path: of the map, for errors.

    Raises:
        MapError: a keyframe is damaged.
    """
    marks = ",".join("?" * len(poses))
    held = db.execute(
        "SELECT k.id, k.session_id, k.camera, k.stamp_ns, k.frame_id, k.px, k.py, k.pz, "
        "k.qx, k.qy, k.qz, k.qw, k.code, k.crc, f.feature, t.jpeg FROM keyframes k "
        "JOIN features f USING (id) LEFT JOIN thumbnails t USING (id) "
        f"WHERE k.id IN ({marks})",
        list(poses),
    ).fetchall()
    if lost := poses.keys() - {id_ for id_, *_ in held}:
        raise MapError(
            f"{path}: keyframe {min(lost)} has no feature, so its pose is left; "
            f"{remedy(path or '')}"
        )
    before, after, changed = [], [], []
    for id_, session, camera, stamp_ns, *pose, code, crc, feature, jpeg in held:
        # A checksum that is made anew must not bless damage.
        if not matches_crc(crc, camera, stamp_ns, pose, code, feature, jpeg):
            raise MapError(
                f"{path}: keyframe {id_} does not match its checksum, so its pose is left; "
                f"{remedy(path or '')}"
            )
        new = pose_columns(poses[id_])
        new_crc = row_crc(camera, stamp_ns, new, code, feature, jpeg)
        before.append((id_, session, crc))
        after.append((id_, session, new_crc))
        changed.append((*new, new_crc, id_))
    db.executemany(
        "UPDATE keyframes SET frame_id = ?, px = ?, py = ?, pz = ?, qx = ?, qy = ?, qz = ?, "
        "qw = ?, crc = ? WHERE id = ?",
        changed,
    )
    checks.change(db, "keyframes", before, after)


def remove(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Delete keyframes, and sessions that are empty then."""
    checks.change(db, "keyframes", checks.rows(db, "keyframes", ids), ())
    for table in ("thumbnails", "features", "keyframes"):
        db.executemany(f"DELETE FROM {table} WHERE id = ?", ((i,) for i in ids))
    db.execute("DELETE FROM sessions WHERE id NOT IN (SELECT session_id FROM keyframes)")
    checks.count_anew(db, "sessions")


def clear(db: sqlite3.Connection, last_id: int) -> None:
    """Delete all keyframes, sessions and verdicts, and the calibration, measured on them.

    Ids up to `last_id` are not used again.
    """
    for table in ("thumbnails", "features", "keyframes", "sessions", "sqlite_sequence"):
        db.execute(f"DELETE FROM {table}")
    if verdicts.has_table(db):
        db.execute("DELETE FROM verdicts")
    db.execute("DELETE FROM meta WHERE key = 'calibration'")
    # Keyframes that were added but never written have used ids, too.
    db.execute("INSERT INTO sqlite_sequence VALUES ('keyframes', ?)", (last_id,))
    checks.count_all(db)
