"""Work on a whole map: checking all of it, copying it, and placing a new file atomically."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import checks, files, verdicts
from hashvpr_ros.map.rows import matches_crc
from hashvpr_ros.map.schema import SQLITE_ERRORS, explain, version_of

_MOST = 20  # problems that are listed; more tell nothing new


def find_problems(db: sqlite3.Connection, feature_dim: int) -> list[str]:
    """Check all pages and all rows of a map; an empty list means that it is sound.

    Looks at SQLite's structure, that each keyframe has a feature of the right size, that none is
    left over, and at checksums over each keyframe's content and over each table. It does not see
    bits that nobody reads, of free pages and of free space within pages, nor what
    `Store.file_problems` sees.
    """
    problems: list[str] = []
    text_factory = db.text_factory
    # A name that damage has made undecodable must neither end the search nor look like another.
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    try:
        # All that is compared is of one moment, whoever writes meanwhile.
        db.execute("BEGIN")
        for (text,) in db.execute(f"PRAGMA integrity_check({_MOST})"):
            if text != "ok":
                problems.append(f"structure: {text}")
        problems += islice(_wrong_keyframes(db, feature_dim), _MOST)
        problems += _orphans(db)
        problems += islice(verdicts.problems(db), _MOST)
        if version_of(db) >= 2:
            problems += checks.problems(db)
    except SQLITE_ERRORS as e:
        problems.append(f"cannot be read: {e}")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.text_factory = text_factory
    return problems


def _wrong_keyframes(db: sqlite3.Connection, feature_dim: int) -> Iterator[str]:
    last = 0
    for id_, camera, stamp_ns, *pose, code, crc, feature, jpeg in db.execute(
        "SELECT k.id, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, code, crc, feature, "
        "jpeg FROM keyframes k LEFT JOIN features f ON f.id = k.id "
        "LEFT JOIN thumbnails t ON t.id = k.id ORDER BY k.id"
    ):
        if id_ <= last:
            yield f"keyframe {id_}: follows keyframe {last}"
            return  # a tree that leads back into itself may have no end
        last = id_
        if not isinstance(feature, bytes) or len(feature) != 2 * feature_dim:
            yield f"keyframe {id_}: its feature is missing or of a wrong size"
            continue
        sound = matches_crc(crc, camera, stamp_ns, pose, code, feature, jpeg)
        # An empty text has the checksum of no bytes.
        if not sound or not isinstance(jpeg, bytes | None):
            yield f"keyframe {id_}: its content does not match its checksum"


def _orphans(db: sqlite3.Connection) -> Iterator[str]:
    for table, column, parent in (
        ("features", "id", "keyframes"),
        ("thumbnails", "id", "keyframes"),
        ("keyframes", "session_id", "sessions"),
    ):
        (count,) = db.execute(
            f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT id FROM {parent})"
        ).fetchone()
        if count:
            yield f"{count} {table} belong to no {parent[:-1]}"


@contextmanager
def placed(path: str | Path, *, overwrite: bool, doing: str = "writing") -> Iterator[Path]:
    """The name of a temporary file to be written, which becomes `path` where the block ends well.

    Raises:
        MapError: the target exists and is not to be overwritten, is open, or cannot be written,
            which the errors of SQLite and of the system within the block are taken for.
    """
    path = files.resolve(path)
    found = files.status(path)
    if found is not None and (not overwrite or not stat.S_ISREG(found.st_mode)):
        raise MapError(f"{path}: exists; give another path or allow overwriting")
    # The lock keeps others from opening the old file until the new one stands in its place:
    # their log would then lie beside a file that it does not belong to.
    old = None if found is None else files.LockedFile(path, shared=False)
    temporary = files.temporary_beside(path)
    try:
        if old is None:
            files.refuse_orphan_log(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        files.sync(temporary)
        if old is not None:
            files.fold_log(path)
        files.put(temporary, path, overwrite=old is not None)
    except SQLITE_ERRORS as e:
        raise explain(e, path, doing) from e
    except FileExistsError as e:
        raise MapError(f"{path}: exists by now, or its folder is a file; give another path") from e
    except OSError as e:
        raise MapError(f"{path}: cannot be written: {e.strerror}; check the folder") from e
    finally:
        files.discard(temporary)
        if old is not None:
            old.close()


def write_copy(source: sqlite3.Connection, temporary: Path) -> int:
    """Write a complete copy under a temporary name; returns how many keyframes it holds.

    Raises:
        sqlite3.Error: it could not be read or written.
    """
    target = sqlite3.connect(temporary)
    try:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
        (count,) = target.execute("SELECT count(*) FROM keyframes").fetchone()
    finally:
        target.close()
    return int(count)
