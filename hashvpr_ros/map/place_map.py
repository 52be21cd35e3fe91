"""The map as its users see it: places in, candidates and features out."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.schema import MAX_ID, SCHEMA_VERSION, explain
from hashvpr_ros.map.store import Row, Store, pose_from_columns, row_crc
from hashvpr_ros.types import CODE_BYTES, Descriptor, Keyframe, Pose

# Keyframes that may wait in memory while the file cannot be written, before more are refused.
MAX_PENDING = 4096


@dataclass(frozen=True)
class SessionInfo:
    """One session of a map."""

    name: str
    keyframes: int
    first_stamp_ns: int
    last_stamp_ns: int


@dataclass(frozen=True)
class MapInfo:
    """What a map holds."""

    path: str  # "" in memory
    map_id: str
    model_name: str
    fingerprint: str
    feature_dim: int
    schema_version: int
    keyframes: int
    with_pose: int
    with_thumbnail: int
    cameras: tuple[str, ...]
    sessions: tuple[SessionInfo, ...]
    file_bytes: int
    index_bytes: int
    uncommitted: int
    read_only: bool
    session: str  # being recorded, "" when read-only


@dataclass(frozen=True)
class NewPlace:
    """A keyframe to be added, without an id."""

    camera: str
    stamp_ns: int
    pose: Pose | None
    descriptor: Descriptor
    thumbnail: bytes | None = None


class PlaceMap:
    """A map file with its index in memory. Safe to use from several threads.

    The codes are resident (about 100 bytes a place with what the exclusion needs); features,
    thumbnails and the rest are read from the file when they are asked for.
    """

    def __init__(self, store: Store, session: str, commit_period_s: float) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._closed = False
        meta = store.meta()
        self.map_id = meta["map_id"]
        self.fingerprint = meta["fingerprint"]
        self.model_name = meta.get("model_name", "")
        self.feature_dim = int(meta["feature_dim"])
        self.path = "" if store.path is None else str(store.path)
        self.read_only = store.read_only
        self._commit_period_s = commit_period_s
        self._pending: dict[int, Row] = {}
        self._pending_since = 0.0
        self._index = HammingIndex()
        self._session_numbers: dict[str, int] = {}
        self._load_index()
        self._next_id = store.next_id()
        self.session = ""
        if not self.read_only:
            self.start_session(session)

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprint: str = "",
        feature_dim: int = 0,
        *,
        model_name: str = "",
        read_only: bool = False,
        create: bool = True,
        session: str = "",
        commit_period_s: float = 1.0,
    ) -> PlaceMap:
        """Open a map and load its codes; create the file where there is none.

        Args:
            path: of the file; "" keeps the map in memory.
            fingerprint, feature_dim: of the engine; empty or 0 accepts any existing map.
            session: name of the session to record; "" makes a UUID.
            commit_period_s: the longest that an added keyframe waits to be written.

        Raises:
            MapNotFoundError: no such file and it is not to be created.
            WrongModelError: made by another model.
            MapError: foreign, damaged, newer or locked. The file is untouched in every case.
        """
        meta = {
            "fingerprint": fingerprint,
            "feature_dim": str(feature_dim) if feature_dim else "",
            "model_name": model_name,
        }
        if not fingerprint or not feature_dim:
            create = False  # a new map must say what made it
        store = Store.open(path, meta, read_only=read_only, create=create)
        try:
            return cls(store, session, commit_period_s)
        except BaseException as e:
            store.close()
            if isinstance(e, (sqlite3.Error, ValueError)):
                raise _damaged(e, path) from e
            raise

    @classmethod
    def read_info(cls, path: str | Path) -> MapInfo:
        """What a map holds, whatever model made it; read-only."""
        with cls.open(path, read_only=True, create=False) as place_map:
            return place_map.info()

    def _load_index(self) -> None:
        count = self._store.db.execute("SELECT count(*) FROM keyframes").fetchone()[0]
        self._index.reserve(count)
        for rows in self._store.codes():
            ids, sessions, stamps, codes = zip(*rows, strict=True)
            packed = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, CODE_BYTES)
            if len(packed) != len(ids):
                raise MapError(f"{self.path}: damaged, codes have a wrong length; restore a copy")
            self._index.add(
                packed,
                np.array(ids, np.int32),
                np.array(sessions, np.int32),
                np.array(stamps, np.int64),
            )
        names = self._store.db.execute("SELECT id, name FROM sessions")
        self._session_numbers = {name: number for number, name in names}

    def __len__(self) -> int:
        return len(self._index)

    def __enter__(self) -> PlaceMap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Adding

    def start_session(self, name: str = "") -> str:
        """Record what follows under another session; "" makes a UUID."""
        with self._lock:
            self._check_writable()
            self.session = name or str(uuid.uuid4())
            if self.session not in self._session_numbers:
                highest = max(self._session_numbers.values(), default=0)
                self._session_numbers[self.session] = highest + 1
            return self.session

    def add(
        self,
        *,
        camera: str,
        stamp_ns: int,
        pose: Pose | None,
        descriptor: Descriptor,
        thumbnail: bytes | None = None,
    ) -> int:
        """Add one keyframe to the session; written with the open batch, found at once.

        Returns:
            its id.

        Raises:
            MapError: read-only, malformed descriptor, or the file could not be written for long.
        """
        return self.add_many([NewPlace(camera, stamp_ns, pose, descriptor, thumbnail)])[0]

    def add_many(self, places: Sequence[NewPlace]) -> list[int]:
        """Add several keyframes; see `add`."""
        with self._lock:
            self._check_writable()
            if len(self._pending) >= MAX_PENDING:
                self.flush()
            if self._next_id + len(places) - 1 > MAX_ID:
                raise MapError(f"{self.path}: full, ids have reached {MAX_ID}; start another map")
            rows = [self._row(self._next_id + i, p) for i, p in enumerate(places)]
            if not rows:
                return []
            self._next_id += len(rows)
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.update((r.id, r) for r in rows)
            number = self._session_numbers[self.session]
            self._index.add(
                np.frombuffer(b"".join(r.code for r in rows), np.uint8).reshape(-1, CODE_BYTES),
                np.array([r.id for r in rows], np.int32),
                np.full(len(rows), number, np.int32),
                np.array([r.stamp_ns for r in rows], np.int64),
            )
            return [r.id for r in rows]

    def _row(self, id_: int, place: NewPlace) -> Row:
        code, feature = place.descriptor.code, place.descriptor.feature
        if code.dtype != np.uint8 or code.shape != (CODE_BYTES,):
            raise MapError(f"a code must be uint8 [64], not {code.dtype} {list(code.shape)}")
        if feature.shape != (self.feature_dim,):
            raise MapError(
                f"{self.path}: a feature must have {self.feature_dim} values, not "
                f"{list(feature.shape)}"
            )
        if not np.isfinite(feature).all():
            raise MapError("a feature holds NaN or infinity; the engine is at fault")
        pose = place.pose if place.pose is not None and place.pose.is_valid() else None
        return Row(
            id_,
            self.session,
            place.camera,
            int(place.stamp_ns),
            pose,
            code.tobytes(),
            feature.astype("<f2").tobytes(),
            place.thumbnail,
        )

    def flush(self) -> int:
        """Write the open batch.

        Returns:
            how many keyframes were written.

        Raises:
            MapError: nothing was written; the batch stays open and is tried again.
        """
        with self._lock:
            self._check_open()
            if not self._pending:
                return 0
            # Retried after another period, not at each call, where the disk stays full.
            self._pending_since = time.monotonic()
            self._store.write(self._pending.values())
            written = len(self._pending)
            self._pending = {}
            return written

    def flush_if_due(self) -> int:
        """Write the open batch when it is `commit_period_s` old; see `flush`."""
        with self._lock:
            age_s = time.monotonic() - self._pending_since
            if self._pending and age_s >= self._commit_period_s:
                return self.flush()
            return 0

    def clear(self) -> int:
        """Delete all keyframes; returns how many. Their ids are not used again."""
        with self._lock:
            self._check_writable()
            removed = len(self._index)
            self._store.clear()
            self._pending = {}
            self._index = HammingIndex()
            self._session_numbers = {}
            self.start_session(self.session)
            return removed

    # Asking

    def search(
        self,
        code: NDArray[np.uint8],
        k: int,
        *,
        exclude_session: str = "",
        exclude_after_ns: int | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The k nearest keyframes by Hamming distance.

        Args:
            code: uint8 [64].
            exclude_session, exclude_after_ns: keyframes of this session stamped after this are
                left out before the search, so that k others remain.

        Returns:
            ids int32 [<=k], distances in bits int32 [<=k], by distance, then id.
        """
        with self._lock:
            self._check_open()
            rows = None
            if exclude_after_ns is not None:
                number = self._session_numbers.get(exclude_session, 0)
                rows = self._index.rows_before(number, exclude_after_ns)
            return self._index.search(np.ascontiguousarray(code, np.uint8), k, rows)

    def features(self, ids: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
        """Float features of keyframes, in the order of the ids: float32 [n, D].

        Raises:
            MapError: an id that the map does not hold.
        """
        wanted = np.asarray(ids, np.int64).tolist()
        with self._lock:
            self._check_open()
            pending = self._pending
            blobs = {i: pending[i].feature for i in wanted if i in pending} if pending else {}
            stored = [i for i in wanted if i not in blobs] if blobs else wanted
            for chunk in _chunks(stored):
                blobs.update(self._read(self._store.features, chunk))
        if not wanted:
            return np.empty((0, self.feature_dim), np.float32)
        try:
            joined = b"".join([blobs[i] for i in wanted])
        except KeyError as e:
            raise MapError(f"{self.path}: there is no keyframe {e.args[0]}") from None
        if len(joined) != 2 * self.feature_dim * len(wanted):
            raise MapError(f"{self.path}: damaged, a feature has a wrong length; restore a copy")
        return np.frombuffer(joined, "<f2").reshape(len(wanted), -1).astype(np.float32)

    def keyframes(self, ids: Sequence[int] | NDArray[np.int32]) -> list[Keyframe]:
        """Keyframes in the order of the ids.

        Raises:
            MapError: an id that the map does not hold.
        """
        wanted = np.asarray(ids, np.int64).tolist()
        found: dict[int, Keyframe] = {}
        with self._lock:
            self._check_open()
            for i in wanted:
                if row := self._pending.get(i):
                    found[i] = Keyframe(i, row.session, row.camera, row.stamp_ns, row.pose)
            for chunk in _chunks([i for i in wanted if i not in found]):
                for r in self._read(self._store.keyframes, chunk):
                    found[r[0]] = Keyframe(r[0], r[1], r[2], r[3], pose_from_columns(r[4:]))
        try:
            return [found[i] for i in wanted]
        except KeyError as e:
            raise MapError(f"{self.path}: there is no keyframe {e.args[0]}") from None

    def thumbnail(self, id_: int) -> bytes | None:
        """The JPEG of a keyframe, or None where none was stored."""
        with self._lock:
            self._check_open()
            if row := self._pending.get(id_):
                return row.thumbnail
            found = self._read(
                lambda i: self._store.db.execute(
                    "SELECT jpeg FROM thumbnails WHERE id = ?", (i,)
                ).fetchone(),
                id_,
            )
            return found[0] if found else None

    def codes(self) -> NDArray[np.uint8]:
        """A copy of all codes, uint8 [n, 64], in the order of `ids`."""
        with self._lock:
            return self._index.codes.copy()

    def ids(self) -> NDArray[np.int32]:
        """A copy of all ids, ascending, int32 [n]."""
        with self._lock:
            return self._index.ids.copy()

    def _read(self, read, *args):  # type: ignore[no-untyped-def]
        try:
            return read(*args)
        except sqlite3.Error as e:
            raise explain(e, self.path, "reading") from e

    def uncommitted(self) -> int:
        """How many keyframes a crash now would lose."""
        return len(self._pending)

    @property
    def index_bytes(self) -> int:
        """Resident memory of the index."""
        return self._index.nbytes

    @property
    def index_bytes_per_place(self) -> int:
        """What one more place costs in memory, without the room kept for growth."""
        return self._index.bytes_per_row

    @property
    def file_bytes(self) -> int:
        """Size of the file and its write-ahead log; 0 in memory."""
        if not self.path:
            return 0
        files = (Path(self.path), Path(f"{self.path}-wal"))
        return sum(f.stat().st_size for f in files if f.exists())

    @property
    def session_count(self) -> int:
        """Sessions that hold keyframes or are being recorded."""
        return len(self._session_numbers)

    def info(self) -> MapInfo:
        """Counts and identity; commits the open batch first where the map can be written."""
        with self._lock:
            self._check_open()
            if self._pending:
                self.flush()
            query = self._store.db.execute
            try:
                sessions = tuple(
                    SessionInfo(*row)
                    for row in query(
                        "SELECT s.name, count(*), min(stamp_ns), max(stamp_ns) FROM keyframes k "
                        "JOIN sessions s ON s.id = session_id GROUP BY s.id ORDER BY s.id"
                    )
                )
                cameras = tuple(
                    r[0] for r in query("SELECT DISTINCT camera FROM keyframes ORDER BY camera")
                )
                with_pose = query("SELECT count(px) FROM keyframes").fetchone()[0]
                with_thumbnail = query("SELECT count(*) FROM thumbnails").fetchone()[0]
            except sqlite3.Error as e:
                raise explain(e, self.path, "reading") from e
            return MapInfo(
                path=self.path,
                map_id=self.map_id,
                model_name=self.model_name,
                fingerprint=self.fingerprint,
                feature_dim=self.feature_dim,
                schema_version=SCHEMA_VERSION,
                keyframes=len(self),
                with_pose=with_pose,
                with_thumbnail=with_thumbnail,
                cameras=cameras,
                sessions=sessions,
                file_bytes=self.file_bytes,
                index_bytes=self.index_bytes,
                uncommitted=self.uncommitted(),
                read_only=self.read_only,
                session=self.session,
            )

    # Keeping

    @contextmanager
    def _snapshot(self):  # type: ignore[no-untyped-def]
        """A connection for long reads: one of its own where adding must go on meanwhile."""
        self._check_open()
        if not self.path or self.read_only:
            with self._lock:
                yield self._store.db
            return
        db = sqlite3.connect(f"{Path(self.path).absolute().as_uri()}?mode=ro", uri=True)
        try:
            yield db
        finally:
            db.close()

    def copy_to(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write a complete copy atomically; returns how many keyframes it holds.

        Raises:
            MapError: the target exists and is not to be overwritten, or cannot be written.
        """
        path = Path(path).expanduser()
        if path.exists() and (not overwrite or not path.is_file()):
            raise MapError(f"{path}: exists; give another path or allow overwriting")
        if self.path and path.exists() and path.samefile(self.path):
            raise MapError(f"{path}: is the open map itself; give another path")
        if not self.read_only:
            self.flush()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = sqlite3.connect(temporary)
            try:
                with self._snapshot() as source:
                    source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
                count = target.execute("SELECT count(*) FROM keyframes").fetchone()[0]
            finally:
                target.close()
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            if overwrite:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
        except sqlite3.Error as e:
            raise explain(e, path, "writing the copy") from e
        except OSError as e:
            raise MapError(f"{path}: cannot be written: {e.strerror}; check the folder") from e
        finally:
            temporary.unlink(missing_ok=True)
        return int(count)

    def verify(self) -> list[str]:
        """Check the whole file; an empty list means that it is sound.

        Looks at SQLite's structure, that each keyframe has a feature of the right size, that none
        is left over, and at a checksum over each keyframe's content.
        """
        if not self.read_only:
            self.flush()
        problems: list[str] = []
        try:
            with self._snapshot() as db:
                problems += [
                    f"structure: {row[0]}"
                    for row in db.execute("PRAGMA integrity_check(20)")
                    if row[0] != "ok"
                ]
                problems += _content_problems(db, self.feature_dim)
        except sqlite3.Error as e:
            problems.append(f"cannot be read: {e}")
        return problems

    def close(self) -> None:
        """Write the open batch and close the file; calling it again does nothing.

        Raises:
            MapError: the batch could not be written; the file is closed all the same.
        """
        with self._lock:
            if self._closed:
                return
            try:
                if self._pending:
                    self.flush()
            finally:
                self._closed = True
                self._store.close()

    def _check_open(self) -> None:
        if self._closed:
            raise MapError(f"{self.path or 'the map in memory'}: closed already")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise MapError(f"{self.path}: opened read-only; open it in mode mapping or slam")


def _content_problems(db: sqlite3.Connection, feature_dim: int, most: int = 20) -> Iterable[str]:
    problems = []
    for row in db.execute(
        "SELECT k.id, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, code, crc, feature, "
        "jpeg FROM keyframes k LEFT JOIN features f ON f.id = k.id "
        "LEFT JOIN thumbnails t ON t.id = k.id ORDER BY k.id"
    ):
        feature = row[13]
        if not isinstance(feature, bytes) or len(feature) != 2 * feature_dim:
            problems.append(f"keyframe {row[0]}: its feature is missing or of a wrong size")
        elif row_crc(row[1], row[2], row[3:11], row[11], feature, row[14]) != row[12]:
            problems.append(f"keyframe {row[0]}: its content does not match its checksum")
        if len(problems) >= most:
            return problems
    orphans = db.execute(
        "SELECT (SELECT count(*) FROM features WHERE id NOT IN (SELECT id FROM keyframes)), "
        "(SELECT count(*) FROM keyframes WHERE session_id NOT IN (SELECT id FROM sessions))"
    ).fetchone()
    if orphans[0]:
        problems.append(f"{orphans[0]} features belong to no keyframe")
    if orphans[1]:
        problems.append(f"{orphans[1]} keyframes belong to no session")
    return problems


def _chunks(ids: list[int], size: int = 512) -> Iterable[list[int]]:
    """SQLite allows a limited number of parameters a statement."""
    if len(ids) <= size:
        return (ids,) if ids else ()
    return (ids[i : i + size] for i in range(0, len(ids), size))


def _damaged(error: Exception, path: str | Path) -> MapError:
    if isinstance(error, sqlite3.Error):
        return explain(error, path, "loading")
    return MapError(f"{path}: damaged ({error}); restore it from a copy")
