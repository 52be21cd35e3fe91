"""What one camera has seen of late, and what that says of the place that it sees now.

Two kinds of evidence: a Bayes filter over the map's keyframes (`bayes`), and the share of the
preceding views that lead to a match (`sequence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.matching.bayes import LEAST_SHARE, FilterSettings, Motion, PlaceFilter, SessionsOf
from hashvpr_ros.matching.distinct import NEAR_KEYFRAMES, NEAR_M
from hashvpr_ros.matching.sequence import MAX_GAP_NS, SequenceMemory

# Without odometry an image is a witness of its own when its code differs by this much from that of
# the last one that counted: views that overlap more err alike.
_OWN_VIEW_BITS = 96
# With odometry, one this far away, in metres and radians.
_OWN_VIEW = 2.0, 1.4
_HEAVIEST = 16  # keyframes whose place's belief is added up


@dataclass(frozen=True)
class Place:
    """A stretch of the map by its likeliest keyframe."""

    keyframe_id: int
    mass: float  # belief that the image shows it, 0 to 1


class Track:
    """The past of one camera.

    Args:
        length: views remembered, see `SequenceMemory`.
        keyframes: how far apart the map's keyframes are.
        sessions_of: sessions of keyframes where the robot may be, see `PlaceFilter`.
    """

    def __init__(self, length: int, keyframes: KeyframeConfig, sessions_of: SessionsOf) -> None:
        self.views = SequenceMemory(length)
        self._spacing_m = max(keyframes.min_distance_m, 0.05)
        spacing_rad = max(keyframes.min_angle_rad, 0.05)
        self.filter = PlaceFilter(sessions_of, FilterSettings(self._spacing_m, spacing_rad))
        self._last_ns: int | None = None  # of the last image
        self._counted_ns = 0  # without odometry, of the last image that counted
        self._counted_code: NDArray[np.uint8] | None = None
        self._weight: float | None = None
        self._moved = 0.0  # since the last image that counted, as a share of an own view

    def begin(
        self,
        stamp_ns: int,
        code: NDArray[np.uint8],
        moved: tuple[float, float] | None,
        spacing_m: float | None = None,
    ) -> None:
        """Move the belief with the robot; call before an image is judged.

        Args:
            stamp_ns, code: of the image.
            moved: metres and radians since the last image, None where there is no odometry.
            spacing_m: between keyframes of the map, where it is known to be more than asked for:
                fast robots and slow cameras make fewer.
        """
        self.views.begin(stamp_ns)
        last_ns, self._last_ns = self._last_ns, stamp_ns
        if last_ns is not None and not 0 <= stamp_ns - last_ns <= MAX_GAP_NS:
            self.filter.reset()
            self._counted_code = last_ns = None
        if moved is not None and last_ns is not None:
            # Ids pass more slowly where keyframes are further apart; how far apart two views must
            # be to be two witnesses is a matter of metres.
            wider = max(1.0, (spacing_m or 0.0) / self._spacing_m)
            metres, radians = (v / wider for v in moved)
            self.filter.predict(Motion((stamp_ns - last_ns) / 1e9, metres, radians))
            self._moved += max(v / own for v, own in zip(moved, _OWN_VIEW, strict=True))
            self._weight = min(1.0, self._moved)
            if self._weight >= LEAST_SHARE:
                self._moved = 0.0
            return
        if self._counted_code is not None:
            if int(np.unpackbits(self._counted_code ^ code).sum()) < _OWN_VIEW_BITS:
                self._weight = 0.0
                return
            self.filter.predict(Motion((stamp_ns - self._counted_ns) / 1e9))
        self._weight, self._counted_code, self._counted_ns = 1.0, code, stamp_ns

    def update(self, ids: NDArray[np.integer], ratios: NDArray[np.float64]) -> None:
        """Weigh the belief by the candidates of the image; see `PlaceFilter.update`."""
        self.filter.update(ids, ratios, self._weight)

    def places(
        self, count: int, positions_of: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    ) -> list[Place]:
        """The likeliest places, best first.

        Args:
            count: at most.
            positions_of: metres, [n, 3], of keyframes by ids, NaN where not known: those that are
                near are one place, whose belief adds up over the laps of a robot.
        """
        ids = self.filter.support
        own, around = self.filter.belief(ids), self.filter.around(ids)
        positions = positions_of(ids)
        if not np.isnan(positions).all():
            for i in np.argsort(-own)[:_HEAVIEST].tolist():
                near = np.linalg.norm(positions - positions[i], axis=1) <= NEAR_M
                around[i] = min(1.0, max(around[i], own[near].sum()))
        found: list[Place] = []
        while len(found) < count and len(ids):
            # Of equals the one with the most belief of its own: the middle of the place.
            heaviest = np.flatnonzero(around == around.max())
            best = int(heaviest[np.argmax(own[heaviest])])
            if around[best] <= 0.0:
                break
            found.append(Place(int(ids[best]), float(around[best])))
            gone = np.abs(ids - ids[best]) < NEAR_KEYFRAMES
            gone |= np.linalg.norm(positions - positions[best], axis=1) <= 2 * NEAR_M
            around[gone] = 0.0
        return found
