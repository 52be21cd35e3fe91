"""Map files as the operating system sees them: names, locks, logs beside them, atomic placing.

SQLite finds the log of a file by its name alone. A log that is left from another file of the same
name would be replayed into the new one, so nothing is ever placed beside such a log.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import sqlite3
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hashvpr_ros.errors import MapError

# Files that this process has open. Closing any descriptor of a file drops all POSIX locks that the
# process holds on it, SQLite's included, so a file that is open here must not be opened once more.
_open_here: set[tuple[int, int]] = set()
_registry = threading.Lock()

BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a file
_KEPT_NAMES = (*BESIDE, ".good", ".good.old")


class LockedFile:
    """A file held open under a lock: one writer, or any number of readers.

    A reader may also join a live writer; it is not `locked` then.
    """

    def __init__(self, path: Path, *, shared: bool) -> None:
        """Open and lock.

        Raises:
            MapError: missing, not a regular file, unreadable, or in use by another.
        """
        self.path = path
        with _registry:
            found = status(path)
            if found is None:
                raise MapError(f"{path}: has vanished; give the path of a map")
            if not stat.S_ISREG(found.st_mode):
                raise MapError(f"{path}: is not a file, so it is no map; give the path of a file")
            self._key = (found.st_dev, found.st_ino)
            if self._key in _open_here:
                raise MapError(
                    f"{path}: already open in this process; close it first or give another path"
                )
            try:
                self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                raise MapError(
                    f"{path}: cannot be read: {e.strerror}; check its permissions"
                ) from e
            try:
                self.locked = _lock(self.fd, shared, path)
                now = status(path)
                if now is None or (now.st_dev, now.st_ino) != self._key:
                    raise MapError(f"{path}: was replaced while it was opened; try again")
            except BaseException:
                os.close(self.fd)
                raise
            _open_here.add(self._key)

    def is_at(self, path: Path) -> bool:
        """Whether this file is the one that a path leads to now."""
        now = status(path)
        # Both are asked anew: a union file system gives a file another number when it is written.
        return now is not None and os.path.samestat(now, os.fstat(self.fd))

    def check_in_place(self) -> None:
        """Refuse to go on where others would not find what is written.

        Raises:
            MapError: the file was deleted, or another has its name.
        """
        if not self.is_at(self.path):
            raise MapError(
                f"{self.path}: was deleted or replaced while it was open; save what this process "
                "has of it under another name (~/save_map)"
            )

    def close(self) -> None:
        """Let go of the file; every SQLite connection to it must be closed before."""
        with _registry:
            if self.fd >= 0:
                _open_here.discard(self._key)
                os.close(self.fd)
                self.fd = -1


def _lock(fd: int, shared: bool, path: Path) -> bool:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as e:
        if shared:
            return False
        raise MapError(
            f"{path}: another process has this map open; close that one, or open the map "
            "read-only (mode localization)"
        ) from e
    except OSError as e:
        if shared:
            return False
        raise MapError(
            f"{path}: cannot be locked: {e.strerror}; keep the map on a local disk"
        ) from e
    return True


def resolve(path: str | Path) -> Path:
    """The absolute path without `~` and symbolic links, beside which SQLite keeps its log.

    Raises:
        MapError: what cannot be a path.
    """
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except (OSError, RuntimeError, ValueError) as e:
        raise MapError(f"{str(path)!r}: cannot be the path of a map ({e}); give another") from e


def status(path: Path) -> os.stat_result | None:
    """`os.stat`, or None where there is no such file.

    Raises:
        MapError: a folder on the way must not be read, or the name is too long.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise MapError(f"{path}: cannot be read: {e.strerror}; check the path") from e


def size_of(path: str | Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def wal_of(path: Path) -> Path:
    """The write-ahead log that SQLite keeps beside a file."""
    return Path(f"{path}-wal")


def dated(path: Path, word: str) -> Path:
    """A name beside a file, with the time, for what is to be kept of it."""
    kept = Path(f"{path}.{word}-{time.strftime('%Y%m%d-%H%M%S')}")
    while status(kept) is not None:
        kept = Path(f"{kept}x")
    return kept


def refuse_orphan_log(path: Path) -> None:
    """Refuse to put a new map at a path where the log of a former one is left.

    Raises:
        MapError: there is one.
    """
    for log in (wal_of(path), Path(f"{path}-journal")):
        if size_of(log):
            raise MapError(
                f"{path}: cannot be made beside {log.name}, the log of a map that is gone; "
                "delete the log or give another path"
            )


def refuse_kept_name(path: Path) -> None:
    """Refuse to write under a name that is that of a map's log or of its good copy.

    Raises:
        MapError: it is.
    """
    if path.name[1:].endswith(_KEPT_NAMES):  # a map has a name
        raise MapError(
            f"{path}: is the name of what a map keeps beside it (NAME.good, or its log); "
            "give another path"
        )


def fold_log(path: Path) -> None:
    """Fold the log of a file into it, so that another file can take its place.

    Raises:
        MapError: it cannot be folded, or a program that takes no lock holds the file.
    """
    logs = (wal_of(path), Path(f"{path}-journal"))
    if not any(log.exists() for log in logs):
        return
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=1.0)
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError) as e:
        raise MapError(
            f"{path}: its log cannot be folded in ({e}); delete the file and its log first"
        ) from e
    if any(log.exists() for log in logs):
        raise MapError(f"{path}: another program has this file open; close it first")


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of a file, for what is to take its place."""
    return path.with_name(f".{_label(path)}.{uuid.uuid4().hex}.new")


def _label(path: Path) -> str:
    """The name of a file, so far as there is room for more; a name has at most 255 bytes."""
    return os.fsencode(path.name)[:200].decode(errors="ignore")


def is_read_only(path: Path) -> bool:
    """Whether the file system of a file takes no writes; asked by making a file beside it.

    The flags of a mount do not say it where the kernel has given a broken disk up.
    """
    probe = temporary_beside(path)
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as e:
        return e.errno == errno.EROFS
    discard(probe)
    return False


def temporaries_of(path: Path) -> Iterator[Path]:
    """What `temporary_beside` named and a killed process left."""
    return path.parent.glob(f".{glob.escape(_label(path))}.*.new")


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def put(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name: no moment shows half a file.

    Raises:
        FileExistsError: there is a file and it is not to be overwritten.
        OSError: the folder cannot be written.
    """
    if overwrite:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            # FAT, as on memory sticks, has no links. This leaves a moment for another process
            # to make the same file.
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from e
            os.rename(temporary, path)
        else:
            discard(temporary)  # at once: a process killed before that leaves both names
    with suppress(OSError):  # not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def discard(temporary: Path) -> None:
    """Remove a temporary file and what SQLite keeps beside it, where there are any."""
    for suffix in ("", *BESIDE):
        with suppress(OSError):
            os.unlink(f"{temporary}{suffix}")


def remove(path: Path) -> None:
    """Remove a map and what SQLite keeps beside it, where there are any.

    Raises:
        OSError: one of them cannot be removed.
    """
    for suffix in ("", *BESIDE):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
