"""Hamming search over packed codes, exact unless asked for otherwise.

The codes live in one growing array, 64 bytes a place, which FAISS scans in place. Rows are in the
order of their addition, so "everything but the recent past of this session" is nearly always a
prefix: the exclusion costs next to nothing and k candidates remain whatever is excluded.

In very large maps a structure of FAISS can stand for the scan of the first rows (parameter
`map.index`). Rows that are new are scanned until there are enough of them to be worth adding.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.index_backends import MIN_IVF, Nearest, Structure, build, check, scan
from hashvpr_ros.types import CODE_BYTES

_T = TypeVar("_T", bound=np.generic)
_GROWTH = 1.18  # more would waste memory on large maps, less would copy too often
_FIRST_ROWS = 1024
_COPIED_ROWS = 2048  # at a time, so that little memory is needed twice
# A structure gets new rows by so many: HNSW goes over all rows at each addition, however few come.
_STRUCTURE_BATCH = 16
# So many excluded rows are asked of a structure beside the k that are wanted. Where more are among
# the nearest, all rows are scanned.
_MOST_EXCLUDED = 1000


class HammingIndex:
    """Codes and, per row, what the exclusion of recent keyframes needs. Not thread-safe.

    Args:
        kind: what `build` makes to search by, see parameter `map.index`.

    Raises:
        ConfigError: that kind cannot be had here.
    """

    _names: tuple[str, ...] = ("_codes", "_ids", "_sessions", "_stamps", "_places")

    def __init__(self, kind: str = "exact") -> None:
        check(kind)
        self._n = 0
        self._used = 0  # rows that were ever written, of those that there is room for
        self._kind = kind
        self._structure: Structure | None = None
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
    def sessions(self) -> NDArray[np.int32]:
        """The number of the session of each row, int32 [n], a read-only view."""
        return _frozen(self._sessions[: self._n])

    @property
    def places(self) -> NDArray[np.int32]:
        """The place of each row, ascending, int32 [n], a read-only view.

        Rows of one session and stamp that follow one another are the views of several cameras at
        one place. It has the number that its first view's id would be if there were but one view
        of each place before: neighbours along a session differ by one, whatever the cameras.
        """
        return _frozen(self._places[: self._n])

    @property
    def in_use(self) -> str:
        """What searches: the kind that was asked for, or why another does."""
        if self._kind == "ivf" and self._structure is None:
            return f"exact (ivf where {MIN_IVF:,} keyframes are loaded)"
        return self._kind

    @property
    def nbytes(self) -> int:
        """Resident memory, in bytes; room that was never written to is not resident."""
        structure = 0 if self._structure is None else self._structure.nbytes
        return self._used * self._column_bytes + structure

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row: code, id, session, stamp, place, and its share of a structure."""
        structure = 0 if self._structure is None else self._structure.bytes_per_row
        return self._column_bytes + structure

    @property
    def _column_bytes(self) -> int:
        columns = [getattr(self, name) for name in self._names]
        return int(sum(a.itemsize * int(np.prod(a.shape[1:], dtype=int)) for a in columns))

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that a load of known size copies nothing."""
        if rows <= len(self._ids):
            return
        for name in self._names:
            old = getattr(self, name)
            new = np.empty((rows, *old.shape[1:]), old.dtype)
            new[: self._n] = old[: self._n]
            setattr(self, name, new)
        self._used = self._n

    def build(self) -> None:
        """Build the structure over the rows that there are; for after a load."""
        self._structure = build(self._kind, self.codes)

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
        self._used = max(self._used, end)
        structure = self._structure
        if structure is not None and end - len(structure) >= _STRUCTURE_BATCH:
            structure.add(self._codes[len(structure) : end])

    def remove(self, rows: NDArray[np.integer]) -> None:
        """Let rows go, but not the last; those after them move up. Without a structure only.

        Args:
            rows: row numbers, ascending.
        """
        keep = np.ones(self._n, bool)
        keep[rows] = False
        for name in self._names:
            column, end = getattr(self, name), 0
            for begin in range(0, self._n, _COPIED_ROWS):
                part = slice(begin, min(begin + _COPIED_ROWS, self._n))
                kept = column[part][keep[part]]
                column[end : end + len(kept)] = kept
                end += len(kept)
        self._n -= len(rows)
        # Where the first row of a session went, the search for its others begins a bit early.
        self._first_row = {
            session: first - int(np.searchsorted(rows, first))
            for session, first in self._first_row.items()
        }

    def emptied(self) -> HammingIndex:
        """An index of the same kind that holds nothing."""
        new = HammingIndex(self._kind)
        new.build()
        return new

    def rows_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The row of each id, int64 [n]; -1 for those that are not there."""
        if not self._n:
            return np.full(len(ids), -1, np.int64)
        rows = np.minimum(_find(self._ids[: self._n], ids), self._n - 1)
        return np.where(self._ids[rows] == ids, rows, -1)

    def places_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The place of each id, int64 [n].

        That of an id which is not there follows from the row before it, and is exact unless one
        of the ids between is a second view of one place.
        """
        asked = np.asarray(ids, np.int64)
        if not self._n:
            return asked
        rows = _find(self._ids[: self._n], asked, "right") - 1
        return asked - np.where(rows < 0, 0, self._ids[rows] - self._places[rows])

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
        """Sessions of places, int32 [n]: -1 for places that never were there, or are excluded.

        A place that has gone from between two of one session is still one where a robot can be:
        without it no belief could move along a session of which keyframes were left out.

        Args:
            places: in any order.
            session, stamp_ns: what `excluded_rows` excludes; None: nothing.
        """
        if not self._n:
            return np.full(len(places), -1, np.int32)
        held = self._places[: self._n]
        after = np.minimum(_find(held, places), self._n - 1)
        before = np.maximum(_find(held, places, "right") - 1, 0)
        sessions = self._sessions[after]
        absent = (self._sessions[before] != sessions) | (places < held[0]) | (places > held[-1])
        if stamp_ns is not None:
            absent |= (sessions == session) & (self._stamps[after] > stamp_ns)
        sessions[absent] = -1
        return sessions

    def views_of(self, place: int) -> NDArray[np.int32]:
        """Ids of the keyframes of a place, or, where it has gone, of the nearest that is left."""
        if self.sessions_of(np.array([place]), 0, None)[0] < 0:
            return np.empty(0, np.int32)
        held = self._places[: self._n]
        after = int(np.searchsorted(held, place))
        near = held[max(after - 1, 0) : after + 1]
        nearest = near[np.argmin(np.abs(near.astype(np.int64) - place))]
        first, end = np.searchsorted(held, [nearest, nearest + 1])
        return self._ids[first:end].copy()

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
        if excluded is None:
            excluded = np.empty(0, np.int64)
        k = max(k, 0)
        first = 0 if self._structure is None else len(self._structure)
        found = self._ask(code, k, excluded[: np.searchsorted(excluded, first)])
        if found is None:
            first, found = 0, (np.empty(0, np.int64), np.empty(0, np.int32))
        new = self._scan(code, k, first, excluded[np.searchsorted(excluded, first) :])
        row, distance = np.concatenate([found[0], new[0]]), np.concatenate([found[1], new[1]])
        order = np.lexsort((row, distance))[:k]
        return self._ids[row[order]], distance[order].astype(np.int32)

    def _ask(self, code: NDArray[np.uint8], k: int, excluded: NDArray[np.int64]) -> Nearest | None:
        """Near rows by the structure; None where it finds fewer than there are."""
        if self._structure is None or not k:
            return None
        ask = k + min(len(excluded), _MOST_EXCLUDED)
        rows, distances = self._structure.search(code, ask)
        left = ~np.isin(rows, excluded)
        if int(left.sum()) < min(k, len(self._structure) - len(excluded)):
            return None
        return rows[left], distances[left]

    def _scan(
        self, code: NDArray[np.uint8], k: int, begin: int, excluded: NDArray[np.int64]
    ) -> Nearest:
        """The nearest of the rows from `begin` on; excluded ones lie there."""
        if not len(excluded):
            rows, distances = scan(code, self._codes[begin : self._n], k)
            return begin + rows, distances
        # What is excluded is one stretch of rows but for the disorder between cameras, so that two
        # scans without a copy and one of a few rows find all the others.
        first, last = int(excluded[0]), int(excluded[-1])
        between = np.ones(last - first, bool)
        between[excluded[:-1] - first] = False
        inside = first + np.flatnonzero(between)
        before = scan(code, self._codes[begin:first], k)
        within = scan(code, self._codes[inside], k)
        after = scan(code, self._codes[last + 1 : self._n], k)
        return (
            np.concatenate([begin + before[0], inside[within[0]], last + 1 + after[0]]),
            np.concatenate([before[1], within[1], after[1]]),
        )


def _find(
    column: NDArray[np.int32], asked: NDArray[np.integer], side: Literal["left", "right"] = "left"
) -> NDArray[np.int64]:
    """`np.searchsorted`, which for numbers of another type would copy the column first.

    What is no int32 is found anywhere: compare what is there with what was asked.
    """
    return np.searchsorted(column, asked.astype(np.int32, copy=False), side)


def _frozen(view: NDArray[_T]) -> NDArray[_T]:
    view.flags.writeable = False
    return view
