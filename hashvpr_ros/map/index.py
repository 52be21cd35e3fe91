"""Exact Hamming search over packed codes: the only module that imports faiss.

The codes live in one growing array, 64 bytes a place, and FAISS scans a prefix of it. Rows are in
the order of their addition, so "everything but the recent past of this session" is a prefix: the
exclusion costs nothing and k candidates remain whatever is excluded.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.types import CODE_BYTES

_GROWTH = 1.25  # more would waste memory on large maps, less would copy too often
_FIRST_ROWS = 1024


class HammingIndex:
    """Codes and, per row, what the exclusion of recent keyframes needs. Not thread-safe."""

    def __init__(self) -> None:
        self._n = 0
        self._codes = np.empty((0, CODE_BYTES), np.uint8)
        self._ids = np.empty(0, np.int32)
        self._sessions = np.empty(0, np.int32)
        self._stamps = np.empty(0, np.int64)

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
    def nbytes(self) -> int:
        """Resident memory, in bytes."""
        arrays = (self._codes, self._ids, self._sessions, self._stamps)
        return int(sum(a.nbytes for a in arrays))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row: code, id, session, stamp."""
        arrays = (self._codes, self._ids, self._sessions, self._stamps)
        return int(sum(a.itemsize * int(np.prod(a.shape[1:], dtype=int)) for a in arrays))

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that a load of known size copies nothing."""
        if rows <= len(self._ids):
            return
        for name in ("_codes", "_ids", "_sessions", "_stamps"):
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
        if end > len(self._ids):
            self.reserve(max(end, _FIRST_ROWS, int(len(self._ids) * _GROWTH)))
        rows = slice(self._n, end)
        self._codes[rows] = codes
        self._ids[rows] = ids
        self._sessions[rows] = sessions
        self._stamps[rows] = stamps_ns
        self._n = end

    def rows_before(self, session: int, stamp_ns: int) -> int:
        """How many leading rows are free of keyframes of a session stamped after `stamp_ns`.

        Looks from the end backwards and only through the rows of that session, which is the
        one being recorded and so the last: the cost is that of the excluded part alone. Stamps of
        one session ascend but for the small disorder between cameras.
        """
        end = self._n
        while end > 0:
            begin = max(0, end - 256)
            recent = (self._sessions[begin:end] == session) & (self._stamps[begin:end] > stamp_ns)
            if not recent.any():
                break
            end = begin + int(np.argmax(recent))
        return end

    def search(
        self, code: NDArray[np.uint8], k: int, rows: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The k nearest of the first `rows` rows.

        Args:
            code: uint8 [64].

        Returns:
            ids int32 [<=k] and distances in bits int32 [<=k], by distance, then by id.
        """
        rows = self._n if rows is None else min(rows, self._n)
        k = min(k, rows)
        if k <= 0:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        distances, found = faiss.knn_hamming(code.reshape(1, -1), self._codes[:rows], k)
        distance, row = distances[0], found[0]
        order = np.lexsort((row, distance))
        return self._ids[row[order]], distance[order].astype(np.int32)


def _frozen(view: NDArray) -> NDArray:
    view.flags.writeable = False
    return view


def raw_faiss_search(codes: NDArray[np.uint8], k: int) -> Callable[[NDArray[np.uint8]], None]:
    """A bare `IndexBinaryFlat` over the codes, for benchmarks to stand beside.

    Returns:
        a function that searches one code, uint8 [64], and drops the answer.
    """
    index = faiss.IndexBinaryFlat(8 * CODE_BYTES)
    index.add(np.ascontiguousarray(codes))

    def search(code: NDArray[np.uint8]) -> None:
        index.search(code.reshape(1, -1), k)

    return search
