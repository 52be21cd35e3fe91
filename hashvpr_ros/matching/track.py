"""What a robot's cameras have seen of late, and what that says of where it is now.

Two kinds of evidence: a Bayes filter over the map's places (`bayes`), and the share of the
preceding views that lead to a match (`sequence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.map.nearness import bits_apart
from hashvpr_ros.matching.bayes import LEAST_SHARE, FilterSettings, Motion, PlaceFilter, SessionsOf
from hashvpr_ros.matching.distinct import NEAR_KEYFRAMES, NEAR_M
from hashvpr_ros.matching.runs import best_of_each
from hashvpr_ros.matching.sequence import MAX_GAP_NS, NEW_VIEW_BITS, SequenceMemory

# Without odometry an image is a witness of its own when its code differs by this much from that of
# the last one that counted, some two or three metres in a street: views that overlap more err
# alike.
_OWN_VIEW_BITS = 96
# With odometry, one this far away, in metres and radians.
_OWN_VIEW = 2.0, 1.4
_HEAVIEST = 16  # keyframes whose place's belief is added up
# Places on either side of the likeliest one that an image may show as well; more where the belief
# is spread: all around which there is at least this share of what is around the likeliest.
_SAME_VIEW_PLACES = 4
_AS_LIKELY = 0.5
# Cameras remembered, of which the one that saw nothing for longest makes room: the names are those
# that another robot gives them. Those of one instant are all.
_MOST_CAMERAS = 16


@dataclass(frozen=True)
class Place:
    """A stretch of the map by its likeliest place."""

    number: int  # `Keyframe.place`
    mass: float  # belief that the robot is there, 0 to 1
    session: int  # as the filter has it
    # The stretch: places so near to it, or so likely beside it, that the image may show them.
    first: int
    last: int


class _Witness:
    """What one camera has seen, and how much of what it sees now is new."""

    def __init__(self, length: int) -> None:
        self.views = SequenceMemory(length)
        self.weight = 0.0  # of its present image, 0 to 1
        self.moved = 0.0  # since its last image that counted, as a share of an own view
        # Without odometry: codes of the image that was a witness last, and when the belief moved.
        self.counted_code: NDArray[np.uint8] | None = None
        self.moved_code: NDArray[np.uint8] | None = None


class Track:
    """The past of a robot: one belief in where it is, of which its cameras are the witnesses.

    Args:
        length: views remembered of each camera, see `SequenceMemory`.
        keyframes: how far apart the map's keyframes are.
        sessions_of: sessions of places where the robot may be, see `PlaceFilter`.
    """

    def __init__(self, length: int, keyframes: KeyframeConfig, sessions_of: SessionsOf) -> None:
        self._length = length
        self._spacing_m = max(keyframes.min_distance_m, 0.05)
        spacing_rad = max(keyframes.min_angle_rad, 0.05)
        self.filter = PlaceFilter(sessions_of, FilterSettings(self._spacing_m, spacing_rad))
        self._witnesses: dict[str, _Witness] = {}
        self._last_ns: int | None = None  # of the last images
        self._min_period_ns = round(1e9 * keyframes.min_period_s)
        self._moved_ns: int | None = None  # without odometry, when the belief moved last
        self._guessed_m = 0.0  # moved without odometry since there was any

    def views(self, camera: str) -> SequenceMemory:
        """What a camera has seen of late."""
        return self._witnesses[camera].views

    def begin(
        self,
        stamp_ns: int,
        codes: Mapping[str, NDArray[np.uint8]],
        moved: tuple[float, float] | None,
        spacing_m: float | None = None,
    ) -> None:
        """Move the belief with the robot; call before the images of an instant are judged.

        Args:
            stamp_ns: of the images.
            codes: of the images by camera.
            moved: metres and radians since the last image with a pose, None where there is no
                odometry.
            spacing_m: between keyframes of the map, where it is known to be more than asked for:
                fast robots and slow cameras make fewer.
        """
        for camera in codes:
            witness = self._witnesses.pop(camera, None) or _Witness(self._length)
            witness.views.begin(stamp_ns)
            self._witnesses[camera] = witness  # as the newest
        while len(self._witnesses) > max(_MOST_CAMERAS, len(codes)):
            del self._witnesses[next(iter(self._witnesses))]
        spacing_m = max(self._spacing_m, spacing_m or 0.0)
        last_ns, self._last_ns = self._last_ns, stamp_ns
        if last_ns is not None and not 0 <= stamp_ns - last_ns <= MAX_GAP_NS:
            self.filter.reset()
            self._moved_ns = last_ns = None
            self._guessed_m = 0.0
            for witness in self._witnesses.values():
                witness.counted_code = witness.moved_code = None
        if moved is not None and last_ns is not None:
            self._follow((stamp_ns - last_ns) / 1e9, *moved, spacing_m)
            for camera, code in codes.items():
                witness = self._witnesses[camera]
                # Should odometry fail from now on.
                witness.moved_code = witness.counted_code = code
                witness.weight = min(1.0, witness.moved)
                if witness.weight >= LEAST_SHARE:
                    witness.moved = 0.0
        else:
            self._guess(stamp_ns, codes, spacing_m)
        # Images of one instant have light, blur and the robot's place in common: two are more
        # than one witness, and less than two.
        for camera in codes:
            self._witnesses[camera].weight /= math.sqrt(len(codes))

    def _follow(self, elapsed_s: float, metres: float, radians: float, spacing_m: float) -> None:
        """Move the belief by odometry."""
        # Places pass more slowly where they are further apart; how far apart two views must be to
        # be two witnesses is a matter of metres.
        wider = spacing_m / self._spacing_m
        # After images without a pose this is the way since the last that had one.
        left_m = max(0.0, metres - self._guessed_m)
        self._guessed_m = 0.0
        self.filter.predict(Motion(elapsed_s, left_m / wider, radians / wider))
        share = max(metres / _OWN_VIEW[0], radians / _OWN_VIEW[1])
        for witness in self._witnesses.values():
            witness.moved += share

    def _guess(
        self, stamp_ns: int, codes: Mapping[str, NDArray[np.uint8]], spacing_m: float
    ) -> None:
        """Move the belief by what the images show: one keyframe where a mapper would make one.

        So neither how long the robot stands nor how many images or cameras it has counts. It has
        moved by NEW_VIEW_BITS, as keyframes are some half a metre apart: noise alone makes 40.
        """
        changed = False
        for camera, code in codes.items():
            witness = self._witnesses[camera]
            if witness.moved_code is None:
                witness.moved_code = code
            changed |= bool(bits_apart(witness.moved_code, code) >= NEW_VIEW_BITS)
            witness.weight = 0.0
            counted = witness.counted_code
            if counted is None or bits_apart(counted, code) >= _OWN_VIEW_BITS:
                witness.weight, witness.counted_code = 1.0, code
        if self._moved_ns is None:
            self._moved_ns = stamp_ns
        if changed and stamp_ns - self._moved_ns >= self._min_period_ns:
            self.filter.predict(Motion(0.0, keyframes=1.0))
            self._guessed_m += spacing_m
            self._moved_ns = stamp_ns
            for camera, witness in self._witnesses.items():
                witness.moved_code = codes.get(camera)  # another one has seen the same motion

    def update(
        self, camera: str, places: NDArray[np.integer], ratios: NDArray[np.float64]
    ) -> None:
        """Weigh the belief by the candidates of a camera's image; see `PlaceFilter.update`.

        Args:
            places: of the candidates, [k]; of several views of one place the best counts.
            ratios: of the candidates, [k].
        """
        chosen = best_of_each(places, ratios)
        self.filter.update(
            places[chosen],
            ratios[chosen],
            self._witnesses[camera].weight,
        )

    def places(
        self, count: int, positions_of: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    ) -> list[Place]:
        """The likeliest places, best first.

        Args:
            count: at most.
            positions_of: metres, [n, 3], of places by number, NaN where not known: those that are
                near are one place, whose belief adds up over the laps of a robot.
        """
        ids, sessions = self.filter.support, self.filter.sessions
        own, around = self.filter.belief(ids), self.filter.around()
        view = self.filter.around(near_keyframes=_SAME_VIEW_PLACES)
        positions = positions_of(ids)
        known = not np.isnan(positions).all()
        if known:
            top = np.argsort(-own)[:_HEAVIEST]
            apart = positions[top, np.newaxis] - positions  # [_HEAVIEST, n, 3]
            near = np.einsum("ijk,ijk->ij", apart, apart) <= NEAR_M**2
            around[top] = np.clip(near @ own, around[top], 1.0)
        found: list[Place] = []
        while len(found) < count and len(ids):
            # Of equals the one with the most belief of its own: the middle of the place.
            heaviest = np.flatnonzero(around == around.max())
            best = int(heaviest[np.argmax(own[heaviest])])
            if around[best] <= 0.0:
                break
            gone = (np.abs(ids - ids[best]) < NEAR_KEYFRAMES) & (sessions == sessions[best])
            as_likely = view >= _AS_LIKELY * view[best]
            stretch = ids[gone & as_likely & (around > 0.0)]  # an earlier one has taken the rest
            found.append(
                Place(
                    int(ids[best]),
                    float(around[best]),
                    int(sessions[best]),
                    int(min(ids[best] - _SAME_VIEW_PLACES, stretch.min())),
                    int(max(ids[best] + _SAME_VIEW_PLACES, stretch.max())),
                )
            )
            if known:
                gone |= np.linalg.norm(positions - positions[best], axis=1) <= 2 * NEAR_M
            around[gone] = 0.0
        return found
