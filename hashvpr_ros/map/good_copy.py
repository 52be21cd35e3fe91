"""The last good copy of a map, kept beside it; `restore` brings a damaged map back from it."""

from __future__ import annotations

import logging
import shlex
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


def keep(
    db: sqlite3.Connection, path: Path, feature_dim: int, *, verify_former: bool = True
) -> bool:
    """Copy a map, verify the copy, and put it in the place of the last good one.

    Nothing is done where the map is empty, or as it was at the last copy. A copy that is not of
    an earlier state of this map is kept as NAME.good.old.

    Args:
        verify_former: whether to read all of a copy that is as the map is, and to make it anew
            where it is damaged.

    Returns:
        whether a copy was made.

    Raises:
        DamagedMapError: the map is damaged. MapError: it has lost keyframes that the copy holds,
            or the copy could not be written. The former copy is as it was.
        sqlite3.Error: the map cannot be read.
    """
    if db.execute("SELECT 1 FROM keyframes LIMIT 1").fetchone() is None:
        return False
    good = good_copy_of(path)
    of_another = False
    if files.status(good) is not None:
        # A copy that cannot be read is replaced; damage can take rows and change types, too.
        with suppress(*SQLITE_ERRORS, TypeError), closing(connect_unchanging(good)) as former:
            content = checks.content_of(db)
            if content is None or content != checks.content_of(former):
                of_another = not _goes_on_from(db, former, path)
            elif not verify_former or not find_problems(former, feature_dim):
                return False
    for left in files.temporaries_of(good):  # of a process that was killed
        files.discard(left)
    with placed(good, overwrite=True, doing="keeping a good copy") as temporary:
        write_copy(db, temporary)
        with closing(connect_unchanging(temporary)) as copy:
            problems = find_problems(copy, feature_dim)
        if problems:
            raise DamagedMapError(f"{path}: damaged ({problems[0]}); {remedy(path)}")
        if of_another:
            _log.warning("%s: of another map than %s; kept as %s.old", good, path, good)
            good.replace(f"{good}.old")
    return True


def _goes_on_from(db: sqlite3.Connection, former: sqlite3.Connection, path: Path) -> bool:
    """Whether a map has once been what a copy holds.

    Raises:
        MapError: it was, and has lost keyframes since, as by a power cut.
    """
    (last, *held) = former.execute(
        "SELECT id, stamp_ns, code FROM keyframes ORDER BY id DESC LIMIT 1"
    ).fetchone()
    map_id = "SELECT value FROM meta WHERE key = 'map_id'"
    if db.execute(map_id).fetchone() != former.execute(map_id).fetchone():
        return False
    # Ids are not used again, whatever is deleted.
    reached = "SELECT seq FROM sqlite_sequence WHERE name = 'keyframes'"
    (ours,), (theirs,) = db.execute(reached).fetchone(), former.execute(reached).fetchone()
    if ours < theirs:
        raise MapError(
            f"{path}: has lost keyframes, for it goes up to id {ours} and its good copy to "
            f"{theirs}; `hashvpr map restore --force {shlex.quote(str(path))}` brings them back, "
            f"or delete {good_copy_of(path)} to do without them"
        )
    # After a loss, other keyframes have got these ids.
    found = db.execute("SELECT stamp_ns, code FROM keyframes WHERE id = ?", (last,)).fetchone()
    return found in (None, tuple(held))


def keep_or_warn(db: sqlite3.Connection, path: Path, feature_dim: int) -> None:
    """Do the same before a map is changed, which goes on where no copy can be written."""
    try:
        keep(db, path, feature_dim)
    except DamagedMapError:
        raise
    except MapError as e:
        _log.warning("%s; the former copy stays", e)
