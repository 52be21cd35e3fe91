"""The SQLite file of a map: opening it safely, writing batches, reading rows.

Durability: the file is in WAL mode with `synchronous=NORMAL`. A batch is one transaction: after
it the batch survives `kill -9` of the process at any moment; a power cut may lose the last batches
but never corrupts the file (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.schema import (
    SCHEMA,
    MapNotFoundError,
    WrongModelError,
    check_header,
    explain,
)
from hashvpr_ros.types import Pose

# Files that this process has open. Closing any descriptor of a file drops all POSIX locks that the
# process holds on it, SQLite's included, so a file that is open here must not be opened once more.
_open_here: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Row:
    """One keyframe as it is written."""

    id: int
    session: str
    camera: str
    stamp_ns: int
    pose: Pose | None
    code: bytes  # 64
    feature: bytes  # little-endian float16 [D]
    thumbnail: bytes | None


def row_crc(
    camera: str,
    stamp_ns: int,
    pose_values: Sequence[float | str | None],
    code: bytes,
    feature: bytes,
    thumbnail: bytes | None,
) -> int:
    """CRC-32 of everything that a keyframe holds, to find flipped bits in stored content."""
    crc = zlib.crc32(camera.encode())
    crc = zlib.crc32(struct.pack("<q", stamp_ns), crc)
    crc = zlib.crc32(repr(tuple(pose_values)).encode(), crc)
    for part in (code, feature, thumbnail or b""):
        crc = zlib.crc32(part, crc)
    return crc


def pose_columns(pose: Pose | None) -> tuple[str | float | None, ...]:
    """frame_id, px, py, pz, qx, qy, qz, qw; all None without a pose."""
    if pose is None:
        return (None,) * 8
    numbers = (*pose.position_m, *pose.orientation)
    return (pose.frame_id, *(float(v) for v in numbers))


def pose_from_columns(values: Sequence) -> Pose | None:
    """The inverse of `pose_columns`."""
    if values[1] is None:
        return None
    return Pose(tuple(values[1:4]), tuple(values[4:8]), values[0] or "")


class Store:
    """One open map file, or a map in memory. Not thread-safe."""

    def __init__(
        self, db: sqlite3.Connection, path: Path | None, fd: int, read_only: bool
    ) -> None:
        self.db = db
        self.path = path
        self.read_only = read_only
        self._fd = fd  # holds the lock
        self._key = _file_key(fd) if fd >= 0 else None
        self._session_ids: dict[str, int] = {}

    @classmethod
    def open(
        cls, path: str | Path, meta: dict[str, str], *, read_only: bool, create: bool
    ) -> Store:
        """Open a map, or create it.

        Args:
            path: of the file; "" for a map in memory.
            meta: what a new map records: fingerprint, feature_dim, model_name. An existing one
                must have the same fingerprint and feature_dim; empty values are not compared.

        Raises:
            MapNotFoundError, WrongModelError, MapError: the file is untouched then.
        """
        if path == "":
            db = _connect(":memory:")
            _create_tables(db, meta)
            return cls(db, None, -1, False)
        path = Path(path).expanduser()
        if not path.exists():
            if read_only or not create:
                raise MapNotFoundError(
                    f"{path}: no such map; build one with mode mapping or slam, or with "
                    "`hashvpr map build`"
                )
            _create_file(path, meta)
        return cls._open_existing(path, meta, read_only)

    @classmethod
    def _open_existing(cls, path: Path, meta: dict[str, str], read_only: bool) -> Store:
        if not path.is_file():
            raise MapError(f"{path}: is not a file, so it is no map; give the path of a file")
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in _open_here:
            raise MapError(f"{path}: already open in this process; close it first")
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise MapError(f"{path}: cannot be read: {e.strerror}; check its permissions") from e
        store = None
        try:
            check_header(fd, path)
            locked = _lock(fd, read_only, path)
            store = cls(_connect_file(path, read_only, locked), path, fd, read_only)
            _open_here.add(_file_key(fd))
            store._check_meta(meta)
            return store
        except sqlite3.Error as e:
            raise explain(e, path, "opening") from e
        finally:
            if store is None:
                os.close(fd)
            elif not store._checked:
                store.close()

    _checked = False

    def _check_meta(self, meta: dict[str, str]) -> None:
        if not self.read_only:
            # Fails now, and not at the first batch, where the folder or the file is read-only.
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("ROLLBACK")
        have = self.meta()
        missing = {"map_id", "fingerprint", "feature_dim"} - have.keys()
        if missing:
            raise MapError(
                f"{self.path}: damaged, it lacks {', '.join(sorted(missing))}; restore a copy"
            )
        for key in ("fingerprint", "feature_dim"):
            want = meta.get(key, "")
            if want and want != have[key]:
                raise WrongModelError(
                    f"{self.path}: made by model {have.get('model_name') or 'unnamed'} "
                    f"({have['fingerprint'][:12]}, {have['feature_dim']}-d), but the engine is "
                    f"{meta.get('model_name') or 'unnamed'} ({meta['fingerprint'][:12]}, "
                    f"{meta.get('feature_dim', '?')}-d); give that model's engine or another map"
                )
        self._session_ids = {n: i for i, n in self.db.execute("SELECT id, name FROM sessions")}
        self._checked = True

    def meta(self) -> dict[str, str]:
        """What the map records of itself."""
        return dict(self.db.execute("SELECT key, value FROM meta"))

    def next_id(self) -> int:
        """The id that no keyframe has ever had."""
        found = self.db.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'keyframes'"
        ).fetchone()
        highest = self.db.execute("SELECT coalesce(max(id), 0) FROM keyframes").fetchone()[0]
        return max(found[0] if found else 0, highest) + 1

    def write(self, rows: Iterable[Row]) -> None:
        """Write a batch in one transaction: all of it or nothing.

        Raises:
            MapError: nothing was written.
        """
        keyframes, features, thumbnails, sessions = [], [], [], dict(self._session_ids)
        new_sessions = []
        for r in rows:
            if r.session not in sessions:
                sessions[r.session] = max(sessions.values(), default=0) + 1
                new_sessions.append((sessions[r.session], r.session))
            pose = pose_columns(r.pose)
            crc = row_crc(r.camera, r.stamp_ns, pose, r.code, r.feature, r.thumbnail)
            keyframes.append((r.id, sessions[r.session], r.camera, r.stamp_ns, *pose, r.code, crc))
            features.append((r.id, r.feature))
            if r.thumbnail is not None:
                thumbnails.append((r.id, r.thumbnail))
        try:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany("INSERT INTO sessions VALUES (?, ?)", new_sessions)
            self.db.executemany(f"INSERT INTO keyframes VALUES ({', '.join('?' * 14)})", keyframes)
            self.db.executemany("INSERT INTO features VALUES (?, ?)", features)
            self.db.executemany("INSERT INTO thumbnails VALUES (?, ?)", thumbnails)
            self.db.execute("COMMIT")
        except sqlite3.Error as e:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise explain(e, self.path or "", "writing keyframes") from e
        self._session_ids = sessions

    def clear(self) -> None:
        """Delete all keyframes and sessions; their ids are not used again."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            for table in ("thumbnails", "features", "keyframes", "sessions"):
                self.db.execute(f"DELETE FROM {table}")
            self.db.execute("COMMIT")
        except sqlite3.Error as e:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise explain(e, self.path or "", "clearing") from e
        self._session_ids = {}

    def codes(self, batch: int = 8192) -> Iterator[list[tuple]]:
        """Batches of (id, session_id, stamp_ns, code), by id."""
        cursor = self.db.execute(
            "SELECT id, session_id, stamp_ns, code FROM keyframes ORDER BY id"
        )
        while rows := cursor.fetchmany(batch):
            yield rows

    def features(self, ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """(id, float16 bytes) of the ids that exist, in no order."""
        marks = ",".join("?" * len(ids))
        return self.db.execute(
            f"SELECT id, feature FROM features WHERE id IN ({marks})", ids
        ).fetchall()

    def keyframes(self, ids: Sequence[int]) -> list[tuple]:
        """(id, session, camera, stamp_ns, 8 pose columns) of the ids that exist, in no order."""
        marks = ",".join("?" * len(ids))
        return self.db.execute(
            "SELECT k.id, s.name, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw "
            f"FROM keyframes k JOIN sessions s ON s.id = session_id WHERE k.id IN ({marks})",
            ids,
        ).fetchall()

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        try:
            self.db.close()
        finally:
            if self._fd >= 0:
                _open_here.discard(self._key)
                os.close(self._fd)
                self._fd = -1


def _file_key(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def _lock(fd: int, read_only: bool, path: Path) -> bool:
    """One writer, or any number of readers; a reader may also join a live writer.

    Returns:
        whether the lock was taken: False for a reader beside a writer.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as e:
        if read_only:
            return False
        raise MapError(
            f"{path}: another process has this map open; close that one, or open the map "
            "read-only (mode localization)"
        ) from e
    return True


def _connect(target: str, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(
        target, uri=uri, isolation_level=None, check_same_thread=False, timeout=1.0
    )
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA synchronous = NORMAL")
    # 16 MiB hold the inner nodes of the trees of some millions of places.
    db.execute("PRAGMA cache_size = -16384")
    return db


def _connect_file(path: Path, read_only: bool, locked: bool) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    if not read_only:
        return _connect(f"{uri}?mode=rw", uri=True)
    wal = Path(f"{path}-wal")
    if locked and not (wal.exists() and wal.stat().st_size > 0):
        # Our lock keeps writers away and nothing waits in a log: SQLite may treat the file as
        # unchangeable, which leaves no file beside it and works in a read-only folder.
        return _connect(f"{uri}?immutable=1", uri=True)
    return _connect(f"{uri}?mode=ro", uri=True)


def _create_tables(db: sqlite3.Connection, meta: dict[str, str]) -> None:
    db.executescript(SCHEMA)
    rows = {"map_id": str(uuid.uuid4()), **meta}
    db.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())


def _create_file(path: Path, meta: dict[str, str]) -> None:
    """Make an empty map under another name and move it into place: no moment shows half a map."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(str(temporary))
        try:
            _create_tables(db, meta)
        finally:
            db.close()
        os.link(temporary, path)  # fails where the file has appeared meanwhile
    except FileExistsError:
        pass
    except sqlite3.Error as e:
        raise explain(e, path, "creating the map") from e
    except OSError as e:
        raise MapError(
            f"{path}: the map cannot be created: {e.strerror}; check the folder's permissions"
        ) from e
    finally:
        temporary.unlink(missing_ok=True)
