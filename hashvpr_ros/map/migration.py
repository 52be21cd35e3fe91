"""Bringing a map of an older schema up to the present one, when it is opened for writing.

Reading takes older maps as they are.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import checks
from hashvpr_ros.map.good_copy import keep_or_warn
from hashvpr_ros.map.maintenance import find_problems
from hashvpr_ros.map.remedy import remedy
from hashvpr_ros.map.schema import SCHEMA_VERSION, version_of


def check_before(db: sqlite3.Connection, path: Path) -> None:
    """Keep a good copy before a map is brought up to the present schema; refuse a damaged one.

    Schema 1 has no sums over its tables, and sums that are taken of damaged rows would bless the
    damage.

    Raises:
        MapError: the map is of an older schema, and damaged.
    """
    if version_of(db) == SCHEMA_VERSION:
        return
    (dim,) = db.execute("SELECT value FROM meta WHERE key = 'feature_dim'").fetchone()
    if problems := find_problems(db, int(dim)):
        raise MapError(
            f"{path}: damaged ({problems[0]}), so it is not brought up to schema "
            f"{SCHEMA_VERSION}; {remedy(path)}, or open it read-only"
        )
    keep_or_warn(db, path, int(dim))


def migrate(db: sqlite3.Connection) -> None:
    """Bring a map up to the present schema in one transaction; nothing where it is already.

    Raises:
        sqlite3.Error: it cannot be written; it is as it was.
    """
    if version_of(db) == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(checks.TABLE)
        checks.count_all(db)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
