"""The map as its users see it, from opening to closing; what it is asked is in `searchable`."""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import backup, calibration, files, headings, verdicts
from hashvpr_ros.map.buffered import chunks
from hashvpr_ros.map.ceiling import BoundedIndex, Views, new_index
from hashvpr_ros.map.files import resolve
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.info import MapInfo, count_contents
from hashvpr_ros.map.integrity import find_problems
from hashvpr_ros.map.rows import NewPlace, check_text, make_row
from hashvpr_ros.map.salvage import Salvage, salvage
from hashvpr_ros.map.schema import (
    MAX_ID,
    SCHEMA_VERSION,
    DamagedMapError,
    check_meta,
    reading,
)
from hashvpr_ros.map.searchable import SearchableMap
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES, Descriptor, Pose

_log = logging.getLogger(__name__)
# Keyframes that may wait in memory while the file cannot be written, before more are refused.
MAX_WAITING = 4096


@contextmanager
def closing_on_error(store: Store) -> Iterator[Store]:
    """Close a file where its map cannot be used."""
    try:
        yield store
    except BaseException:
        store.close()
        raise


class PlaceMap(SearchableMap):
    """A map file with its index in memory: a `SearchableMap` that grows and is kept.

    Safe to use from several threads.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        commit_period_s: float,
        index: HammingIndex,
        *,
        verify: bool = False,
        found: Salvage | None = None,
        file_mode: int = files.FILE_MODE,
    ) -> None:
        """Load an open file; see `open`."""
        with store.moment():  # all that is read is of one moment, whoever writes meanwhile
            super().__init__(store, commit_period_s, index, found)
            with reading(self.path, "loading"):
                self._next_id = store.next_id() if found is None else found.last_id + 1
            if verify:
                store.verify()
        self._long_reads = threading.Lock()  # taken before `_lock` where both are
        self._reader: sqlite3.Connection | None = None  # of the long read that goes on
        self._verified = verify  # all of the file, since it was opened
        self._copy_verified = False
        self._file_mode = file_mode
        self.left_out_damaged = () if found is None else found.left_out
        self.session = ""
        if not self.read_only:
            self.start_session(session)
            store.start_writing()
        store.check_unchanged()

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
        verify: bool = False,
        on_damage: str = "refuse",
        file_mode: int = files.FILE_MODE,
    ) -> PlaceMap:
        """Open a map and load its codes; create the file where there is none.

        Whatever is read from the file is tested by its checksum first: all but features and
        thumbnails here, these when they are asked for.

        Args:
            path: of the file; "" keeps the map in memory.
            fingerprint, feature_dim: of the engine; empty or 0 accepts any existing map.
            session: name of the session to record; "" makes a UUID.
            commit_period_s: the longest that an added keyframe waits to be written.
            index, max_index_mb: how codes are searched and how much memory that may take, see
                the parameters `map.index` and `map.max_index_mb`.
            verify: check all of the file now, features and thumbnails too.
            on_damage: "refuse", or "drop", which also means `verify`: use what is sound, see
                `left_out_damaged`. To go on writing, what is sound is written as a new file, and
                the damaged one is kept beside it.
            file_mode: permissions of the files that are made: a new map, and its copies.

        Raises:
            ConfigError: such an index cannot be had here.
            MapNotFoundError: no such file and it is not to be created.
            WrongModelError: made by another model.
            DamagedMapError: damaged, or nothing of it can be used.
            MapError: foreign, newer or locked. The file is untouched in every case.
        """
        meta = {
            "fingerprint": fingerprint,
            "feature_dim": str(feature_dim) if feature_dim else "",
            "model_name": model_name,
        }
        if not fingerprint or not feature_dim:
            create = False  # a new map must say what made it

        new_index(index, max_index_mb)  # says before a file is made that there is no such index

        def load(found: Salvage | None = None, verify: bool = verify) -> PlaceMap:
            empty = new_index(index, max_index_mb)
            return cls(
                store, session, commit_period_s, empty,
                verify=verify, found=found, file_mode=file_mode,
            )  # fmt: skip

        drop = on_damage == "drop"
        with closing_on_error(
            Store.open(path, meta, read_only=read_only, create=create, file_mode=file_mode)
        ) as store:
            try:
                store.check_model(meta)
                return load(verify=verify or drop)
            except DamagedMapError as e:
                damage = store.blame_log(e)
                if not drop:
                    raise damage from e
                store.close()
        with closing_on_error(Store.open(path, meta, read_only=read_only, create=False)) as store:
            with reading(path):
                found = salvage(store)
            check_meta(found.meta, meta, Path(path))
            _log.warning("%s", damage)
            if read_only:
                return load(found, verify=False)
            left_out = backup.replace_by_sound(store, found, file_mode)
            store.close()
        with closing_on_error(Store.open(path, meta, read_only=False, create=False)) as store:
            place_map = load()
            place_map.left_out_damaged = left_out
            return place_map

    @classmethod
    def read_info(cls, path: str | Path) -> MapInfo:
        """What a map holds, whatever model made it; read-only."""
        with cls.open(path, read_only=True, create=False) as place_map:
            return place_map.info()

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
            self._recorded.add(self._session_numbers[self.session])
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
                known.update(k.id for k in self._rows.read(self._store.keyframes, chunk))
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
            self._recorded = set()
            self.start_session(self.session)
            return removed

    # Keeping

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
                schema_version=SCHEMA_VERSION,
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

    def is_at(self, path: str | Path) -> bool:
        """Whether this map is the file that a path leads to now; not where that was replaced.

        Raises:
            MapError: the path cannot be looked at.
        """
        with self._lock:
            return not self._closed and self._store.is_at(resolve(path))

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
                self._reader = db
                try:
                    yield db
                finally:
                    self._reader = None

    def interrupt(self) -> None:
        """Let a long read that goes on end with an error, which closing would wait for."""
        db = self._reader
        if db is not None:
            with suppress(sqlite3.Error):  # it has ended and is closed
                db.interrupt()

    def _open_reader(self) -> sqlite3.Connection | None:
        with reading(self.path):
            return self._store.reader()

    def copy_to(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write a complete copy atomically; returns how many keyframes it holds.

        Where the map's own file cannot be written, or was deleted, the copy has what waits for
        it, too.

        Raises:
            MapError: the target exists and is not to be overwritten, is open, or cannot be
                written.
        """
        if self.read_only and self.left_out_damaged:
            raise DamagedMapError(
                f"{self.path}: damaged, so it is not copied; `hashvpr map prune --salvage` saves "
                "its valid keyframes"
            )
        with self._snapshot(must_flush=False) as db:
            waiting = list(self._rows.waiting.values())
            return backup.copy_with(db, waiting, path, overwrite=overwrite, mode=self._file_mode)

    def verify(self) -> list[str]:
        """Check the whole file, see `find_problems`; an empty list means that it is valid."""
        with self._snapshot() as db:
            problems = find_problems(db)
            with self._lock:  # the writer stands still
                return self._store.file_problems() + problems

    def keep_good_copy(self) -> bool:
        """Keep a verified copy beside the file, see `backup.keep`; False where it is kept.

        The first call since opening also checks all of the map, and of a copy that is as the map.

        Raises:
            DamagedMapError: the map is damaged. MapError: it has lost keyframes that the copy
                holds, or the copy could not be written.
        """
        if not self.path or self.read_only:
            return False
        with self._snapshot() as db:
            made = backup.keep(
                db,
                Path(self.path),
                verify_map=not self._verified,
                verify_former=not self._copy_verified,
                mode=self._file_mode,
            )
            self._verified = self._copy_verified = True
            return made

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

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise MapError(f"{self.path}: opened read-only; open it in mode mapping or slam")
