"""The file format of a map: application id, schema version, tables, and checks before opening."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

from hashvpr_ros.errors import MapError

APPLICATION_ID = 0x48565052  # "HVPR"
SCHEMA_VERSION = 1
MAX_ID = 2**31 - 1

# Features and thumbnails have tables of their own: loading all codes at start then reads no page
# of theirs, and reading a hundred features touches no thumbnail.
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE keyframes (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND {MAX_ID}),
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    camera TEXT NOT NULL,
    stamp_ns INTEGER NOT NULL,
    frame_id TEXT,
    px REAL, py REAL, pz REAL, qx REAL, qy REAL, qz REAL, qw REAL,
    code BLOB NOT NULL CHECK (length(code) = 64),
    crc INTEGER NOT NULL
);
CREATE TABLE features (
    id INTEGER PRIMARY KEY REFERENCES keyframes (id),
    feature BLOB NOT NULL
);
CREATE TABLE thumbnails (
    id INTEGER PRIMARY KEY REFERENCES keyframes (id),
    jpeg BLOB NOT NULL
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

_MAGIC = b"SQLite format 3\x00"


class MapNotFoundError(MapError):
    """There is no file at the path."""


class WrongModelError(MapError):
    """The map was made by another model than the one in use."""


def check_header(fd: int, path: Path) -> None:
    """Refuse what is not a readable map of this version, by its first 100 bytes.

    SQLite is not asked: opening a foreign database could create files beside it, and a truncated
    one would be noticed only when a missing page is first needed.

    Raises:
        MapError: foreign, newer, empty or truncated file.
    """
    header = os.pread(fd, 100, 0)
    size = os.fstat(fd).st_size
    if size == 0:
        raise MapError(f"{path}: the file is empty, so it is no map; delete it or give another")
    if header[:16] != _MAGIC[: len(header)] or len(header) < 100:
        raise MapError(f"{path}: not a map of hashvpr_ros (not an SQLite file); give another path")
    application, version = (
        struct.unpack_from(">I", header, 68)[0],
        struct.unpack_from(">I", header, 60)[0],
    )
    if application != APPLICATION_ID:
        raise MapError(
            f"{path}: an SQLite file of another application, not a map of hashvpr_ros; "
            "give another path"
        )
    if version > SCHEMA_VERSION:
        raise MapError(
            f"{path}: made by a newer hashvpr_ros (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update hashvpr_ros"
        )
    page_size = struct.unpack_from(">H", header, 16)[0]
    page_size = 65536 if page_size == 1 else page_size
    pages = struct.unpack_from(">I", header, 28)[0]
    wal = Path(f"{path}-wal")
    has_wal = wal.exists() and wal.stat().st_size > 0  # then newer pages may be there
    if size < page_size * pages and not has_wal:
        raise MapError(
            f"{path}: truncated ({size} bytes of {page_size * pages}); restore it from a copy"
        )


def explain(error: sqlite3.Error, path: str | Path, doing: str) -> MapError:
    """Turn an SQLite error into a sentence with a remedy."""
    text = str(error)
    where = str(path) or "map in memory"
    if "disk is full" in text:
        remedy = "the disk is full; free some space, what is not written yet is kept in memory"
    elif "readonly" in text or "unable to open" in text:
        remedy = f"{text}; check the permissions of the file and its folder"
    elif "locked" in text or "busy" in text:
        remedy = "another process holds it; close that one first"
    elif "malformed" in text or "not a database" in text or "corrupt" in text:
        remedy = f"the file is damaged ({text}); restore it from a copy"
    else:
        remedy = text
    return MapError(f"{where}: {doing} failed: {remedy}")
