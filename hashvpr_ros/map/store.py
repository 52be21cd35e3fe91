"""The SQLite file of a map: opening it safely, changing it in transactions, reading rows.

Durability: the file is in WAL mode with `synchronous=NORMAL`. A batch is one transaction: after
it the batch survives `kill -9` of the process at any moment; a power cut may lose the last batches
but never corrupts the file (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files, integrity, verdicts, writing
from hashvpr_ros.map.connection import connect, connect_reader
from hashvpr_ros.map.files import LockedFile, good_copy_of
from hashvpr_ros.map.rows import (
    KEYFRAME_COLUMNS,
    Row,
    check_blob,
    keyframe_from_columns,
    values_crc,
)
from hashvpr_ros.map.schema import (
    SCHEMA,
    SQLITE_ERRORS,
    DamagedMapError,
    MapNotFoundError,
    cannot_write,
    check_header,
    check_meta,
    check_tables,
    explain,
    header_problems,
    reading,
    remedy,
)
from hashvpr_ros.types import Keyframe, Pose

_log = logging.getLogger(__name__)


class Store:
    """One open map file, or a map in memory. Not thread-safe."""

    def __init__(self, db: sqlite3.Connection, file: LockedFile | None, read_only: bool) -> None:
        self.db = db
        self.path = None if file is None else file.path
        self.read_only = read_only
        self._file = file
        self._last_id = 0  # the highest that was used when the map was opened
        # Known from what was written and read; a reader's grow beside a live writer.
        self._session_ids: dict[str, int] = {}

    @classmethod
    def open(
        cls,
        path: str | Path,
        meta: Mapping[str, str],
        *,
        read_only: bool,
        create: bool,
        file_mode: int = files.FILE_MODE,
    ) -> Store:
        """Open a map, or create it. Of what it holds, header and tables alone are looked at.

        Args:
            path: of the file; "" for a map in memory.
            meta: what a new map records: fingerprint, feature_dim, model_name.
            file_mode: permissions of a new map.

        Raises:
            MapNotFoundError, MapError: the file is untouched then.
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
                    f"{path}: no such map, but {remedy(path)}; move {good.name} away to start "
                    "a new map"
                )
            if read_only or not create:
                raise MapNotFoundError(
                    f"{path}: no such map; build one with mode mapping or slam, or with "
                    "`hashvpr map build`"
                )
            _create_file(path, meta, file_mode)
        file = LockedFile(path, shared=read_only)
        try:
            with reading(path, "opening"):
                return cls._open_locked(file, read_only)
        except BaseException as e:
            if isinstance(e, DamagedMapError) and file.locked:
                e = integrity.blame_log(e, path)
            file.close()
            raise e

    @classmethod
    def _open_locked(cls, file: LockedFile, read_only: bool) -> Store:
        files.check_beside(file.path)
        check_header(file.fd, file.path)
        db = connect_reader(file)
        try:
            check_tables(db, file.path)
            return cls(db, file, read_only)
        except BaseException:
            db.close()
            raise

    @classmethod
    def create(cls, temporary: Path, meta: Mapping[str, str], path: Path) -> Store:
        """Make an empty map under a temporary name that nobody else uses, to be filled quickly.

        It has no log and no lock, and survives neither a power cut nor an error: write it within
        `backup.placed`, which throws it away then.

        Args:
            meta: what the map records of itself; without `map_id` it gets a new one.
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
        with reading(path):
            store.sessions()
        return store

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Let all that is read within the block be of one moment, whoever writes meanwhile."""
        with reading(self.path or ""):
            self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                with suppress(*SQLITE_ERRORS):
                    self.db.execute("ROLLBACK")

    def verify(self) -> None:
        """Check all of the map, see `integrity.find_problems`.

        What a killed writer left in a log that is cut short is lost, which is no damage of the
        map: it is logged.

        Raises:
            DamagedMapError: it is damaged.
        """
        problems = integrity.find_problems(self.db)
        if self._file is not None and self._file.locked:
            problems += header_problems(os.pread(self._file.fd, 100, 0))
            if self.read_only:
                for problem in integrity.log_problems(self._file.path):
                    _log.warning("%s: %s", self._file.path, problem)
        if problems:
            raise DamagedMapError(
                f"{self.path}: damaged ({problems[0]}); {remedy(self.path or '')}"
            )

    def blame_log(self, error: DamagedMapError) -> DamagedMapError:
        """The error of a damaged map, which names the log of a killed writer that made it so."""
        if self._file is None or not self._file.locked:
            return error
        return integrity.blame_log(error, self._file.path)

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
        integrity.check_leftover(self.db, self._file.path)
        self._file.check_unchanged()
        self.db.close()
        with reading(self._file.path, "opening for writing"):
            self.db = connect(f"{self._file.path.as_uri()}?mode=rw")
            self.db.execute("PRAGMA journal_mode = WAL")
            # Fails now, and not at the first batch, where file or folder are read-only.
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("ROLLBACK")
        self._file.mark()

    def reader(self) -> sqlite3.Connection | None:
        """Another connection for long reads, which sees what is committed; None in memory.

        It must be closed before the store.

        Raises:
            MapError: the file was deleted or replaced.
        """
        if self._file is None:
            return None
        self._file.check_in_place()
        self.check_unchanged()
        return connect_reader(self._file, may_be_written=not self.read_only)

    def check_unchanged(self) -> None:
        """Refuse to go on where another program has written into the file.

        Raises:
            MapError: it has.
        """
        if self._file is None:
            return
        try:
            self._file.check_unchanged()
        except MapError:
            # A live writer that this reader has joined may write, but the map stays the same.
            if self._file.locked or not self._is_continued():
                raise
            self._file.mark()

    def _is_continued(self) -> bool:
        """Whether the file as others find it now is a later state of this map."""
        assert self._file is not None
        if not self.is_at(self._file.path):  # by now perhaps a FIFO, which SQLite would wait for
            return False
        try:
            with (
                reading(self._file.path),
                closing(connect_reader(self._file, may_be_written=True)) as now,
            ):
                of_now = dict(integrity.checked_rows(now, "meta"))["map_id"]
                of_ours = dict(integrity.checked_rows(self.db, "meta"))["map_id"]
                return of_now == of_ours and self._last_id <= integrity.last_id(now)
        except MapError:
            return False

    def is_at(self, path: Path) -> bool:
        """Whether this map is the file that a path leads to now."""
        return self._file is not None and self._file.is_at(path)

    def file_problems(self) -> list[str]:
        """Damage in the file and its log that is not seen through a connection."""
        if self._file is None or not self._file.locked:
            return []  # a live writer changes both meanwhile
        problems = list(header_problems(os.pread(self._file.fd, 100, 0)))
        if self.read_only:  # a writer has begun the log anew
            problems += integrity.log_problems(self._file.path)
        return problems

    def meta(self) -> dict[str, str]:
        """What the map records of itself, as it was written.

        Raises:
            DamagedMapError: it is damaged.
        """
        with reading(self.path or "", "opening"):
            have = dict(integrity.checked_rows(self.db, "meta"))
        check_meta(have, {}, self.path or Path("map in memory"))
        return have

    def check_model(self, want: Mapping[str, str]) -> None:
        """Refuse a map that another model made.

        Args:
            want: fingerprint, feature_dim, model_name; what is empty or absent is not compared.

        Raises:
            WrongModelError: it did. DamagedMapError: what the map records is damaged.
        """
        check_meta(self.meta(), want, self.path or Path("map in memory"))

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
            ValueError: what is kept of it is damaged.
        """
        self._last_id = integrity.last_id(self.db)
        return self._last_id + 1

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        if self._file is not None:
            self._file.check_in_place()
            self._file.check_unchanged()
        with reading(self.path or "", doing):
            try:
                self.db.execute("BEGIN IMMEDIATE")
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    with suppress(*SQLITE_ERRORS):
                        self.db.execute("ROLLBACK")
                raise
            finally:
                if self._file is not None:
                    self._file.mark()  # a commit may fold the log into the file

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
            writing.set_poses(self.db, poses)

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

    def use_ids(self, last_id: int) -> None:
        """Let no keyframe have an id up to this one, but those that have one already.

        Raises:
            MapError: it was not written.
        """
        with self._transaction("writing the highest id"):
            integrity.raise_last_id(self.db, last_id)

    def count(self) -> int:
        """How many keyframes there are."""
        return int(self.db.execute("SELECT count(*) FROM keyframes").fetchone()[0])

    def sessions(self) -> dict[str, int]:
        """The number of each session by its name, as it was written.

        Raises:
            ValueError: they are damaged.
        """
        self._session_ids = {n: i for i, n in integrity.checked_rows(self.db, "sessions")}
        return dict(self._session_ids)

    def use_sessions(self, numbers: Mapping[str, int]) -> None:
        """Take names of sessions as they were salvaged, since those of the file are damaged."""
        self._session_ids = dict(numbers)

    def _session_names(self, rows: Sequence[tuple]) -> dict[int, str]:
        """The names of the sessions of rows of `keyframes`, by number."""
        names = {i: n for n, i in self._session_ids.items()}
        if not {row[1] for row in rows} <= names.keys():  # a live writer has begun another
            names = {i: n for n, i in self.sessions().items()}
        return names

    def keyframe_rows(self, batch: int = 8192) -> Iterator[list[tuple]]:
        """Batches of rows of `keyframes`: `rows.KEYFRAME_COLUMNS` and `crc`, by id."""
        cursor = self.db.execute(f"SELECT {KEYFRAME_COLUMNS}, crc FROM keyframes ORDER BY id")
        while rows := cursor.fetchmany(batch):
            yield rows

    def features(self, ids: Sequence[int]) -> list[bytes]:
        """Float16 bytes of the ids that exist, by id, as they were written.

        Raises:
            ValueError: one of them is damaged.
        """
        marks = ",".join("?" * len(ids))
        rows = self.db.execute(
            "SELECT feature, feature_crc, id FROM features JOIN keyframes USING (id) "
            f"WHERE id IN ({marks}) ORDER BY id",
            ids,
        ).fetchall()
        for feature, crc, id_ in rows:
            check_blob(feature, crc, "feature", id_)
        return [row[0] for row in rows]

    def keyframes(self, ids: Sequence[int]) -> list[Keyframe]:
        """The keyframes of the ids that exist, in no order, as they were written.

        Raises:
            ValueError, LookupError: one of them is damaged.
        """
        marks = ",".join("?" * len(ids))
        rows = self.db.execute(
            f"SELECT {KEYFRAME_COLUMNS}, crc FROM keyframes WHERE id IN ({marks})", ids
        ).fetchall()
        names = self._session_names(rows)
        return [keyframe_from_columns(row, names) for row in rows]

    def rows(self, ids: Sequence[int]) -> list[tuple]:
        """All of the ids that exist: `KEYFRAME_COLUMNS`, `crc`, feature, thumbnail; by id."""
        marks = ",".join("?" * len(ids))
        return self.db.execute(
            f"SELECT {integrity.ALL_COLUMNS} WHERE k.id IN ({marks}) ORDER BY k.id", ids
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
        """The JPEG of a keyframe as it was written, or None where none was stored.

        Raises:
            ValueError: it is damaged.
        """
        found = self.db.execute(
            "SELECT jpeg, thumbnail_crc FROM keyframes LEFT JOIN thumbnails USING (id) "
            "WHERE id = ?",
            (id_,),
        ).fetchone()
        if found is None:
            return None
        jpeg, crc = found
        return check_blob(jpeg, crc, "thumbnail", id_)

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it, unless it is another's by now."""
        if self._file is None:
            self.db.close()
            return
        beside = None
        try:
            # What has its name by now may be a FIFO, which SQLite would wait for.
            if not self.read_only and self._is_changed() and self.is_at(self._file.path):
                # While another connection reads, SQLite leaves the log as it is. What it reads
                # may make no sense, so that nothing is set first.
                uri = f"{self._file.path.as_uri()}?mode=ro"
                beside = sqlite3.connect(uri, uri=True, isolation_level=None)
                with suppress(*SQLITE_ERRORS):
                    beside.execute("BEGIN")
                    beside.execute("PRAGMA schema_version").fetchone()
            self.db.close()
        finally:
            if beside is not None:
                beside.close()
            self._file.close()

    def _is_changed(self) -> bool:
        try:
            self.check_unchanged()
        except MapError:
            return True
        return False


def _create_tables(db: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    rows = {"map_id": str(uuid.uuid4()), **meta}
    crcs = [values_crc(*row) for row in rows.items()]
    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO meta VALUES (?, ?, ?)",
        [(*row, crc) for row, crc in zip(rows.items(), crcs, strict=True)],
    )
    integrity.begin(db)
    integrity.change(db, "meta", (), crcs)
    db.execute("COMMIT")


def _create_file(path: Path, meta: Mapping[str, str], mode: int) -> None:
    """Make an empty map under another name and move it into place: no moment shows half a map."""
    files.refuse_kept_name(path)
    files.refuse_orphan_log(path)
    temporary = files.temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(files.create(temporary, mode))
        with closing(connect(temporary.as_uri())) as db:
            _create_tables(db, meta)
        files.put(temporary, path, overwrite=False)
    except SQLITE_ERRORS as e:
        raise explain(e, path, "creating the map") from e
    except OSError as e:
        # Another process may have made it in the meantime: that one is opened then.
        if not isinstance(e, FileExistsError) or files.status(path) is None:
            raise cannot_write(e, path) from e
    finally:
        files.discard(temporary)
