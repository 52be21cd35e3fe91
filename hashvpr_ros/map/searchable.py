"""An open map as it is asked: what is near a code, and what it knows of keyframes and places."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import calibration, headings, verdicts
from hashvpr_ros.map.buffered import BufferedStore
from hashvpr_ros.map.ceiling import BoundedIndex
from hashvpr_ros.map.files import size_of, wal_of
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.loading import checked_batches, fill_index
from hashvpr_ros.map.salvage import Salvage
from hashvpr_ros.map.schema import reading
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES, Keyframe


class SearchableMap:
    """The questions that a map answers, which `PlaceMap` opens, adds to and closes.

    Safe to use from several threads.

    The codes are resident (about 100 bytes a place with what the exclusion needs); features,
    thumbnails and the rest are read from the file when they are asked for.
    """

    def __init__(
        self,
        store: Store,
        commit_period_s: float,
        index: HammingIndex,
        found: Salvage | None = None,
    ) -> None:
        """Load what is searched by.

        Args:
            found: what is sound of a damaged map, which alone is used; None: it must be sound.

        Raises:
            DamagedMapError: it is not.
        """
        self._store = store
        self._index = index
        self._lock = threading.RLock()
        self._closed = False
        meta = store.meta() if found is None else found.meta
        self.map_id = meta["map_id"]
        self.fingerprint = meta["fingerprint"]
        self.model_name = meta.get("model_name", "")
        self.feature_dim = int(meta["feature_dim"])
        self.path = "" if store.path is None else str(store.path)
        self.read_only = store.read_only
        text = meta.get("calibration")
        with reading(self.path, "loading"):
            self.calibration = None if text is None else calibration.from_text(text)
            self._headings_kept = meta.get("headings", "{}")
            self.headings_rad: Mapping[str, float] = headings.from_text(self._headings_kept)
            if found is None:
                fill_index(index, store.count(), checked_batches(store))
                self._session_numbers = store.sessions()
            else:
                fill_index(index, len(found), iter(found.batches))
                self._session_numbers = {n: i for i, n in found.sessions.items()}
                store.use_sessions(self._session_numbers)
        self._rows = BufferedStore(store, self.path, self.feature_dim, commit_period_s)
        # Numbers of sessions that hold keyframes.
        self._recorded = set(np.unique(index.sessions).tolist())

    def __len__(self) -> int:
        """Keyframes of the map, those that are not in the index included."""
        return len(self._index) + self.left_out

    @property
    def left_out(self) -> int:
        """Keyframes that left the index to keep it under its ceiling; the file has them."""
        return self._index.left_out if isinstance(self._index, BoundedIndex) else 0

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
        """Sessions that hold keyframes."""
        return len(self._recorded)

    def read_verdicts(self) -> list[verdicts.StoredVerdict]:
        """What back ends said of closures, by the stamp of the query."""
        with self._lock:
            self._check_open()
            return self._rows.read(verdicts.read, self._store.db)

    def check_unchanged(self) -> None:
        """Refuse a map that another program has changed since it was opened.

        Whatever is asked of the map looks, too; this is for when nothing is asked.

        Raises:
            MapError: it is changed, or closed.
        """
        with self._lock:
            self._check_open()

    def _check_open(self) -> None:
        """Refuse to answer for a file that is closed, or that another program has changed."""
        if self._closed:
            raise MapError(f"{self.path or 'the map in memory'}: closed already")
        self._store.check_unchanged()
