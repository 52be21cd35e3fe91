"""A store behind an open batch: rows wait there to be written, and are read as if they were."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.rows import Row, feature_matrix
from hashvpr_ros.map.schema import MAX_ID, reading
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import Keyframe

MOST_KEPT = 4096

_A = TypeVar("_A")
_R = TypeVar("_R")


class BufferedStore:
    """Writes rows in batches. Its user takes care that one thread at a time uses it."""

    def __init__(self, store: Store, path: str, feature_dim: int, commit_period_s: float) -> None:
        self.waiting: dict[int, Row] = {}  # by id, ascending
        self.commit_period_s = commit_period_s
        self._store = store
        self._path = path
        self._feature_dim = feature_dim
        self._since = 0.0
        # Keyframes read of late: images that follow one another ask for nearly the same.
        self._kept: dict[int, Keyframe] = {}

    # Writing

    def add(self, rows: Iterable[Row]) -> None:
        """Put rows into the open batch; their ids follow those that are there."""
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting.update((r.id, r) for r in rows)

    def write(self) -> int:
        """Write the open batch; returns how many rows.

        Raises:
            MapError: nothing was written; the batch stays open.
        """
        if not self.waiting:
            return 0
        # Retried after another period, not at each call, where the disk stays full.
        self._since = time.monotonic()
        self._store.write(self.waiting.values())
        written = len(self.waiting)
        self.waiting = {}
        return written

    def is_due(self) -> bool:
        """Whether the open batch is `commit_period_s` old."""
        return bool(self.waiting) and time.monotonic() - self._since >= self.commit_period_s

    # Reading

    def read(self, read: Callable[[_A], _R], argument: _A) -> _R:
        """What a function reads from the file.

        Raises:
            MapError: it cannot be read, is damaged, or another program has written into it.
        """
        with reading(self._path):
            found = read(argument)
        self._store.check_unchanged()  # what was read before is of one file then
        return found

    def features(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Float features, in the order of the ids: float32 [n, D]. Quickest for ascending ids.

        Raises:
            MapError: an id that the map does not hold.
        """
        if not (ids[1:] > ids[:-1]).all():
            # Each once and ascending, as the file gives them: no dictionary is needed to order.
            ascending = np.argsort(ids)
            first = np.diff(ids[ascending], prepend=ids.min() - 1) > 0  # of its like
            place = np.empty(len(ids), np.intp)
            place[ascending] = np.cumsum(first) - 1
            return self.features(ids[ascending][first])[place]
        wanted = ids.tolist()
        # Ids ascend, so that what waits to be written is the end.
        written = bisect_left(wanted, next(iter(self.waiting), MAX_ID + 1))
        blobs: list[bytes] = []
        for chunk in chunks(wanted[:written]):
            blobs += self.read(self._store.features, chunk)
        if len(blobs) == written:
            blobs += [self.waiting[i].feature for i in wanted[written:] if i in self.waiting]
        with reading(self._path):
            if len(blobs) != len(wanted):
                self.keyframes(wanted)  # says which there is not
                raise ValueError("a feature is missing")
            return feature_matrix(blobs, self._feature_dim)

    def keyframes(self, ids: Sequence[int]) -> list[Keyframe]:
        """Keyframes in the order of the ids, each as a place of its own.

        Raises:
            MapError: an id that the map does not hold.
        """
        found = {
            i: Keyframe(i, row.session, row.camera, row.stamp_ns, row.pose)
            for i in ids
            if (row := self.waiting.get(i))
        }
        found |= {i: self._kept[i] for i in ids if i in self._kept}
        new: dict[int, Keyframe] = {}
        for chunk in chunks([i for i in ids if i not in found]):
            new |= {k.id: k for k in self.read(self._store.keyframes, chunk)}
        found |= new
        if len(self._kept) + len(new) > MOST_KEPT:
            self._kept = {}
        if len(new) <= MOST_KEPT:
            self._kept |= new
        missing = next((i for i in ids if i not in found), None)
        if missing is not None:
            raise MapError(f"{self._path}: there is no keyframe {missing}")
        return [found[i] for i in ids]

    def forget(self) -> None:
        """Read keyframes anew: those of the file are others from now on."""
        self._kept = {}

    def thumbnail(self, id_: int) -> bytes | None:
        """The JPEG of a keyframe, or None where none was stored."""
        if row := self.waiting.get(id_):
            return row.thumbnail
        return self.read(self._store.thumbnail, int(id_)) if 1 <= id_ <= MAX_ID else None


def chunks(ids: list[int], size: int = 512) -> Iterable[list[int]]:
    """SQLite allows a limited number of parameters a statement."""
    if len(ids) <= size:
        return (ids,) if ids else ()
    return (ids[i : i + size] for i in range(0, len(ids), size))
