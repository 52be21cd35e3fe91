"""Maps that are not open here: whether one is sound, keeping a good copy, and going back to it."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files, good_copy
from hashvpr_ros.map.maintenance import find_problems, placed, write_copy
from hashvpr_ros.map.remedy import good_copy_of
from hashvpr_ros.map.schema import SQLITE_ERRORS, MapNotFoundError, NewerMapError, explain
from hashvpr_ros.map.store import Store


def damage_of(path: str | Path, model: dict[str, str]) -> list[str]:
    """What is wrong with a map, its log included; it is not changed by that.

    Args:
        model: fingerprint, feature_dim and model_name of the engine; {}: any.

    Raises:
        MapNotFoundError, WrongModelError, MapError: it cannot be read at all.
    """
    with closing(Store.open(path, model, read_only=True, create=False)) as store:
        dim = int(store.meta()["feature_dim"])
        return [*store.file_problems(), *find_problems(store.db, dim)]


def keep_good_copy(path: str | Path) -> bool:
    """Keep a good copy of a map before it is changed or replaced; see `good_copy.keep`.

    Returns:
        whether a copy was made; False where there is no such map.

    Raises:
        DamagedMapError, MapError: there is none, and the former copy is as it was.
    """
    path = files.resolve(path)
    if files.status(path) is None:
        return False
    with closing(Store.open(path, {}, read_only=True, create=False)) as store:
        try:
            return good_copy.keep(store.db, path, int(store.meta()["feature_dim"]))
        except SQLITE_ERRORS as e:
            raise explain(e, path, "copying") from e


@dataclass(frozen=True)
class Restored:
    """What became of a damaged map."""

    keyframes: int  # of the copy
    set_aside: Path | None  # the damaged file; None where there was none


def restore(path: str | Path, *, force: bool = False) -> Restored:
    """Put the last good copy in the place of a damaged map, which is kept under another name.

    Args:
        force: also where the map is sound.

    Raises:
        MapNotFoundError: there is no good copy. NewerMapError: map or copy are of a newer
            version. MapError: the copy is damaged, the map is sound, in use or must not be read,
            or the folder cannot be written. Map and copy are as they were.
    """
    path = files.resolve(path)
    good = good_copy_of(path)
    if files.status(good) is None:
        raise MapNotFoundError(
            f"{good}: there is no such file, so no good copy of the map was kept; build it anew"
        )
    there = files.status(path) is not None
    if there and not force and not _problem(path):
        raise MapError(f"{path}: is sound; leave it, or give --force to go back to the copy")
    if problem := _problem(good):
        raise MapError(
            f"{good}: the copy is damaged ({problem}), so that it is not put in the place of the "
            "map"
            if force
            else f"{good}: the copy is damaged, too ({problem}); build the map anew"
        )
    aside = files.dated(path, "damaged")
    try:
        with placed(path, overwrite=True, doing="restoring") as temporary:
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
    except (MapError, *SQLITE_ERRORS) as e:
        return str(e)
    return problems[0] if problems else ""
