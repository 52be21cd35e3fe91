"""What a map holds, counted."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from hashvpr_ros.map.rows import texts


@dataclass(frozen=True)
class SessionInfo:
    """One session of a map."""

    name: str
    keyframes: int
    first_stamp_ns: int
    last_stamp_ns: int


@dataclass(frozen=True)
class MapInfo:
    """What a map holds."""

    path: str  # "" in memory
    map_id: str
    model_name: str
    fingerprint: str
    feature_dim: int
    schema_version: int
    keyframes: int
    left_out: int  # of them, not in the index, which has reached its ceiling
    with_pose: int
    with_thumbnail: int
    cameras: tuple[str, ...]
    sessions: tuple[SessionInfo, ...]
    file_bytes: int
    index: str  # what searches the codes
    index_bytes: int
    uncommitted: int
    read_only: bool
    session: str  # being recorded, "" when read-only
    verdicts: dict[str, int]  # of back ends on closures, by kind


@dataclass(frozen=True)
class Contents:
    """What the tables of a map hold."""

    with_pose: int
    with_thumbnail: int
    cameras: tuple[str, ...]
    sessions: tuple[SessionInfo, ...]


def count_contents(db: sqlite3.Connection) -> Contents:
    """Count what the tables of a map hold.

    Raises:
        sqlite3.Error, TypeError: the file is damaged.
    """
    sessions = db.execute(
        "SELECT s.name, count(*), min(stamp_ns), max(stamp_ns) FROM keyframes k "
        "JOIN sessions s ON s.id = session_id GROUP BY s.id ORDER BY s.id"
    )
    cameras = [r[0] for r in db.execute("SELECT DISTINCT camera FROM keyframes ORDER BY camera")]
    found = [SessionInfo(*row) for row in sessions]
    texts([*cameras, *(session.name for session in found)])
    return Contents(
        with_pose=db.execute("SELECT count(px) FROM keyframes").fetchone()[0],
        with_thumbnail=db.execute("SELECT count(thumbnail_crc) FROM keyframes").fetchone()[0],
        cameras=tuple(cameras),
        sessions=tuple(found),
    )
