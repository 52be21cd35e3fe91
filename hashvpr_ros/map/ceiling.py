"""An index that stays under a ceiling of memory: the least informative keyframes leave it.

They leave the index alone; the file keeps them. A keyframe says little where another shows nearly
the same from nearly the same viewpoint. Two orders bring such pairs side by side: the keyframes of
one camera along a session, and those of one camera whose poses fall into one cell of a grid. No
pair is found by its codes alone: distant places that look alike do not displace each other.

When the ceiling is reached, an eighth of the rows leaves at once. The pairs are gone through from
the most alike on: the newer leaves, and the older stays whatever else leaves this time. So nothing
leaves without a neighbour that stays, dense stretches lose most, and none loses more than every
second row at a time. It costs time in proportion to the rows, once in an eighth of them: per
keyframe it is the same in every map.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.nearness import Nearness, bits_apart
from hashvpr_ros.map.rows import Row

_MB = 10**6
_NEAR = Nearness()
_LEAVING = 8  # one in so many rows leaves at once
_NEWEST_STAY = 64  # one in so many stays as the newest: what was just added is in use
_CHUNK = 1024  # pairs at a time
_REACH = 3  # keyframes half a metre apart are two a cell and lap
_NONE = 0xFFFF
# Pairs that are looked at for each row that must leave: a row has two neighbours in each order, so
# that a pair which was taken stands in the way of six others at most.
_PAIRS_A_ROW = 8
# What choosing needs for a moment, or codes that are copied to where there is more room: for each
# row, and beside. A test measures it.
_SCRATCH_BYTES, _SCRATCH_MB = 64, 0.4


def new_index(kind: str, max_mb: int) -> HammingIndex:
    """An empty index, for the parameters `map.index` and `map.max_index_mb`.

    Raises:
        ConfigError: such an index cannot be had here.
    """
    if not max_mb:
        return HammingIndex(kind)
    if kind != "exact":
        raise ConfigError(
            f"map.max_index_mb {max_mb}: index {kind} cannot let keyframes go, and takes more "
            "memory than exact; set map.index to exact, or map.max_index_mb to 0"
        )
    return BoundedIndex(max_mb)


@dataclass(frozen=True)
class Views:
    """By which camera and from where each of some keyframes was seen."""

    cameras: Sequence[str]  # [n]
    frame_ids: Sequence[str | None]  # [n], None without a pose
    poses: NDArray[np.float64]  # [n, 7]: x, y, z in metres, qx, qy, qz, qw; NaN without a pose

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Views:
        """Those of keyframes that are to be written."""
        poses = np.full((len(rows), 7), np.nan)
        for values, row in zip(poses, rows, strict=True):
            if row.pose is not None:
                values[:] = (*row.pose.position_m, *row.pose.orientation)
        frames = [None if r.pose is None else r.pose.frame_id for r in rows]
        return cls([r.camera for r in rows], frames, poses)

    def cells(self) -> NDArray[np.int32]:
        """A number for the cell of frame, position and orientation, int32 [n]; 0 without a pose.

        Two cells have one number so rarely that it does not matter.
        """
        posed = np.array([f is not None for f in self.frame_ids], bool)
        turn = self.poses[posed, 3:]
        turn = turn / np.abs(turn).max(axis=1, keepdims=True)  # squares could overflow
        turn /= np.linalg.norm(turn, axis=1, keepdims=True)
        # A quaternion and its opposite are one orientation.
        largest = np.abs(turn).argmax(axis=1)[:, np.newaxis]
        turn *= np.where(np.take_along_axis(turn, largest, axis=1) < 0, -1.0, 1.0)
        # An angle turns the quaternion by half of it.
        where = [self.poses[posed, :3] / _NEAR.within_m, turn / (_NEAR.within_rad / 2)]
        grid = np.rint(np.concatenate(where, axis=1).clip(-1e15, 1e15)).astype(np.int64)
        names = [zlib.crc32(f.encode()) for f in self.frame_ids if f is not None]
        hashes = np.array(names, np.uint64)
        for column in grid.T.astype(np.uint64):
            hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(32)
        cells = np.zeros(len(posed), np.int32)
        cells[posed] = 1 + (hashes >> np.uint64(33)).astype(np.int64) % (2**31 - 1)
        return cells


class BoundedIndex(HammingIndex):
    """A `HammingIndex` that leaves keyframes out rather than grow beyond a ceiling.

    Args:
        max_mb: ceiling of its resident memory in 10^6 bytes, what it needs for a moment included.
    """

    _names = (*HammingIndex._names, "_cameras", "_cells")

    def __init__(self, max_mb: int) -> None:
        super().__init__()
        self._max_mb = max_mb
        self._cameras = np.empty(0, np.int16)
        self._cells = np.empty(0, np.int32)
        self._camera_numbers: dict[str, int] = {}
        room = int((max_mb - _SCRATCH_MB) * _MB)
        self.most_rows = room // (self.bytes_per_row + _SCRATCH_BYTES)
        self.left_out = 0  # keyframes of the map that are not in the index

    def emptied(self) -> BoundedIndex:
        return BoundedIndex(self._max_mb)

    def reserve(self, rows: int) -> None:
        super().reserve(min(rows, self.most_rows))

    def add_seen(
        self,
        codes: NDArray[np.uint8],
        ids: NDArray[np.int32],
        sessions: NDArray[np.int32],
        stamps_ns: NDArray[np.int64],
        views: Views,
    ) -> None:
        """Append rows, see `add`; where there is no room for them, others leave first."""
        cells, cameras = views.cells(), self._numbers(views.cameras)
        at_once = max(1, self.most_rows // _LEAVING)
        for begin in range(0, len(ids), at_once):
            part = slice(begin, begin + at_once)
            count = len(ids[part])
            if len(self) + count > self.most_rows:
                self._leave_out(at_once)
            self.add(codes[part], ids[part], sessions[part], stamps_ns[part])
            self._cameras[len(self) - count : len(self)] = cameras[part]
            self._cells[len(self) - count : len(self)] = cells[part]

    def _numbers(self, cameras: Sequence[str]) -> NDArray[np.int16]:
        known = self._camera_numbers
        return np.array([known.setdefault(c, len(known) % 2**15) for c in cameras], np.int16)

    def _leave_out(self, count: int) -> None:
        """Let `count` rows go, the least informative first."""
        taken = np.zeros(len(self), bool)  # is to go, or to stay as the neighbour of one that goes
        leaving = np.zeros(len(self), bool)
        last = len(self) - 1 - self.most_rows // _NEWEST_STAY
        left = count
        for older, newer in self._pairs(_PAIRS_A_ROW * count):
            for stays, goes in zip(older.tolist(), newer.tolist(), strict=True):
                if left and goes < last and not taken[stays] and not taken[goes]:
                    taken[stays] = taken[goes] = leaving[goes] = True
                    left -= 1
            if not left:
                break
        if left:  # next to no keyframe has a neighbour: thin them evenly
            others = np.flatnonzero(~taken[: max(last, 1)])
            leaving[others[np.linspace(0, len(others) - 1, left).astype(np.int64)]] = True
        self.remove(np.flatnonzero(leaving))
        self.left_out += int(leaving.sum())

    def _pairs(self, count: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The `count` pairs of neighbours that are most alike, those first.

        Yields:
            rows of the older and of the newer, [m] each.
        """
        # Sessions are numbered from 1 on.
        sessions, cells = self._pairs_of(self._sessions, 1), self._pairs_of(self._cells, _REACH)
        first, second = (np.concatenate([sessions[i], cells[i]]) for i in (0, 1))
        bits = np.concatenate([sessions[2], cells[2]])
        del sessions, cells
        # Pairs equally alike come in an order that has nothing to do with where they are.
        ranks = (bits.astype(np.uint32) << 16) | (first.astype(np.uint16) * np.uint16(40503))
        del bits
        near = np.arange(len(ranks))
        if len(ranks) > count:
            near = np.argpartition(ranks, count)[:count].copy()
        near = near[np.argsort(ranks[near], kind="stable")]
        for begin in range(0, len(near), _CHUNK):
            part = near[begin : begin + _CHUNK]
            yield first[part], second[part]

    def _pairs_of(
        self, groups: NDArray[np.int32], reach: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
        """Each row and the most alike of the next few of its group and camera; no group is 0.

        Returns:
            rows of the older and of the newer, and their distance in bits, [m] each.
        """
        rows = np.flatnonzero(groups[: len(self)]).astype(np.int32)
        keys = (groups[rows].astype(np.int64) << 16) | self._cameras[rows]
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        del order
        second, bits = rows.copy(), np.full(len(rows), _NONE, np.uint16)
        for begin in range(0, len(rows), _CHUNK):
            for step in range(1, reach + 1):
                at = np.arange(begin, min(begin + _CHUNK, len(rows) - step))
                at = at[keys[at] == keys[at + step]]
                apart = bits_apart(self._codes[rows[at]], self._codes[rows[at + step]])
                nearer = apart < bits[at]
                at = at[nearer]
                second[at], bits[at] = rows[at + step], apart[nearer]
        found = bits != _NONE
        return rows[found], second[found], bits[found]
