"""What the back end said of closures: those that it rejected are not offered again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.matching.distinct import NEAR_KEYFRAMES, NEAR_NS
from hashvpr_ros.matching.odometer import Odometer

# Closures that a verdict may still come for.
_REMEMBERED = 10_000
# Rejected pairs that are kept from being offered; the oldest make room.
_MOST_REJECTED = 10_000


@dataclass(frozen=True)
class Closure:
    """An accepted match, as long as a verdict may come for it."""

    stamp_ns: int  # of the query
    instant_ns: int  # stamp of the instant that it is of
    camera: str
    match_id: int  # keyframe
    match_place: int
    log_odds: float | None  # that it is right, uncalibrated; None where calibration does not apply
    query_place: int = 0  # that was made of the query; 0: none


class Verdicts:
    """Remembers what was accepted, and which pairs of places were rejected then."""

    def __init__(self) -> None:
        self._closures: OrderedDict[tuple[int, str, int], Closure] = OrderedDict()
        self._rejected = np.empty((0, 3), np.int64)  # instant and place of the query, match

    def accepted(self, closure: Closure) -> None:
        """Remember a match that was accepted, or what became of its query."""
        self._closures[closure.stamp_ns, closure.camera, closure.match_id] = closure
        if len(self._closures) > _REMEMBERED:
            self._closures.popitem(last=False)

    def find(self, stamp_ns: int, camera: str, match_id: int) -> Closure | None:
        """The accepted match of an image; None: there was none, or too long ago."""
        return self._closures.get((stamp_ns, camera, match_id))

    def reject(self, closure: Closure) -> bool:
        """Never offer this pair of places again; False where it was rejected already."""
        row = [closure.instant_ns, closure.query_place, closure.match_place]
        if (self._rejected == row).all(1).any():
            return False
        self._rejected = np.concatenate([self._rejected[1 - _MOST_REJECTED :], [row]])
        return True

    def barred(
        self, places: NDArray[np.integer], stamp_ns: int, odometer: Odometer
    ) -> NDArray[np.bool_]:
        """Which places were rejected as that where the robot is, bool [n].

        It is at the place of a rejected query for some seconds, and where odometry, with the
        closures that stand, has it back at the place that was made of that query.
        """
        if not len(self._rejected):
            return np.zeros(len(places), bool)
        stamps, queries, matches = self._rejected.T
        here = np.abs(stamps - stamp_ns) <= NEAR_NS
        here |= odometer.here(queries)
        near = np.abs(np.asarray(places)[:, np.newaxis] - matches[here]) <= NEAR_KEYFRAMES
        return np.asarray(near.any(1))
