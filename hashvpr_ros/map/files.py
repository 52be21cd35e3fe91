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
from hashvpr_ros.file_io import MB, check_regular

# Files that this process has open. Closing any descriptor of a file drops all POSIX locks that the
# process holds on it, SQLite's included, so a file that is open here must not be opened once more.
_open_here: set[tuple[int, int]] = set()
_registry = threading.Lock()

BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a file
# What each may have at most, in bytes. SQLite begins a log anew at 4 MB where it can.
_MOST_BESIDE = {"-journal": 1000 * MB, "-wal": 1000 * MB, "-shm": 64 * MB}
FILE_MODE = 0o600  # of maps and copies: thumbnails show where a robot was
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
                raise MapError(f"{path}: no longer exists; give the path of a map")
            if not stat.S_ISREG(found.st_mode):
                raise MapError(f"{path}: is not a file; give the path of a map")
            self._key = (found.st_dev, found.st_ino)
            if self._key in _open_here:
                raise MapError(
                    f"{path}: already open in this process; close it first or give another path"
                )
            try:
                # What became a FIFO meanwhile must not be waited for.
                self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as e:
                raise MapError(
                    f"{path}: cannot be read: {e.strerror}; check its permissions"
                ) from e
            try:
                self.locked = _lock(self.fd, shared, path)
                now = status(path)
                if now is None or (now.st_dev, now.st_ino) != self._key:
                    raise MapError(f"{path}: was replaced while it was opened; try again")
                self.mark()
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
                f"{self.path}: was deleted or replaced while it was open; save the map of this "
                "process under another name (~/save_map)"
            )

    def mark(self) -> None:
        """Remember the file as it is now, for `check_unchanged`."""
        self._mark = os.fstat(self.fd)

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that another program has written into.

        Raises:
            MapError: size or times are not those of the last `mark`.
        """
        was, now = self._mark, os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
            was.st_size, was.st_mtime_ns, was.st_ctime_ns,
        ):  # fmt: skip
            return
        # Another owner, mode, name or number of names changes the last of these alone.
        renamed = any(
            getattr(was, name) != getattr(now, name)
            for name in ("st_mode", "st_uid", "st_gid", "st_nlink")
        ) or not self.is_at(self.path)
        if renamed and (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns):
            self._mark = now
            return
        raise MapError(
            f"{self.path}: was changed by another program while it was open, so it is no longer "
            "used; load it again (~/load_map), and replace maps with `mv`, not with `cp`"
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


def good_copy_of(path: str | Path) -> Path:
    """Path of the backup, beside the map."""
    return Path(f"{path}.good")


def wal_of(path: Path) -> Path:
    """The write-ahead log that SQLite keeps beside a file."""
    return Path(f"{path}-wal")


def dated(path: Path, word: str) -> Path:
    """A name beside a file, with the time, for what is to be kept of it."""
    kept = Path(f"{path}.{word}-{time.strftime('%Y%m%d-%H%M%S')}")
    while status(kept) is not None:
        kept = Path(f"{kept}x")
    return kept


def check_beside(path: Path) -> None:
    """Refuse what has the name of a log of SQLite, but is no file, or larger than any log.

    SQLite, and we, would read it without end.

    Raises:
        MapError: there is such a thing.
    """
    for suffix, most in _MOST_BESIDE.items():
        if os.path.lexists(f"{path}{suffix}"):
            try:
                check_regular(f"{path}{suffix}", most, error=MapError)
            except MapError as e:
                reason, _, _ = str(e).partition("; ")
                raise MapError(
                    f"{reason}, so the map beside it cannot be opened; move it away"
                ) from e


def refuse_orphan_log(path: Path) -> None:
    """Refuse to put a new map at a path where the log of a former one is left.

    Raises:
        MapError: there is one, or what has its name is no log.
    """
    check_beside(path)
    for log in (wal_of(path), Path(f"{path}-journal")):
        if size_of(log):
            raise MapError(
                f"{path}: cannot be created beside {log.name}, which belongs to a map that "
                "does not exist; delete that file or give another path"
            )


def refuse_kept_name(path: Path) -> None:
    """Refuse to write under the name of a map's WAL or backup.

    Raises:
        MapError: it is.
    """
    if path.name[1:].endswith(_KEPT_NAMES):  # a map has a name
        raise MapError(
            f"{path}: is the name of a file that a map keeps beside it (NAME.good, or its WAL); "
            "give another path"
        )


def fold_log(path: Path) -> None:
    """Fold the log of a file into it, so that another file can take its place.

    Raises:
        MapError: it cannot be folded, or a program that takes no lock holds the file.
    """
    logs = (wal_of(path), Path(f"{path}-journal"))
    check_beside(path)
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
            f"{path}: its WAL cannot be merged into it ({e}); delete the file and its WAL first"
        ) from e
    if any(log.exists() for log in logs):
        raise MapError(f"{path}: another program has this file open; close it first")


def create(path: Path, mode: int | None = FILE_MODE) -> int:
    """Make a new file; a descriptor to write it.

    Args:
        mode: its permissions; None: as the umask has it.

    Raises:
        OSError: there is one already, or it cannot be made.
    """
    # Never more at first than in the end.
    at_first = 0o666 if mode is None else mode & 0o600
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, at_first)
    if mode is not None:
        with suppress(OSError):  # not every file system has permissions
            os.fchmod(fd, mode)
    return fd


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
    """Remove a map and all that is kept beside it, its backup too, where there are any.

    A map is not begun anew beside the backup of another.

    Raises:
        OSError: one of them cannot be removed.
    """
    for suffix in ("", *_KEPT_NAMES):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
