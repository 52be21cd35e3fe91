"""Connections to the SQLite file of a map."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from hashvpr_ros.map import files
from hashvpr_ros.map.files import LockedFile

# More than any value of a map has. SQLite refuses a larger one before it takes memory for it.
# Python 3.10 cannot set it: there the CHECKs of the tables alone bound values.
_MOST_BYTES = 8_000_000


def connect(target: str) -> sqlite3.Connection:
    """A connection to a URI or to ":memory:", in autocommit mode."""
    db = sqlite3.connect(
        target, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0
    )
    try:
        if sys.version_info >= (3, 11):
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA synchronous = NORMAL")
        # 16 MiB hold the inner nodes of the trees of some millions of places.
        db.execute("PRAGMA cache_size = -16384")
    except BaseException:
        db.close()
        raise
    return db


def connect_unchanging(path: Path) -> sqlite3.Connection:
    """A connection to a file that nobody writes, which leaves no file beside it."""
    return connect(f"{path.as_uri()}?immutable=1")


def connect_reader(file: LockedFile, may_be_written: bool = False) -> sqlite3.Connection:
    """A connection that reads, and leaves no file beside the map where nobody may write it."""
    if file.locked and not may_be_written and not files.size_of(files.wal_of(file.path)):
        # Our lock keeps writers away and nothing waits in a log: SQLite may treat the file as
        # unchangeable, which leaves no file beside it and works in a read-only folder.
        return connect_unchanging(file.path)
    return connect(f"{file.path.as_uri()}?mode=ro")
