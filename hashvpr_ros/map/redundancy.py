"""Which keyframes of a map show what others show already."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.edit import Progress, no_progress
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.loading import Columns
from hashvpr_ros.map.nearness import Nearness, bits_apart


@dataclass(frozen=True)
class Redundancy:
    """What `find_redundant` found, for each keyframe."""

    distance_bits: NDArray[np.int32]  # to the nearest that stays, of the same session if there is
    other_session: NDArray[np.bool_]  # none of its own session is near
    order: NDArray[np.int64]  # rows of those that can go, most redundant first


def find_redundant(
    columns: Columns, nearness: Nearness, progress: Progress = no_progress
) -> Redundancy:
    """Go through the keyframes from the oldest on: one that is near one that stays can go.

    So each that goes has one near it that stays, whatever else goes. Near are keyframes of one
    camera in code and, where both have poses in one frame, in position and angle; one with a pose
    is not compared with one without or in another frame. In the order to go, those come first
    that are near one of their own session, then by Hamming distance, then the newest.

    Args:
        progress: called for each keyframe.
    """
    distances = np.full(len(columns), -1, np.int32)
    other = np.zeros(len(columns), bool)
    age = np.lexsort((columns.ids, columns.stamps_ns))
    groups: dict[tuple[str, str | None], _Staying] = {}
    for row in age.tolist():
        camera, frame_id = columns.cameras[row], columns.frame_ids[row]
        if (camera, frame_id) not in groups:
            groups[camera, frame_id] = (
                _StayingByCode(columns, nearness)
                if frame_id is None
                else _StayingByPose(columns, nearness)
            )
        group = groups[camera, frame_id]
        if found := group.nearest(row):
            other[row], distances[row] = found
        else:
            group.add(row)
        progress()
    newest_first = np.empty(len(columns), np.int64)
    newest_first[age] = -np.arange(len(columns))
    order = np.lexsort((newest_first, distances, other))
    return Redundancy(distances, other, order[distances[order] >= 0])


class _Staying(Protocol):
    """Keyframes of one camera that stay, all with poses in one frame or all without."""

    def nearest(self, row: int) -> tuple[bool, int] | None:
        """Whether the nearest is of another session, and its distance in bits; None: no near."""
        ...

    def add(self, row: int) -> None:
        """Let a keyframe stay."""
        ...


class _StayingByCode:
    """Finds near ones by their codes alone."""

    def __init__(self, columns: Columns, nearness: Nearness) -> None:
        self._columns = columns
        self._nearness = nearness
        self._all = HammingIndex()
        self._of_session: dict[int, HammingIndex] = {}

    def nearest(self, row: int) -> tuple[bool, int] | None:
        own = self._of_session.get(int(self._columns.sessions[row]), HammingIndex())
        for index, other_session in ((own, False), (self._all, True)):
            if other_session and len(own) == len(self._all):
                break  # they are the same
            _, distance = index.search(self._columns.codes[row], 1)
            if len(distance) and distance[0] <= self._nearness.within_bits:
                return other_session, int(distance[0])
        return None

    def add(self, row: int) -> None:
        session = self._columns.sessions[row : row + 1]
        for index in (self._all, self._of_session.setdefault(int(session[0]), HammingIndex())):
            number = np.array([len(index) + 1], np.int32)
            stamp = self._columns.stamps_ns[row : row + 1]
            index.add(self._columns.codes[row : row + 1], number, session, stamp)


class _StayingByPose:
    """Finds near ones in a grid of positions, and compares the codes of these few."""

    def __init__(self, columns: Columns, nearness: Nearness) -> None:
        self._columns = columns
        self._nearness = nearness
        self._cell_m = max(nearness.within_m, 0.01)
        self._least_dot = math.cos(min(nearness.within_rad, math.pi) / 2) - 1e-12
        self._cells: dict[tuple[int, ...], list[int]] = {}

    def nearest(self, row: int) -> tuple[bool, int] | None:
        around: list[int] = []
        for cell in self._around(row):
            around += self._cells.get(cell, ())
        rows = np.array(around, np.int64)
        columns = self._columns
        poses, pose = columns.poses[rows], columns.poses[row]
        with np.errstate(over="ignore", invalid="ignore"):  # there are maps of far places
            rows = rows[np.linalg.norm(poses[:, :3] - pose[:3], axis=1) <= self._nearness.within_m]
        turned = _unit(columns.poses[rows, 3:]) @ _unit(pose[np.newaxis, 3:])[0]
        rows = rows[np.abs(turned) >= self._least_dot]
        bits = bits_apart(columns.codes[rows], columns.codes[row])
        near = bits <= self._nearness.within_bits
        rows, bits = rows[near], bits[near]
        if not len(rows):
            return None
        own = columns.sessions[rows] == columns.sessions[row]
        return (False, int(bits[own].min())) if own.any() else (True, int(bits.min()))

    def add(self, row: int) -> None:
        self._cells.setdefault(self._cell(row), []).append(row)

    def _cell(self, row: int) -> tuple[int, ...]:
        cells = self._columns.poses[row, :3].clip(-1e300, 1e300) / self._cell_m
        return tuple(math.floor(v) for v in cells.tolist())

    def _around(self, row: int) -> Iterator[tuple[int, ...]]:
        steps = ((v - 1, v, v + 1) for v in self._cell(row))
        return itertools.product(*steps)


def _unit(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternions [n, 4] of length 1; what the map holds need not be."""
    scaled = quaternions / np.abs(quaternions).max(axis=1, keepdims=True)  # squares could overflow
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
