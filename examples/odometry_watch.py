"""Tells odometry that goes on from odometry that began anew, and passes over stray messages."""

from __future__ import annotations

import math
from enum import Enum

from hashvpr_ros.types import Pose

_FASTEST_MPS = 50.0
_SLACK_M = 1.0  # visual odometry corrects itself in small steps
_LONGEST_GAP_NS = 10 * 10**9
_LATE_NS = 10**9
_FURTHEST_M = 1e8  # UTM coordinates reach 1e7; beyond, a float64 loses its millimetres


class Seen(Enum):
    """What a message of odometry is."""

    NEXT = "next"  # it goes on from the last
    JUMPED = "jumped"  # it counts from elsewhere: what it measures begins anew
    RESTARTED = "restarted"  # the clock stepped back: what was stamped before is of another time
    PASSED_OVER = "passed over"


class OdometryWatch:
    """Compares each message with the last one that counted.

    One that does not go on from it, by stamp or by position, counts only when the next one goes on
    from that one: a single message of nowhere changes nothing.
    """

    def __init__(self) -> None:
        self._last: tuple[int, Pose] | None = None
        self._stray: tuple[int, Pose] | None = None

    def see(self, stamp_ns: int, pose: Pose) -> Seen:
        """Judge the next message."""
        if not pose.is_valid() or max(map(abs, pose.position_m)) > _FURTHEST_M:
            return Seen.PASSED_OVER
        new = stamp_ns, pose
        if self._last is None or _goes_on(self._last, new):
            seen = Seen.NEXT
        elif 0 <= self._last[0] - stamp_ns <= _LATE_NS:
            return Seen.PASSED_OVER  # the same again, or overtaken on the way
        elif self._stray is None or not _goes_on(self._stray, new):
            self._stray = new
            return Seen.PASSED_OVER
        elif stamp_ns < self._last[0]:
            seen = Seen.RESTARTED
        elif _is_within_reach(self._last, new):
            seen = Seen.NEXT  # after a long silence
        else:
            seen = Seen.JUMPED
        self._last, self._stray = new, None
        return seen


def _goes_on(first: tuple[int, Pose], second: tuple[int, Pose]) -> bool:
    gap_ns = second[0] - first[0]
    return 0 < gap_ns <= _LONGEST_GAP_NS and _is_within_reach(first, second)


def _is_within_reach(first: tuple[int, Pose], second: tuple[int, Pose]) -> bool:
    way_m = math.dist(first[1].position_m, second[1].position_m)
    return way_m <= _FASTEST_MPS * (second[0] - first[0]) / 1e9 + _SLACK_M
