"""Exact Hamming search over packed codes: the only module that imports faiss.

The codes live in one growing array, 64 bytes a place, which FAISS scans in place. Rows are in the
order of their addition, so "everything but the recent past of this session" is nearly always a
prefix: the exclusion costs next to nothing and k candidates remain whatever is excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.types import CODE_BYTES

_T = TypeVar("_T", bound=np.generic)
_GROWTH = 1.18  # more would waste memory on large maps, less would copy too often
_FIRST_ROWS = 1024


class HammingIndex:
    """Codes and, per row, what the exclusion of recent keyframes needs. Not thread-safe."""

    def __init__(self) -> None:
        self._n = 0
        self._codes = np.empty((0, CODE_BYTES), np.uint8)
        self._ids = np.empty(0, np.int32)
        self._sessions = np.empty(0, np.int32)
        self._stamps = np.empty(0, np.int64)
        self._places = np.empty(0, np.int32)
        self._first_row: dict[int, int] = {}  # of each session

    def __len__(self) -> int:
        return self._n

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The codes, uint8 [n, 64], a read-only view."""
        return _frozen(self._codes[: self._n])

    @property
    def ids(self) -> NDArray[np.int32]:
        """The keyframe id of each row, ascending, int32 [n], a read-only view."""
        return _frozen(self._ids[: self._n])

    @property
    def places(self) -> NDArray[np.int32]:
        """The place of each row, ascending, int32 [n], a read-only view.

        Rows of one session and stamp that follow one another are the views of several cameras at
        one place. It has the number that its first view's id would be if there were but one view
        of each place before: neighbours along a session differ by one, whatever the cameras.
        """
        return _frozen(self._places[: self._n])

    @property
    def _columns(self) -> tuple[NDArray, ...]:
        return self._codes, self._ids, self._sessions, self._stamps, self._places

    @property
    def nbytes(self) -> int:
        """Resident memory, in bytes."""
        return int(sum(a.nbytes for a in self._columns))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row: code, id, session, stamp, place."""
        return int(sum(a.itemsize * int(np.prod(a.shape[1:], dtype=int)) for a in self._columns))

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that a load of known size copies nothing."""
        if rows <= len(self._ids):
            return
        for name in ("_codes", "_ids", "_sessions", "_stamps", "_places"):
            old = getattr(self, name)
            new = np.empty((rows, *old.shape[1:]), old.dtype)
            new[: self._n] = old[: self._n]
            setattr(self, name, new)

    def add(
        self,
        codes: NDArray[np.uint8],
        ids: NDArray[np.int32],
        sessions: NDArray[np.int32],
        stamps_ns: NDArray[np.int64],
    ) -> None:
        """Append rows; ids must ascend.

        Args:
            codes: uint8 [m, 64].
            ids, sessions, stamps_ns: [m] each; sessions as small integers.
        """
        end = self._n + len(ids)
        for session in np.unique(sessions).tolist():
            if session not in self._first_row:
                self._first_row[session] = self._n + int(np.argmax(sessions == session))
        if end > len(self._ids):
            self.reserve(max(end, _FIRST_ROWS, int(len(self._ids) * _GROWTH)))
        rows = slice(self._n, end)
        self._codes[rows] = codes
        self._ids[rows] = ids
        self._sessions[rows] = sessions
        self._stamps[rows] = stamps_ns
        self._number(end)
        self._n = end

    def _number(self, end: int) -> None:
        """Number the places of the rows from `_n` to `end`."""
        begin = self._n
        if begin == end:
            return
        more = np.zeros(end - begin, np.int64)  # views of the place of the row before
        first = max(begin, 1)
        rows, before = slice(first, end), slice(first - 1, end - 1)
        more[first - begin :] = (self._sessions[rows] == self._sessions[before]) & (
            self._stamps[rows] == self._stamps[before]
        )
        extras = int(self._ids[begin - 1] - self._places[begin - 1]) if begin else 0
        self._places[begin:end] = self._ids[begin:end] - (extras + np.cumsum(more))

    def excluded_rows(self, session: int, stamp_ns: int) -> NDArray[np.int64]:
        """The rows of a session stamped after `stamp_ns`, ascending, int64.

        Looks only from the first row of the session on, which is usually the one being recorded
        and so the last.
        """
        first = self._first_row.get(session, self._n)
        mine = self._sessions[first : self._n] == session
        return first + np.flatnonzero(mine & (self._stamps[first : self._n] > stamp_ns))

    def sessions_of(
        self, places: NDArray[np.integer], session: int, stamp_ns: int | None
    ) -> NDArray[np.int32]:
        """Sessions of places, int32 [n]: -1 for places that are not there, or excluded.

        Args:
            places: in any order.
            session, stamp_ns: what `excluded_rows` excludes; None: nothing.
        """
        if not self._n:
            return np.full(len(places), -1, np.int32)
        rows = np.minimum(np.searchsorted(self._places[: self._n], places), self._n - 1)
        sessions = self._sessions[rows]
        absent = self._places[rows] != places
        if stamp_ns is not None:
            absent |= (sessions == session) & (self._stamps[rows] > stamp_ns)
        sessions[absent] = -1
        return sessions

    def search(
        self, code: NDArray[np.uint8], k: int, excluded: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The k nearest rows of those not excluded.

        Args:
            code: uint8 [64].
            excluded: row numbers, ascending.

        Returns:
            ids int32 [<=k] and distances in bits int32 [<=k], by distance, then by id.
        """
        if excluded is None or not len(excluded):
            row, distance = _nearest(code, self._codes[: self._n], k)
        else:
            # What is excluded is one stretch of rows but for the disorder between cameras, so
            # that two scans without a copy and one of a few rows find all the others.
            first, last = int(excluded[0]), int(excluded[-1])
            between = np.ones(last - first, bool)
            between[excluded[:-1] - first] = False
            inside = first + np.flatnonzero(between)
            parts = [
                _nearest(code, self._codes[:first], k),
                _nearest(code, self._codes[inside], k),
                _nearest(code, self._codes[last + 1 : self._n], k),
            ]
            row = np.concatenate([parts[0][0], inside[parts[1][0]], last + 1 + parts[2][0]])
            distance = np.concatenate([p[1] for p in parts])
        order = np.lexsort((row, distance))[: max(k, 0)]
        return self._ids[row[order]], distance[order].astype(np.int32)


def _nearest(
    code: NDArray[np.uint8], codes: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows and distances of the k nearest codes, in no order among equals."""
    k = min(k, len(codes))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    with _one_thread():
        distances, rows = faiss.knn_hamming(code.reshape(1, -1), codes, k)
    return rows[0], distances[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let FAISS work in the calling thread alone.

    It shares queries out to threads, and here is one query: a second thread would only be waited
    for, 10 ms where the other cores are busy. The number is the calling thread's own.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _frozen(view: NDArray[_T]) -> NDArray[_T]:
    view.flags.writeable = False
    return view


def raw_faiss_search(codes: NDArray[np.uint8], k: int) -> Callable[[NDArray[np.uint8]], None]:
    """A bare `IndexBinaryFlat` over the codes, for benchmarks to stand beside.

    On one thread too, which is its best for one query.

    Returns:
        a function that searches one code, uint8 [64], and drops the answer.
    """
    index = faiss.IndexBinaryFlat(8 * CODE_BYTES)
    index.add(np.ascontiguousarray(codes))

    def search(code: NDArray[np.uint8]) -> None:
        with _one_thread():
            index.search(code.reshape(1, -1), k)

    return search
