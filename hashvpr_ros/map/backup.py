"""Copies of maps: the backup beside a map, restoring it, saving, and placing files.

A backup is written under another name, verified, and only then replaces the former backup.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sqlite3
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files, integrity
from hashvpr_ros.map.connection import connect_unchanging
from hashvpr_ros.map.files import good_copy_of
from hashvpr_ros.map.integrity import find_problems
from hashvpr_ros.map.rows import Row, row_from_columns
from hashvpr_ros.map.salvage import Salvage
from hashvpr_ros.map.schema import (
    DAMAGE,
    SQLITE_ERRORS,
    DamagedMapError,
    MapNotFoundError,
    NewerMapError,
    cannot_write,
    check_tables,
    explain,
    reading,
    remedy,
)
from hashvpr_ros.map.store import Store

_log = logging.getLogger(__name__)
_SALVAGED = "salvaged"  # in `meta`: a mark of what was made of a damaged map


# Placing files


@contextmanager
def placed(
    path: str | Path,
    *,
    overwrite: bool,
    doing: str = "writing",
    mode: int | None = files.FILE_MODE,
) -> Iterator[Path]:
    """An empty file under another name, which becomes `path` where the block ends well.

    Args:
        doing: for errors of SQLite.
        mode: permissions of the file; None: as the umask has it.

    Raises:
        MapError: the target exists and is not to be overwritten, is open, or cannot be written,
            which the errors of SQLite and of the system within the block are taken for.
    """
    path = files.resolve(path)
    found = files.status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise MapError(f"{path}: is not a file, so it is not replaced; give another path")
    if found is not None and not overwrite:
        raise MapError(f"{path}: exists; give another path or allow overwriting")
    # The lock keeps others from opening the old file until the new one stands in its place:
    # their log would then lie beside a file that it does not belong to.
    old = None if found is None else files.LockedFile(path, shared=False)
    temporary = files.temporary_beside(path)
    try:
        if old is None:
            files.refuse_orphan_log(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(files.create(temporary, mode))
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
        raise cannot_write(e, path) from e
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


def copy_with(
    source: sqlite3.Connection,
    waiting: Collection[Row],
    path: str | Path,
    *,
    overwrite: bool,
    mode: int = files.FILE_MODE,
) -> int:
    """Write a complete copy of a map, and what waits to be written into it, atomically.

    Returns:
        how many keyframes it holds.

    Raises:
        MapError: the target exists and is not to be overwritten, is open, cannot be written, or is
            what another map keeps beside it. DamagedMapError: the map is damaged. Nothing is
            written then.
    """
    files.refuse_kept_name(files.resolve(path))
    with placed(path, overwrite=overwrite, doing="writing the copy", mode=mode) as temporary:
        count = write_copy(source, temporary)
        if waiting:
            with closing(Store.unfinished(temporary, Path(path))) as copy:
                _add_waiting(copy, list(waiting), path)
                count = copy.count()
        with closing(connect_unchanging(temporary)) as written:
            if problems := find_problems(written):
                raise DamagedMapError(
                    f"{path}: is not written, for the map is damaged ({problems[0]}); verify the "
                    "map that is open, and restore it"
                )
    return count


def _add_waiting(copy: Store, waiting: list[Row], path: str | Path) -> None:
    """Add rows to a copy; where another program has taken their ids, under the next that are free.

    Raises:
        MapError: they cannot be written.
    """
    try:
        copy.write(waiting)
    except MapError as e:
        if not isinstance(e.__cause__, sqlite3.IntegrityError):
            raise
        with reading(path):
            begin = copy.next_id()
        copy.write(
            dataclasses.replace(row, id=id_) for id_, row in enumerate(waiting, start=begin)
        )
        _log.warning(
            "%s: keyframes %d to %d get the ids from %d on in this copy, because another program "
            "uses their ids", path, waiting[0].id, waiting[-1].id, begin,
        )  # fmt: skip


# The backup


def keep(
    db: sqlite3.Connection,
    path: Path,
    *,
    verify_map: bool = True,
    verify_former: bool = True,
    mode: int = files.FILE_MODE,
) -> bool:
    """Copy a map, verify the copy, and replace the backup by it.

    Nothing is done where the map is empty, or as it was at the last copy. A copy that is not of
    an earlier state of this map is kept as NAME.good.old.

    Args:
        verify_map: whether to check all of a map that is as the copy is. One that is not is
            checked with the copy that is made of it.
        verify_former: whether to read all of a copy that is as the map is, and to make it anew
            where it is damaged.
        mode: permissions of the copy.

    Returns:
        whether a copy was made.

    Raises:
        DamagedMapError: the map is damaged. MapError: it has lost keyframes that the copy holds,
            or the copy could not be written. The former copy is as it was.
    """
    with reading(path, "copying"):
        if db.execute("SELECT 1 FROM keyframes LIMIT 1").fetchone() is None:
            return False
        good = good_copy_of(path)
        of_another = False
        found = files.status(good)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise MapError(f"{good}: is not a file, so no backup can be made; move it away")
        if found is not None and (former := _read_copy(good)) is not None:
            with closing(former):
                if integrity.sums(db) == _sums_of(former):
                    if verify_map:
                        _refuse(find_problems(db), path)
                    if not verify_former or not find_problems(former):
                        return False
                else:
                    of_another = not _goes_on_from(db, former, path)
        for left in files.temporaries_of(good):  # of a process that was killed
            files.discard(left)
        with placed(good, overwrite=True, doing="making the backup", mode=mode) as temporary:
            write_copy(db, temporary)
            with closing(connect_unchanging(temporary)) as copy:
                _refuse(find_problems(copy), path)
            if of_another:
                _log.warning(
                    "%s: is the backup of another map than %s; kept as %s.old", good, path, good
                )
                good.replace(f"{good}.old")
    return True


def _refuse(problems: list[str], path: Path) -> None:
    if problems:
        raise DamagedMapError(f"{path}: damaged ({problems[0]}); {remedy(path)}")


def _read_copy(good: Path) -> sqlite3.Connection | None:
    """A connection to a copy; None where it is none, so that another takes its place."""
    db = connect_unchanging(good)
    try:
        check_tables(db, good)  # of a view, reading may have no end
    except (MapError, *DAMAGE):
        db.close()
        return None
    return db


def _sums_of(copy: sqlite3.Connection) -> object:
    try:
        return integrity.sums(copy)
    except DAMAGE:
        return None


def _goes_on_from(db: sqlite3.Connection, former: sqlite3.Connection, path: Path) -> bool:
    """Whether a map has once been what a copy holds; also where the copy makes no sense.

    Raises:
        MapError: it was, and has lost keyframes since, as by a power cut.
    """
    content = "SELECT id, stamp_ns, code FROM keyframes"
    try:
        identity, last = _identity(former)
        newest = former.execute(f"{content} ORDER BY id DESC LIMIT 1").fetchone()
    except DAMAGE:
        return True
    ours, our_last = _identity(db)
    if identity != ours or newest is None:
        return newest is None
    # Ids are not used again, whatever is deleted.
    if our_last < last:
        raise MapError(
            f"{path}: has lost keyframes: its last id is {our_last}, its backup ends at {last}; "
            f"`hashvpr map restore --force {shlex.quote(str(path))}` restores them, or delete "
            f"{good_copy_of(path)} to go on without them"
        )
    # After a loss, other keyframes have got these ids.
    found = db.execute(f"{content} WHERE id = ?", newest[:1]).fetchone()
    return found in (None, newest)


def _identity(db: sqlite3.Connection) -> tuple[tuple[str, str | None], int]:
    """Which map it is, also among those that were salvaged, and the highest id ever used."""
    meta = dict(integrity.checked_rows(db, "meta"))
    return (meta["map_id"], meta.get(_SALVAGED)), integrity.last_id(db)


# Maps that are not open here


def damage_of(path: str | Path, model: Mapping[str, str]) -> list[str]:
    """What is wrong with a map, its log included; it is not changed by that.

    Args:
        model: fingerprint, feature_dim and model_name of the engine; {}: any.

    Raises:
        MapNotFoundError, WrongModelError, MapError: it cannot be read at all.
    """
    with closing(Store.open(path, model, read_only=True, create=False)) as store:
        problems = [*store.file_problems(), *find_problems(store.db)]
        if not problems:
            store.check_model(model)
        return problems


def keep_good_copy(path: str | Path, mode: int = files.FILE_MODE) -> bool:
    """Make the backup of a map before it is changed or replaced; see `keep`.

    Returns:
        whether a copy was made; False where there is no such map.

    Raises:
        DamagedMapError, MapError: there is none, and the former copy is as it was.
    """
    path = files.resolve(path)
    if files.status(path) is None:
        return False
    with closing(Store.open(path, {}, read_only=True, create=False)) as store:
        return keep(store.db, path, mode=mode)


@dataclass(frozen=True)
class Restored:
    """What became of a damaged map."""

    keyframes: int  # of the copy
    set_aside: Path | None  # the damaged file; None where there was none


def restore(path: str | Path, *, force: bool = False, mode: int = files.FILE_MODE) -> Restored:
    """Restore a damaged map from its backup; the damaged file is kept under another name.

    Args:
        force: also if the map is valid.
        mode: permissions of the restored file.

    Raises:
        MapNotFoundError: there is no backup. NewerMapError: map or backup are of a newer
            version. MapError: the backup is damaged, the map is valid, in use or not readable,
            or the folder cannot be written. Map and backup are unchanged.
    """
    path = files.resolve(path)
    good = good_copy_of(path)
    kept = files.status(good) is not None
    there = files.status(path) is not None
    damage = _problem(path) if there else ""
    if there and not damage and not (force and kept):
        raise MapError(
            f"{path}: is not damaged; leave it"
            + (", or give --force to restore the backup" * kept)
        )
    if not kept:
        raise MapNotFoundError(
            f"{good}: no such file, so the map has no backup; "
            + (
                "`hashvpr map prune --salvage` saves its valid keyframes, or build the map again"
                if there
                else "build the map again"
            )
        )
    if problem := _problem(good):
        raise MapError(
            f"{good}: the backup is damaged, too ({problem}); `hashvpr map prune --salvage` saves "
            "the valid keyframes of the map"
            if damage
            else f"{good}: the backup is damaged ({problem}), so it is not restored; keep the map"
        )
    aside = files.dated(path, "damaged")
    try:
        with placed(path, overwrite=True, doing="restoring", mode=mode) as temporary:
            with closing(Store.open(good, {}, read_only=True, create=False)) as store:
                keyframes = write_copy(store.db, temporary)
            # Which takes time: from the next line on, the log does not lie beside its map.
            files.sync(temporary)
            if there:
                _set_aside(path, aside)
    except BaseException:
        if files.status(aside) is not None:
            _put_back(aside, path)
        raise
    return Restored(keyframes, aside if there else None)


def replace_by_sound(store: Store, found: Salvage, mode: int = files.FILE_MODE) -> tuple[str, ...]:
    """Replace a damaged map by its valid part; the damaged file is kept beside it.

    Ids stay, and the map is the same for whoever knows its `map_id`.

    Args:
        store: the map, locked against all others; its connection is closed then.
        found: the valid part of the map.
        mode: permissions of the new file.

    Returns:
        what was left out, and where the damaged file is.

    Raises:
        MapError: the folder cannot be written; all is as it was.
    """
    path = store.path
    assert path is not None
    feature_dim = int(found.meta["feature_dim"])
    temporary = files.temporary_beside(path)
    try:
        os.close(files.create(temporary, mode))
        # The mark keeps the former good copy, which may have what was left out: see `keep`.
        meta = {**found.meta, _SALVAGED: str(uuid.uuid4())}
        with closing(Store.create(temporary, meta, path)) as new, reading(path):
            for batch in found.batches:
                rows = store.rows([row[0] for row in batch])
                new.write(row_from_columns(row, found.sessions, feature_dim) for row in rows)
            for verdict in found.verdicts:
                new.add_verdict(verdict)
            new.use_ids(found.last_id)
            _refuse(find_problems(new.db), path)
        files.sync(temporary)
        store.db.close()
        aside = files.dated(path, "damaged")
        try:
            _set_aside(path, aside)
            files.put(temporary, path, overwrite=True)
        except BaseException:
            if files.status(aside) is not None:
                _put_back(aside, path)
            raise
    except OSError as e:
        raise cannot_write(e, path) from e
    finally:
        files.discard(temporary)
    return (*found.left_out, f"the damaged file is kept as {aside}")


def _set_aside(path: Path, aside: Path) -> None:
    """Give a map another name, too, and its log that alone: its own name is replaced next."""
    try:
        aside.hardlink_to(path)
    except OSError:  # FAT has no links
        path.rename(aside)
    for suffix in files.BESIDE:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")


def _put_back(aside: Path, path: Path) -> None:
    """Undo `_set_aside`, unless the other map has its place already."""
    if not path.exists():
        aside.rename(path)
    elif not path.samefile(aside):
        return
    for suffix in files.BESIDE:
        with suppress(FileNotFoundError):
            Path(f"{aside}{suffix}").rename(f"{path}{suffix}")
    aside.unlink(missing_ok=True)


def _problem(path: Path) -> str:
    """What is wrong with a map, "" for nothing.

    Raises:
        NewerMapError, MapError: it must not be read, which is no damage.
    """
    files.LockedFile(path, shared=True).close()
    try:
        problems = damage_of(path, {})
    except NewerMapError:
        raise
    except MapError as e:
        return str(e)
    return problems[0] if problems else ""
