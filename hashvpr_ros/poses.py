"""Poses by stamp, as odometry or a bag gives them: interpolated, normalised, waited for."""

from __future__ import annotations

import bisect
import math
import operator
import threading

from hashvpr_ros.types import Pose

_KEEP = 2000  # poses: some seconds at any rate that odometry has
_JUMP_NS = 1_000_000_000  # a track that steps back further than this was restarted


class PoseTrack:
    """Poses by stamp, interpolated. Safe to use from several threads.

    Args:
        keep: so many of the newest; 0: all.
    """

    def __init__(self, keep: int = _KEEP) -> None:
        self._changed = threading.Condition()
        self._keep = keep
        self._stamps: list[int] = []
        self._poses: list[Pose] = []
        self._in_vain = False  # the last wait saw no pose come
        self.invalid = 0  # poses with NaN, infinity or a zero quaternion, which were left out

    def add(self, stamp_ns: int, pose: Pose) -> None:
        """Add a pose; one that steps far back in time starts the track anew."""
        if not pose.is_valid():
            self.invalid += 1
            return
        with self._changed:
            self._in_vain = False
            if self._stamps and stamp_ns < self._stamps[-1] - _JUMP_NS:
                self._stamps.clear()
                self._poses.clear()
            at = bisect.bisect_right(self._stamps, stamp_ns)
            self._stamps.insert(at, stamp_ns)
            self._poses.insert(at, unit(pose))
            self._changed.notify_all()
            # In one go: deleting the first of a list each time would move all others.
            if self._keep and len(self._stamps) > 2 * self._keep:
                del self._stamps[: -self._keep], self._poses[: -self._keep]

    def at(self, stamp_ns: int, max_age_s: float, wait_s: float = 0.0) -> Pose | None:
        """Between two poses that are both near enough: interpolated; else the nearest.

        Args:
            stamp_ns: of an image.
            max_age_s: a pose that is further from it than this says nothing of it.
            wait_s: the longest to wait for a pose stamped then or later, so that the answer does
                not depend on which of two messages came first. Nobody waits while none come.
        """
        max_age_ns = round(max_age_s * 1e9)
        with self._changed:
            if wait_s > 0 and not self._in_vain and not self._reaches(stamp_ns):
                came = self._changed.wait_for(lambda: self._reaches(stamp_ns), wait_s)
                self._in_vain = not came
            after = bisect.bisect_left(self._stamps, stamp_ns)
            near = [
                (self._stamps[i], self._poses[i])
                for i in (after - 1, after)
                if 0 <= i < len(self._stamps) and abs(self._stamps[i] - stamp_ns) <= max_age_ns
            ]
        if not near:
            return None
        (t0, first), (t1, second) = near[0], near[-1]
        if t1 == stamp_ns or t0 == t1:
            return second
        return interpolate(first, second, (stamp_ns - t0) / (t1 - t0))

    def gap_ns(self, stamp_ns: int) -> int | None:
        """How far the nearest pose is from a stamp, negative: before it. None: there is none."""
        with self._changed:
            at = bisect.bisect_left(self._stamps, stamp_ns)
            near = [s - stamp_ns for s in self._stamps[max(0, at - 1) : at + 1]]
        return min(near, key=abs) if near else None

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """The stamps of the first and the last pose; None without any."""
        with self._changed:
            return (self._stamps[0], self._stamps[-1]) if self._stamps else None

    def _reaches(self, stamp_ns: int) -> bool:
        return bool(self._stamps) and self._stamps[-1] >= stamp_ns


def interpolate(first: Pose, second: Pose, share: float) -> Pose:
    """The pose at `share` (0 to 1) of the way: linear position, normalised linear orientation."""
    if first.frame_id != second.frame_id:
        return first if share < 0.5 else second
    sign = 1.0
    if sum(a * b for a, b in zip(first.orientation, second.orientation, strict=True)) < 0:
        sign = -1.0  # the same rotation on the other side of the sphere
    position = [
        a + share * (b - a) for a, b in zip(first.position_m, second.position_m, strict=True)
    ]
    q = [
        (1 - share) * a + share * sign * b
        for a, b in zip(first.orientation, second.orientation, strict=True)
    ]
    norm = math.sqrt(sum(v * v for v in q))
    if norm < 1e-9:
        return first if share < 0.5 else second
    x, y, z = position
    return Pose((x, y, z), (q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm), first.frame_id)


def unit(pose: Pose) -> Pose:
    """The same pose with a quaternion of length 1; an invalid one as it is."""
    norm = math.hypot(*pose.orientation)
    if not pose.is_valid() or not math.isfinite(norm):
        return pose
    x, y, z, w = (v / norm for v in pose.orientation)
    return Pose(pose.position_m, (x, y, z, w), pose.frame_id)


def apart_m(a: Pose | None, b: Pose | None) -> float | None:
    """Metres between two poses; None where one is missing or they are of different frames."""
    if a is None or b is None or a.frame_id != b.frame_id:
        return None
    return math.dist(a.position_m, b.position_m)


def turned_rad(a: Pose, b: Pose) -> float:
    """Angle between two orientations that are valid, normalised or not, 0 to pi."""
    # Each by its largest number first: squares of large numbers overflow.
    (p, q) = ([v / max(map(abs, o)) for v in o] for o in (a.orientation, b.orientation))
    cosine = abs(sum(map(operator.mul, p, q))) / (math.hypot(*p) * math.hypot(*q))
    return 2.0 * math.acos(min(1.0, cosine))
