"""What is right: places near by distance and angle, or those that a dataset names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.types import Pose


class Truth(Protocol):
    """Judges the matches of a run. None means that the ground truth does not say."""

    def possible(self, stamp: int) -> bool | None:
        """Whether the map holds the place of the image of a stamp."""
        ...

    def right(self, stamp: int, match_stamp: int) -> bool | None:
        """Whether the match of an image with another, each given by its stamp, is right."""
        ...


class TruthByPose:
    """Right is what was taken near here and looking the same way.

    What has no pose is unknown, neither right nor wrong.

    Args:
        pose_at: exact pose of an image by stamp, None where it is not known.
        stamps: of all images that the map may hold.
        exclude_recent_s: what is younger than this is no revisit; None: every image counts, for
            a map that was made before.
        radius_m, angle_rad: what is within both of a place shows it.
    """

    def __init__(
        self,
        pose_at: Callable[[int], Pose | None],
        stamps: Iterable[int],
        exclude_recent_s: float | None,
        radius_m: float = 4.0,
        angle_rad: float = math.radians(40),
    ) -> None:
        self._pose_at = pose_at
        self._recent_ns = None if exclude_recent_s is None else round(exclude_recent_s * 1e9)
        self.radius_m, self.angle_rad = radius_m, angle_rad
        known = [(s, p) for s in sorted(set(stamps)) if (p := pose_at(s)) is not None]
        self._stamps = np.array([s for s, _ in known], np.int64)
        self._positions = np.array([p.position_m for _, p in known]).reshape(-1, 3)
        self._turns = np.array([p.orientation for _, p in known]).reshape(-1, 4)
        # Cells as wide as the radius: what is near is in one of the 27 around.
        self._cells: dict[tuple[int, ...], list[int]] = {}
        for i, cell in enumerate(self._cell_of(self._positions)):
            self._cells.setdefault(tuple(cell.tolist()), []).append(i)

    def _cell_of(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.floor(positions / max(self.radius_m, 1e-9)).astype(np.int64)

    def near(self, a: int, b: int) -> bool | None:
        """Whether the images stamped a and b show the same place; None without both poses."""
        p, q = self._pose_at(a), self._pose_at(b)
        if p is None or q is None:
            return None
        return bool(self._near(p, np.array([q.position_m]), np.array([q.orientation]))[0])

    def _near(
        self, pose: Pose, positions: NDArray[np.float64], turns: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        return near_poses(pose, positions, turns, self.radius_m, self.angle_rad)

    def possible(self, stamp: int) -> bool | None:
        """Whether an image with a pose shows the place, outside the excluded recent past."""
        pose = self._pose_at(stamp)
        if pose is None:
            return None
        x, y, z = self._cell_of(np.array([pose.position_m]))[0].tolist()
        around = [
            i
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
            for dz in (-1, 0, 1)
            for i in self._cells.get((x + dx, y + dy, z + dz), ())
        ]
        rows = np.array(around, int)
        if self._recent_ns is not None:
            rows = rows[self._stamps[rows] <= stamp - self._recent_ns]
        return bool(self._near(pose, self._positions[rows], self._turns[rows]).any())

    def right(self, stamp: int, match_stamp: int) -> bool | None:
        """Whether a match is right; None without both poses."""
        return self.near(stamp, match_stamp)


def near_poses(
    pose: Pose,
    positions: NDArray[np.float64],
    turns: NDArray[np.float64],
    radius_m: float,
    angle_rad: float,
) -> NDArray[np.bool_]:
    """Which poses show the place of one, bool [n].

    Args:
        positions, turns: metres [n, 3] and unit quaternions [n, 4], in the frame of `pose`.
        radius_m, angle_rad: what is within both does.
    """
    cosine = np.abs(turns @ np.array(pose.orientation))  # of half the angle
    distance = np.linalg.norm(positions - np.array(pose.position_m), axis=1)
    angle = 2 * np.arccos(np.minimum(1.0, cosine))
    near: NDArray[np.bool_] = (distance <= radius_m) & (angle <= angle_rad)
    return near


@dataclass(frozen=True)
class TruthByStamp:
    """Right are the images that a dataset names, each known by its stamp."""

    correct: Mapping[int, set[int]]  # of each query, by its stamp: stamps of its correct matches
    revisits: set[int]  # stamps of the queries whose place the map holds

    def possible(self, stamp: int) -> bool | None:
        """Whether the map holds the place of the query; None of an image that is no query."""
        return stamp in self.revisits if stamp in self.correct else None

    def right(self, stamp: int, match_stamp: int) -> bool | None:
        """Whether a match is right; None of an image that is no query."""
        return match_stamp in self.correct[stamp] if stamp in self.correct else None
