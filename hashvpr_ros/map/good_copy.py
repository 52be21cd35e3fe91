"""The last good copy of a map, kept beside it; `restore` brings a damaged map back from it."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import checks, files
from hashvpr_ros.map.connection import connect_unchanging
from hashvpr_ros.map.maintenance import find_problems, placed, write_copy
from hashvpr_ros.map.remedy import good_copy_of, remedy
from hashvpr_ros.map.schema import SQLITE_ERRORS

_log = logging.getLogger(__name__)


class DamagedMapError(MapError):
    """A map was found damaged when it was to be copied."""


def keep(db: sqlite3.Connection, path: Path, feature_dim: int) -> bool:
    """Copy a map, verify the copy, and put it in the place of the last good one.

    Nothing is done where the map is empty, or as it was at the last copy.

    Returns:
        whether a copy was made.

    Raises:
        DamagedMapError: the map is damaged. MapError: the copy could not be written. The former
            copy is as it was.
        sqlite3.Error: the map cannot be read.
    """
    if db.execute("SELECT 1 FROM keyframes LIMIT 1").fetchone() is None:
        return False
    good = good_copy_of(path)
    content = checks.content_of(db)
    if content is not None and content == _content(good):
        return False
    for left in files.temporaries_of(good):  # of a process that was killed
        files.discard(left)
    with placed(good, overwrite=True, doing="keeping a good copy") as temporary:
        write_copy(db, temporary)
        with closing(connect_unchanging(temporary)) as copy:
            problems = find_problems(copy, feature_dim)
        if problems:
            raise DamagedMapError(f"{path}: damaged ({problems[0]}); {remedy(path)}")
    return True


def keep_or_warn(db: sqlite3.Connection, path: Path, feature_dim: int) -> None:
    """Do the same before a map is changed, which goes on where no copy can be written."""
    try:
        keep(db, path, feature_dim)
    except DamagedMapError:
        raise
    except MapError as e:
        _log.warning("%s; the former copy stays", e)


def _content(good: Path) -> list[tuple] | None:
    if files.status(good) is None:
        return None
    with (
        suppress(*SQLITE_ERRORS),
        closing(connect_unchanging(good)) as db,
    ):
        return checks.content_of(db)
    return None
