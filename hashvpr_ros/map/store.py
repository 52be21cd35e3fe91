"""The SQLite file of a map: opening it safely, changing it in transactions, reading rows.

Durability: the file is in WAL mode with `synchronous=NORMAL`. A batch is one transaction: after
it the batch survives `kill -9` of the process at any moment; a power cut may lose the last batches
but never corrupts the file (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import checks, files, verdicts, writing
from hashvpr_ros.map.connection import connect, connect_reader
from hashvpr_ros.map.files import LockedFile
from hashvpr_ros.map.leftover_log import check_leftover
from hashvpr_ros.map.log_check import log_problems
from hashvpr_ros.map.migration import check_before, migrate
from hashvpr_ros.map.remedy import good_copy_of, remedy
from hashvpr_ros.map.rows import Row
from hashvpr_ros.map.schema import (
    SCHEMA,
    SQLITE_ERRORS,
    MapNotFoundError,
    check_header,
    check_meta,
    check_tables,
    explain,
    header_problems,
)
from hashvpr_ros.types import Pose


class Store:
    """One open map file, or a map in memory. Not thread-safe."""

    def __init__(self, db: sqlite3.Connection, file: LockedFile | None, read_only: bool) -> None:
        self.db = db
        self.path = None if file is None else file.path
        self.read_only = read_only
        self._file = file
        self._session_ids = self.sessions()

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
            if not create:
                raise MapNotFoundError("a map in memory is always new; give the path of a file")
            db = connect(":memory:")
            _create_tables(db, meta)
            return cls(db, None, False)
        path = files.resolve(path)
        if files.status(path) is None:
            if (good := good_copy_of(path)).is_file():
                raise MapNotFoundError(
                    f"{path}: no such map, but {remedy(path)}; move {good.name} away to begin anew"
                )
            if read_only or not create:
                raise MapNotFoundError(
                    f"{path}: no such map; build one with mode mapping or slam, or with "
                    "`hashvpr map build`"
                )
            _create_file(path, meta)
        file = LockedFile(path, shared=read_only)
        try:
            return cls._open_locked(file, meta, read_only)
        except BaseException as e:
            file.close()
            if isinstance(e, SQLITE_ERRORS):
                raise explain(e, path, "opening") from e
            raise

    @classmethod
    def _open_locked(cls, file: LockedFile, meta: dict[str, str], read_only: bool) -> Store:
        check_header(file.fd, file.path)
        db = connect_reader(file)
        try:
            check_tables(db, file.path)
            check_meta(dict(db.execute("SELECT key, value FROM meta")), meta, file.path)
            return cls(db, file, read_only)
        except BaseException:
            db.close()
            raise

    @classmethod
    def create(cls, temporary: Path, meta: dict[str, str], path: Path) -> Store:
        """Make an empty map under a temporary name that nobody else uses, to be filled quickly.

        It has no log and no lock, and survives neither a power cut nor an error: write it within
        `maintenance.placed`, which throws it away then.

        Args:
            meta: what the map records of itself; it gets a new `map_id`.
            path: the name that it will have, for errors.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        db = connect(temporary.as_uri())
        try:
            # A VACUUM would hold the whole map in a journal in memory.
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            _create_tables(db, meta)
            store = cls(db, None, False)
        except BaseException:
            db.close()
            raise
        store.path = path
        return store

    @classmethod
    def unfinished(cls, temporary: Path, path: Path) -> Store:
        """Open a copy under its temporary name to add to it; the rest is as for `create`."""
        store = cls(connect(temporary.as_uri()), None, False)
        store.path = path
        return store

    def start_writing(self) -> None:
        """Make a store that is not read-only ready for writing.

        Opening reads through a connection that cannot write, so that a file which turns out to be
        foreign or damaged stays untouched.

        Raises:
            MapError: the file or its folder cannot be written, or a log that is left does not go
                with the file.
        """
        if self._file is None:
            return
        check_leftover(self.db, self._file.path, int(self.meta()["feature_dim"]))
        check_before(self.db, self._file.path)
        self.db.close()
        try:
            self.db = connect(f"{self._file.path.as_uri()}?mode=rw")
            self.db.execute("PRAGMA journal_mode = WAL")
            # Fails now, and not at the first batch, where file or folder are read-only.
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("ROLLBACK")
            migrate(self.db)
        except SQLITE_ERRORS as e:
            raise explain(e, self._file.path, "opening for writing") from e

    def reader(self) -> sqlite3.Connection | None:
        """Another connection for long reads, which sees what is committed; None in memory.

        It must be closed before the store.

        Raises:
            MapError: the file was deleted or replaced.
        """
        if self._file is None:
            return None
        self._file.check_in_place()
        return connect_reader(self._file, may_be_written=not self.read_only)

    def is_at(self, path: Path) -> bool:
        """Whether this map is the file that a path leads to now."""
        return self._file is not None and self._file.is_at(path)

    def file_problems(self) -> list[str]:
        """Damage in the file and its log that is not seen through a connection."""
        if self._file is None or not self._file.locked:
            return []  # a live writer changes both meanwhile
        problems = list(header_problems(os.pread(self._file.fd, 100, 0)))
        if self.read_only:  # a writer has begun the log anew
            problems += log_problems(self._file.path)
        return problems

    def meta(self) -> dict[str, str]:
        """What the map records of itself."""
        return dict(self.db.execute("SELECT key, value FROM meta"))

    def set_meta(self, key: str, value: str | None) -> None:
        """Record something of the map itself; None: no longer.

        Raises:
            MapError: it was not written.
        """
        with self._transaction("writing what the map records of itself"):
            writing.set_meta(self.db, key, value)

    def add_verdict(self, new: verdicts.StoredVerdict) -> None:
        """Keep what a back end said of a closure.

        Raises:
            MapError: it was not written.
        """
        with self._transaction("writing a verdict"):
            writing.add_verdict(self.db, new)

    def next_id(self) -> int:
        """The id that no keyframe has ever had.

        Raises:
            TypeError: what is kept of it is damaged.
        """
        found = self.db.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'keyframes'"
        ).fetchone()
        highest = self.db.execute("SELECT coalesce(max(id), 0) FROM keyframes").fetchone()[0]
        used = found[0] if found else 0
        if not isinstance(used, int):
            raise TypeError(f"the highest id is {used!r}")
        return max(used, highest) + 1

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        if self._file is not None:
            self._file.check_in_place()
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")
        except BaseException as e:
            if self.db.in_transaction:
                with suppress(*SQLITE_ERRORS):
                    self.db.execute("ROLLBACK")
            if isinstance(e, SQLITE_ERRORS):
                raise explain(e, self.path or "", doing) from e
            raise

    def write(self, rows: Iterable[Row]) -> None:
        """Write a batch in one transaction: all of it or nothing.

        Raises:
            MapError: nothing was written.
        """
        sessions = dict(self._session_ids)
        values = writing.values_by_table(rows, sessions)
        with self._transaction("writing keyframes"):
            writing.add_rows(self.db, values)
        self._session_ids = sessions

    def set_poses(self, poses: Mapping[int, Pose]) -> None:
        """Give keyframes other poses.

        Raises:
            MapError: nothing was changed: a keyframe is damaged, or it cannot be written.
        """
        with self._transaction("writing poses"):
            writing.set_poses(self.db, poses, self.path)

    def remove(self, ids: Sequence[int]) -> None:
        """Delete keyframes, and sessions that are empty then.

        Raises:
            MapError: nothing was deleted.
        """
        with self._transaction("deleting keyframes"):
            writing.remove(self.db, ids)
        self._session_ids = self.sessions()

    def clear(self, last_id: int) -> None:
        """Delete all keyframes and sessions, and the calibration, which was measured on them.

        Ids up to `last_id` are not used again.

        Raises:
            MapError: nothing was deleted.
        """
        with self._transaction("clearing"):
            writing.clear(self.db, last_id)
        self._session_ids = {}

    def count(self) -> int:
        """How many keyframes there are."""
        return int(self.db.execute("SELECT count(*) FROM keyframes").fetchone()[0])

    def sessions(self) -> dict[str, int]:
        """The number of each session by its name."""
        return dict(self.db.execute("SELECT name, id FROM sessions"))

    def codes(self, batch: int = 8192) -> Iterator[list[tuple]]:
        """Batches of (id, session_id, stamp_ns, code), by id."""
        cursor = self.db.execute(
            "SELECT id, session_id, stamp_ns, code FROM keyframes ORDER BY id"
        )
        while rows := cursor.fetchmany(batch):
            yield rows

    def features(self, ids: Sequence[int]) -> list[bytes]:
        """Float16 bytes of the ids that exist, by id."""
        marks = ",".join("?" * len(ids))
        rows = self.db.execute(
            f"SELECT feature FROM features WHERE id IN ({marks}) ORDER BY id", ids
        )
        return [feature for (feature,) in rows.fetchall()]

    def keyframes(self, ids: Sequence[int]) -> list[tuple]:
        """(id, session, camera, stamp_ns, 8 pose columns) of the ids that exist, in no order."""
        marks = ",".join("?" * len(ids))
        return self.db.execute(
            "SELECT k.id, s.name, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw "
            f"FROM keyframes k JOIN sessions s ON s.id = session_id WHERE k.id IN ({marks})",
            ids,
        ).fetchall()

    def columns(self, batch: int = 8192) -> Iterator[list[tuple]]:
        """Batches of (id, session_id, camera, stamp_ns, 8 pose columns, code, crc), by id."""
        cursor = self.db.execute(
            "SELECT id, session_id, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, "
            "code, crc FROM keyframes ORDER BY id"
        )
        while rows := cursor.fetchmany(batch):
            yield rows

    def rows(self, ids: Sequence[int]) -> list[tuple]:
        """All of the ids that exist, as `rows.row_from_columns` takes it, by id."""
        marks = ",".join("?" * len(ids))
        return self.db.execute(
            "SELECT k.id, s.name, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, code, "
            "crc, feature, jpeg FROM keyframes k JOIN sessions s ON s.id = session_id "
            "LEFT JOIN features f ON f.id = k.id LEFT JOIN thumbnails t ON t.id = k.id "
            f"WHERE k.id IN ({marks}) ORDER BY k.id",
            ids,
        ).fetchall()

    def thumbnail_bytes(self) -> dict[int, int]:
        """The size of each thumbnail by the id of its keyframe."""
        return dict(self.db.execute("SELECT id, length(jpeg) FROM thumbnails"))

    def used_bytes(self) -> int:
        """Bytes of the pages in use, without a log and without free pages."""
        pages, free, size = (
            self.db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def thumbnail(self, id_: int) -> bytes | None:
        """The JPEG of a keyframe, or None where none was stored."""
        found = self.db.execute("SELECT jpeg FROM thumbnails WHERE id = ?", (id_,)).fetchone()
        return found[0] if found else None

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        try:
            self.db.close()
        finally:
            if self._file is not None:
                self._file.close()


def _create_tables(db: sqlite3.Connection, meta: dict[str, str]) -> None:
    db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    rows = {"map_id": str(uuid.uuid4()), **meta}
    db.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())
    checks.count_all(db)


def _create_file(path: Path, meta: dict[str, str]) -> None:
    """Make an empty map under another name and move it into place: no moment shows half a map."""
    files.refuse_kept_name(path)
    files.refuse_orphan_log(path)
    temporary = files.temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(connect(temporary.as_uri())) as db:
            _create_tables(db, meta)
        files.put(temporary, path, overwrite=False)
    except SQLITE_ERRORS as e:
        raise explain(e, path, "creating the map") from e
    except OSError as e:
        # Another process may have made it in the meantime: that one is opened then.
        if not isinstance(e, FileExistsError) or files.status(path) is None:
            raise MapError(
                f"{path}: the map cannot be created: {e.strerror}; check its folder"
            ) from e
    finally:
        files.discard(temporary)
