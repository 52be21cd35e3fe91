"""The log that a killed writer left beside a map, looked at before the next writer folds it in.

SQLite takes any log of the right name for that of the file, also where the file was replaced
meanwhile, and passes over what follows damage in it. Folding a log in cannot be undone.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files
from hashvpr_ros.map.connection import connect_unchanging
from hashvpr_ros.map.log_check import log_problems
from hashvpr_ros.map.maintenance import find_problems
from hashvpr_ros.map.remedy import remedy
from hashvpr_ros.map.schema import SQLITE_ERRORS

_log = logging.getLogger(__name__)


def check_leftover(db: sqlite3.Connection, path: Path, feature_dim: int) -> None:
    """Refuse a log that makes a damaged map of its file; keep a copy of one that is cut short.

    What of a log can be read before the damage is an earlier state of the map, as after a power
    cut, so that a robot goes on from there. Nothing is done where there is no log.

    Args:
        db: reads the map with its log; nobody writes.

    Raises:
        MapError: map and log do not go together, or the copy cannot be written; all is as it was.
    """
    log = files.wal_of(path)
    if not files.size_of(log):
        return
    if problems := find_problems(db, feature_dim):
        raise MapError(
            f"{path}: damaged as read with {log.name}, the log that a killed writer left "
            f"({problems[0]}); {_without(path, feature_dim)}{remedy(path)}"
        )
    for problem in log_problems(path):
        kept = files.dated(log, "damaged")
        try:
            shutil.copyfile(log, kept)
        except OSError as e:
            raise MapError(
                f"{path}: {problem}, and {kept} cannot be written to keep it: {e.strerror}; "
                "free some space or check the folder"
            ) from e
        _log.warning("%s: %s; the log is kept as %s", path, problem, kept)


def _without(path: Path, feature_dim: int) -> str:
    """What is left without the log, where that is sound."""
    try:
        with closing(connect_unchanging(path)) as db:
            if find_problems(db, feature_dim):
                return ""
            (count,) = db.execute("SELECT count(*) FROM keyframes").fetchone()
    except SQLITE_ERRORS:
        return ""
    return (
        f"the file alone is sound, with {count} keyframes: move the log away to go on from there, "
        "or "
    )
