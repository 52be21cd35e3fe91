"""The map as its users see it: places in, candidates and features out."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import calibration, good_copy, headings, verdicts
from hashvpr_ros.map.buffered import BufferedStore, chunks, damaged
from hashvpr_ros.map.ceiling import BoundedIndex, Views, new_index
from hashvpr_ros.map.files import resolve, size_of, wal_of
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.info import MapInfo, count_contents
from hashvpr_ros.map.loading import fill_index
from hashvpr_ros.map.maintenance import find_problems
from hashvpr_ros.map.rescue import copy_with
from hashvpr_ros.map.rows import NewPlace, check_text, make_row
from hashvpr_ros.map.schema import MAX_ID, SQLITE_ERRORS, explain, version_of
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES, Descriptor, Keyframe, Pose

# Keyframes that may wait in memory while the file cannot be written, before more are refused.
MAX_WAITING = 4096


class PlaceMap:
    """A map file with its index in memory. Safe to use from several threads.

    The codes are resident (about 100 bytes a place with what the exclusion needs); features,
    thumbnails and the rest are read from the file when they are asked for.
    """

    def __init__(
        self, store: Store, session: str, commit_period_s: float, index: HammingIndex
    ) -> None:
        self._store = store
        self._index = index
        self._lock = threading.RLock()
        self._long_reads = threading.Lock()  # taken before the other where both are
        self._closed = False
        self._good_copy_verified = False
        meta = store.meta()
        self.map_id = meta["map_id"]
        self.fingerprint = meta["fingerprint"]
        self.model_name = meta.get("model_name", "")
        self.feature_dim = int(meta["feature_dim"])
        text = meta.get("calibration")
        self.calibration = None if text is None else calibration.from_text(text)
        self._headings_kept = meta.get("headings", "{}")
        self.headings_rad: Mapping[str, float] = headings.from_text(self._headings_kept)
        self.path = "" if store.path is None else str(store.path)
        self._rows = BufferedStore(store, self.path, self.feature_dim, commit_period_s)
        self.read_only = store.read_only
        self._session_numbers = fill_index(index, store)
        self._next_id = store.next_id()
        self.session = ""
        if not self.read_only:
            self.start_session(session)
            store.start_writing()

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
        index: str = "exact",
        max_index_mb: int = 0,
    ) -> PlaceMap:
        """Open a map and load its codes; create the file where there is none.

        Args:
            path: of the file; "" keeps the map in memory.
            fingerprint, feature_dim: of the engine; empty or 0 accepts any existing map.
            session: name of the session to record; "" makes a UUID.
            commit_period_s: the longest that an added keyframe waits to be written.
            index, max_index_mb: how codes are searched and how much memory that may take, see
                the parameters `map.index` and `map.max_index_mb`.

        Raises:
            ConfigError: such an index cannot be had here.
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
        empty = new_index(index, max_index_mb)
        store = Store.open(path, meta, read_only=read_only, create=create)
        try:
            return cls(store, session, commit_period_s, empty)
        except BaseException as e:
            store.close()
            # Damage can change the type and the range of a value, too.
            if isinstance(e, (*SQLITE_ERRORS, ValueError, TypeError)):
                raise damaged(e, path) from e
            raise

    @classmethod
    def read_info(cls, path: str | Path) -> MapInfo:
        """What a map holds, whatever model made it; read-only."""
        with cls.open(path, read_only=True, create=False) as place_map:
            return place_map.info()

    def __len__(self) -> int:
        """Keyframes of the map, those that are not in the index included."""
        return len(self._index) + self.left_out

    @property
    def left_out(self) -> int:
        """Keyframes that left the index to keep it under its ceiling; the file has them."""
        return self._index.left_out if isinstance(self._index, BoundedIndex) else 0

    def __enter__(self) -> PlaceMap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Adding

    def start_session(self, name: str = "") -> str:
        """Record what follows under another session; "" makes a UUID.

        Raises:
            MapError: read-only, malformed name, or no number is left for another session.
        """
        with self._lock:
            self._check_writable()
            check_text(name, "session")
            name = name or str(uuid.uuid4())
            if name not in self._session_numbers:
                highest = max(self._session_numbers.values(), default=0)
                if highest >= MAX_ID:
                    raise MapError(
                        f"{self.path}: full, numbers of sessions have reached {MAX_ID}; go on in "
                        "one of its sessions or start another map"
                    )
                self._session_numbers[name] = highest + 1
            self.session = name
            return name

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
            if len(self._rows.waiting) >= MAX_WAITING:
                self.flush()
            if self._next_id + len(places) - 1 > MAX_ID:
                raise MapError(f"{self.path}: full, ids have reached {MAX_ID}; start another map")
            rows = [
                make_row(self._next_id + i, self.session, place, self.feature_dim)
                for i, place in enumerate(places)
            ]
            if not rows:
                return []
            self._next_id += len(rows)
            self._rows.add(rows)
            number = self._session_numbers[self.session]
            columns = (
                np.frombuffer(b"".join(r.code for r in rows), np.uint8).reshape(-1, CODE_BYTES),
                np.array([r.id for r in rows], np.int32),
                np.full(len(rows), number, np.int32),
                np.array([r.stamp_ns for r in rows], np.int64),
            )
            if isinstance(self._index, BoundedIndex):
                self._index.add_seen(*columns, Views.of(rows))
            else:
                self._index.add(*columns)
            return [r.id for r in rows]

    def set_calibration(self, new: calibration.Calibration | None) -> None:
        """Keep in the map how sure its matches are; None: as before any calibration.

        Raises:
            MapError: read-only, or it cannot be written.
        """
        with self._lock:
            self._check_writable()
            self._store.set_meta("calibration", None if new is None else calibration.to_text(new))
            self.calibration = new

    def add_headings(self, new: Mapping[str, float]) -> None:
        """Keep in the map how cameras are turned in the robot, radians to the left.

        Raises:
            MapError: read-only, or it cannot be written: they count until the map is closed then.
        """
        with self._lock:
            self._check_writable()
            self.headings_rad = {**self.headings_rad, **new}
            text = headings.to_text(self.headings_rad)
            if text != self._headings_kept:  # also where the last time failed
                self._store.set_meta("headings", text)
                self._headings_kept = text

    def set_poses(self, poses: Mapping[int, Pose]) -> int:
        """Give keyframes the poses that a back end has optimised; found with them from then on.

        Written in batches, between which others use the map: a batch is written whole or not.

        Args:
            poses: by id of the keyframe.

        Returns:
            how many keyframes have their new pose.

        Raises:
            ValueError: a keyframe that the map does not hold, or a pose that is not finite;
                nothing has changed.
            MapError: read-only, damaged, or it cannot be written.
        """
        for id_, pose in poses.items():
            if not pose.is_valid():
                raise ValueError(f"the pose of keyframe {id_} is not finite")
            check_text(pose.frame_id, "frame of a pose")
        with self._lock:
            self._check_writable()
            self.flush()
            ids = sorted(poses)
            known: set[int] = set()
            for chunk in chunks([i for i in ids if 1 <= i <= MAX_ID]):
                known.update(row[0] for row in self._rows.read(self._store.keyframes, chunk))
        if unknown := set(ids) - known:
            raise ValueError(f"{self.path}: there is no keyframe {min(unknown)}")
        for chunk in chunks(ids):
            with self._lock:
                self._check_writable()
                self._store.set_poses({i: poses[i] for i in chunk})
                self._rows.forget()
        return len(ids)

    def add_verdict(self, new: verdicts.StoredVerdict) -> None:
        """Keep what a back end said of a closure.

        Raises:
            MapError: read-only, or it cannot be written.
        """
        with self._lock:
            self._check_writable()
            self._store.add_verdict(new)

    def read_verdicts(self) -> list[verdicts.StoredVerdict]:
        """What back ends said of closures, by the stamp of the query."""
        with self._lock:
            self._check_open()
            return self._rows.read(verdicts.read, self._store.db)

    def flush(self) -> int:
        """Write the open batch.

        Returns:
            how many keyframes were written.

        Raises:
            MapError: nothing was written; the batch stays open and is tried again.
        """
        with self._lock:
            self._check_open()
            return self._rows.write()

    def flush_if_due(self) -> int:
        """Write the open batch when it is `commit_period_s` old; see `flush`."""
        with self._lock:
            return self.flush() if self._rows.is_due() else 0

    def clear(self) -> int:
        """Delete all keyframes, and the calibration, which was measured on them.

        Ids are not used again.

        Returns:
            how many keyframes there were.

        Raises:
            MapError: read-only, or it cannot be written; nothing was deleted.
        """
        with self._lock:
            self._check_writable()
            removed = len(self)
            self._store.clear(self._next_id - 1)
            self.calibration = None
            self._rows.waiting = {}
            self._rows.forget()
            self._index = self._index.emptied()
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
        if code.dtype != np.uint8 or code.shape != (CODE_BYTES,):
            raise MapError(f"a code must be uint8 [64], not {code.dtype} {list(code.shape)}")
        with self._lock:
            self._check_open()
            excluded = None
            if exclude_after_ns is not None and exclude_session in self._session_numbers:
                number = self._session_numbers[exclude_session]
                excluded = self._index.excluded_rows(number, exclude_after_ns)
            return self._index.search(np.ascontiguousarray(code), k, excluded)

    def places_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The place of each keyframe, int64 [n]; from memory alone.

        Views of several cameras at one instant are of one place; see `HammingIndex.places`.

        Raises:
            MapError: an id that the map does not hold.
        """
        with self._lock:
            if (self._index.rows_of(ids) < 0).any():
                self.keyframes(ids)  # says which there is not
            return self._index.places_of(ids)

    def views_of(self, place: int) -> NDArray[np.int32]:
        """Ids of the keyframes of a place, one for each camera, int32 [n]; none: no such place.

        Of one that has gone from between two of a session: those of the nearest that is left.
        """
        with self._lock:
            return self._index.views_of(place)

    def first_views(self) -> NDArray[np.int32]:
        """The first keyframe of each place, ascending, int32 [n]."""
        with self._lock:
            first = np.diff(self._index.places, prepend=-1) != 0
            return self._index.ids[first]

    def sessions_of(
        self,
        places: NDArray[np.integer],
        *,
        exclude_session: str = "",
        exclude_after_ns: int | None = None,
    ) -> NDArray[np.int32]:
        """A number for the session of each place, int32 [n]; from memory alone.

        Args:
            exclude_session, exclude_after_ns: as for `search`.

        Returns:
            positive numbers; -1 for a place that never was there, or that is excluded. One that
            has gone from between two of a session is still where a robot can be.
        """
        with self._lock:
            self._check_open()
            number = self._session_numbers.get(exclude_session, 0)
            return self._index.sessions_of(places, number, exclude_after_ns)

    def features(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Float features of keyframes, in the order of the ids: float32 [n, D].

        Quickest for ascending ids.

        Raises:
            MapError: an id that the map does not hold.
        """
        with self._lock:
            self._check_open()
            return self._rows.features(self._numbers(ids))

    def keyframes(self, ids: Sequence[int] | NDArray[np.integer]) -> list[Keyframe]:
        """Keyframes in the order of the ids.

        Raises:
            MapError: an id that the map does not hold.
        """
        wanted = self._numbers(ids)
        with self._lock:
            self._check_open()
            found = self._rows.keyframes(wanted.tolist())
            places = self._index.places_of(wanted).tolist()
        return [
            k if p == k.id else replace(k, place=p) for k, p in zip(found, places, strict=True)
        ]

    def _numbers(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Ids as an array.

        Raises:
            MapError: one that no map can hold.
        """
        try:
            return np.asarray(ids, np.int64)
        except OverflowError as e:
            raise MapError(f"{self.path}: there is no keyframe {max(ids, key=abs)}") from e

    def thumbnail(self, id_: int) -> bytes | None:
        """The JPEG of a keyframe, or None where none was stored."""
        with self._lock:
            self._check_open()
            return self._rows.thumbnail(id_)

    def codes_of(self, ids: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Codes of keyframes, uint8 [n, 64], from memory.

        Raises:
            MapError: an id that the map does not hold, or that is not in the index.
        """
        with self._lock:
            rows = self._index.rows_of(ids)
            if (rows < 0).any():
                self.keyframes(ids)  # says which there is not
                raise MapError(
                    f"{self.path}: keyframe {int(np.asarray(ids)[rows < 0][0])} is not in the "
                    "index; raise map.max_index_mb and load the map again"
                )
            return self._index.codes[rows]

    def codes(self) -> NDArray[np.uint8]:
        """A copy of all codes in the index, uint8 [n, 64], in the order of `ids`."""
        with self._lock:
            return self._index.codes.copy()

    def ids(self) -> NDArray[np.int32]:
        """A copy of all ids in the index, ascending, int32 [n]."""
        with self._lock:
            return self._index.ids.copy()

    def uncommitted(self) -> int:
        """How many keyframes a crash now would lose."""
        return len(self._rows.waiting)

    def waiting(self) -> list[int]:
        """Ids of the keyframes that wait to be written, ascending."""
        with self._lock:
            return list(self._rows.waiting)

    @property
    def index_bytes(self) -> int:
        """Resident memory of the index."""
        return self._index.nbytes

    @property
    def index_bytes_per_place(self) -> int:
        """What one more place costs in memory, without the room kept for growth."""
        return self._index.bytes_per_row

    @property
    def index_in_use(self) -> str:
        """What searches the codes: as `map.index` names it, or why it is another."""
        return self._index.in_use

    @property
    def file_bytes(self) -> int:
        """Size of the file and its write-ahead log; 0 in memory."""
        if not self.path:
            return 0
        return size_of(self.path) + size_of(wal_of(Path(self.path)))

    @property
    def session_count(self) -> int:
        """Sessions that hold keyframes or are being recorded."""
        return len(self._session_numbers)

    def info(self) -> MapInfo:
        """Counts and identity; commits the open batch first where the file can be written.

        Where it cannot, `uncommitted` keyframes are missing from all counts but `keyframes`.
        """
        with self._lock:
            self._check_open()
            with suppress(MapError):  # a full disk must not hide what is there
                self.flush()
            contents = self._rows.read(count_contents, self._store.db)
            return MapInfo(
                path=self.path,
                map_id=self.map_id,
                model_name=self.model_name,
                fingerprint=self.fingerprint,
                feature_dim=self.feature_dim,
                schema_version=version_of(self._store.db),
                keyframes=len(self),
                with_pose=contents.with_pose,
                with_thumbnail=contents.with_thumbnail,
                cameras=contents.cameras,
                sessions=contents.sessions,
                file_bytes=self.file_bytes,
                left_out=self.left_out,
                index=self.index_in_use,
                index_bytes=self.index_bytes,
                uncommitted=self.uncommitted(),
                read_only=self.read_only,
                session=self.session,
                verdicts=self._rows.read(verdicts.count, self._store.db),
            )

    # Keeping

    def is_at(self, path: str | Path) -> bool:
        """Whether this map is the file that a path leads to now; not where that was replaced.

        Raises:
            MapError: the path cannot be looked at.
        """
        with self._lock:
            self._check_open()
            return self._store.is_at(resolve(path))

    @contextmanager
    def _snapshot(self, *, must_flush: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection for long reads, beside which searching and adding go on."""
        with self._long_reads:  # closing waits for this
            with self._lock:
                self._check_open()
                try:
                    self.flush()
                except MapError:
                    if must_flush:
                        raise
                try:
                    db = self._open_reader()
                except MapError:  # the file was deleted: the open connection reads it still
                    if must_flush:
                        raise
                    db = None
                if db is None:  # so it is in memory
                    yield self._store.db
                    return
            with closing(db):
                yield db

    def _open_reader(self) -> sqlite3.Connection | None:
        try:
            return self._store.reader()
        except SQLITE_ERRORS as e:
            raise explain(e, self.path, "reading") from e

    def copy_to(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write a complete copy atomically; returns how many keyframes it holds.

        Where the map's own file cannot be written, or was deleted, the copy has what waits for
        it, too.

        Raises:
            MapError: the target exists and is not to be overwritten, is open, or cannot be
                written.
        """
        with self._snapshot(must_flush=False) as db:
            return copy_with(db, list(self._rows.waiting.values()), path, overwrite=overwrite)

    def verify(self) -> list[str]:
        """Check the whole file, see `find_problems`; an empty list means that it is sound."""
        with self._snapshot() as db:
            problems = find_problems(db, self.feature_dim)
            with self._lock:  # the writer stands still
                return self._store.file_problems() + problems

    def keep_good_copy(self) -> bool:
        """Keep a verified copy beside the file, see `good_copy.keep`; False where it is kept.

        The first call also verifies a copy that is kept already.

        Raises:
            DamagedMapError: the map is damaged. MapError: it has lost keyframes that the copy
                holds, or the copy could not be written.
        """
        if not self.path or self.read_only:
            return False
        with self._snapshot() as db:
            try:
                verify, self._good_copy_verified = not self._good_copy_verified, True
                return good_copy.keep(db, Path(self.path), self.feature_dim, verify_former=verify)
            except SQLITE_ERRORS as e:
                raise explain(e, self.path, "copying") from e

    def close(self) -> None:
        """Write the open batch and close the file; calling it again does nothing.

        Raises:
            MapError: the batch could not be written; the file is closed all the same.
        """
        with self._long_reads, self._lock:
            if self._closed:
                return
            try:
                self._rows.write()
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
