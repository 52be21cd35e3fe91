"""How far the robot has come, and whether its odometry lets it be back at a place.

Places that look exactly alike, in step and for minutes, no image can tell apart. Odometry often
can: it errs by some share of the way, so that a place which lies further off than that cannot be
this one. What a robot has closed before makes it sharp again: from then on the error counts from
that closure.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.distinct import NEAR_M
from hashvpr_ros.poses import apart_m, turned_rad
from hashvpr_ros.types import Pose

_T = TypeVar("_T", bound=np.generic)
# Between two images; odometry that jumps further was restarted, and poses before say nothing.
_JUMP_M = 20.0
# A match and the query are not taken at one point.
_NEAR_M = 10.0
# To tell from how far apart places are.
_LEAST_KEYFRAMES, _RECENT_KEYFRAMES = 20, 1000
# Columns of what is kept of a place: way, position and quaternion as driven; then way and position
# as anchored, and what anchored them, 3 x 4.
_WAY, _RAW, _TURN = 0, slice(1, 4), slice(4, 8)
_ANCHORED_WAY, _ANCHORED, _CORRECTION, _COLUMNS = 8, slice(9, 12), slice(12, 24), 24
_SAMPLE = 300  # places of a map to learn the same from
_REMEMBERED = 1000  # closures that can be forgotten when the back end rejects them


@dataclass(frozen=True)
class _Anchor:
    """Where the robot was put to by the last closure, which holds until the next."""

    correction: NDArray[np.float64]  # 4 x 4, raw odometry to anchored
    travelled_m: float = 0.0  # by then
    way_m: float = 0.0  # anchored, by then
    by_closure: bool = False


@dataclass(frozen=True)
class _Closure:
    """An accepted match, and what it was anchored to before."""

    stamp_ns: int
    first_row: int  # of the places that were made from then on
    match_row: int
    pose: NDArray[np.float64]  # 4 x 4 of the query
    match: NDArray[np.float64]  # and of the match, both raw
    travelled_m: float
    before: _Anchor


class Odometer:
    """The way of one session: of each place when, where and after what distance it was made.

    Beside the raw poses it keeps anchored ones: as if an accepted closure had put the robot to
    where its match was. On a third lap both former laps then lie on one another.

    Args:
        max_drift: largest error of odometry as a share of the way; 0: nothing is ever impossible.
    """

    def __init__(self, max_drift: float) -> None:
        self.max_drift = max_drift
        self.travelled_m = 0.0
        self._now: Pose | None = None  # of the present image, where odometry vouches for it
        self._last: Pose | None = None  # the last that it vouched for
        self._stray: Pose | None = None  # far from that, of the image after
        self._run = 0  # how often odometry was restarted
        self._count = 0
        # Of places, grown by doubling. Whole: number, stamp, run.
        self._whole = np.zeros((64, 3), np.int64)
        self._real = np.zeros((64, _COLUMNS))
        self._anchor = _Anchor(np.eye(4))
        self._closures: deque[_Closure] = deque(maxlen=_REMEMBERED)

    def move(self, pose: Pose | None) -> tuple[float, float] | None:
        """Take the pose of the next image; what follows is asked of that image.

        Returns:
            metres and radians since the last, None where that is not known.
        """
        last, stray = self._last, self._stray
        self._now = self._stray = None
        if pose is None:
            return None
        if last is None:
            self._now = self._last = pose
            return None
        if _is_step(last, pose):
            self._now = self._last = pose
            step_m = math.dist(pose.position_m, last.position_m)
            self.travelled_m += step_m
            return step_m, turned_rad(last, pose)
        # One pose far off is a stray; with a second one there, odometry was restarted.
        if stray is None or not _is_step(stray, pose):
            self._stray = pose
            return None
        self._now = self._last = pose
        self._run += 1
        self._anchor = _Anchor(np.eye(4), self.travelled_m, self._way_m())
        self._closures.clear()
        return None

    def mark(self, place: int, stamp_ns: int) -> None:
        """Remember that the present image was added to the map; numbers and stamps ascend."""
        pose = self._now
        if self._count == len(self._whole):
            self._whole, self._real = _doubled(self._whole), _doubled(self._real)
        self._whole[self._count] = place, stamp_ns, self._run
        row = self._real[self._count]
        row[_WAY] = self.travelled_m
        row[_RAW] = np.nan if pose is None else pose.position_m
        row[_TURN] = np.nan if pose is None else pose.orientation
        self._count += 1
        self._lay(self._count - 1, self._count)

    def _way_m(self) -> float:
        """Anchored way until now."""
        return self._anchor.way_m + self.travelled_m - self._anchor.travelled_m

    def _lay(self, first: int, end: int) -> None:
        """Lay places, by their rows, where the present anchor has them."""
        anchor, rows = self._anchor, self._real[first:end]
        turn, shift = anchor.correction[:3, :3], anchor.correction[:3, 3]
        rows[:, _ANCHORED_WAY] = anchor.way_m + rows[:, _WAY] - anchor.travelled_m
        rows[:, _ANCHORED] = rows[:, _RAW] @ turn.T + shift
        rows[:, _CORRECTION] = anchor.correction[:3].ravel()

    def newest_allowed_ns(
        self, stamp_ns: int, recent_s: float, recent_m: float, recent_keyframes: int
    ) -> int:
        """Keyframes of the session stamped after this are too recent to be candidates.

        Args:
            stamp_ns: of the query.
            recent_s, recent_m, recent_keyframes: what is recent by time, way or count.
        """
        allowed_ns = stamp_ns - round(recent_s * 1e9)
        first = self._count - recent_keyframes  # row of the first that is too recent
        if recent_m > 0:
            way = self._real[: self._count, _WAY]
            first = min(first, int(np.searchsorted(way, self.travelled_m - recent_m, "right")))
        if self._count and first < self._count:
            allowed_ns = min(allowed_ns, int(self._whole[max(first, 0), 1]) - 1)
        return allowed_ns

    @property
    def has_poses(self) -> bool:
        """Whether odometry knows where the present image was taken, and may forbid something."""
        return bool(self.max_drift) and self._now is not None

    def spacing_m(self) -> float | None:
        """Metres between places, of late; None where there are too few to tell."""
        if self._count < _LEAST_KEYFRAMES or not self.travelled_m:
            return None
        last = self._real[max(0, self._count - _RECENT_KEYFRAMES) : self._count, _WAY]
        return float(last[-1] - last[0]) / (len(last) - 1) or None

    def possible(self, places: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the robot can be at places: False where odometry forbids it, bool [n].

        What is not of this session, or has no pose, is possible.
        """
        result = np.ones(len(places), bool)
        if not self.has_poses or not self._count:
            return result
        rows, known = self._rows(places)
        known &= ~np.isnan(self._real[rows, _RAW.start])
        assert self._now is not None
        raw = np.array([*self._now.position_m, 1.0])
        anchored = self._anchor.correction @ raw
        real = self._real[rows]
        since_m = self.travelled_m
        if self._anchor.by_closure:
            since_m -= self._anchor.travelled_m
        for here, there, way_m in (
            (raw, real[:, _RAW], self.travelled_m - real[:, _WAY]),
            # The match errs against the last closure by the way between them, the robot by its own
            # since then.
            (
                anchored,
                real[:, _ANCHORED],
                since_m + np.abs(self._way_m() - real[:, _ANCHORED_WAY]),
            ),
        ):
            off_m = np.linalg.norm(there - here[:3], axis=1)
            result[known] &= (off_m <= _NEAR_M + self.max_drift * way_m)[known]
        return result

    def positions(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """Where places are by odometry and closures, float64 [n, 3]; NaN for what is not known.

        Passes of one place lie on one another, whatever odometry has drifted meanwhile. Before the
        first closure nothing is known.
        """
        result = np.full((len(places), 3), np.nan)
        if self.max_drift and self._anchor.by_closure:
            rows, known = self._rows(places)
            result[known] = self._real[rows[known], _ANCHORED]
        return result

    def knows(self, place: int) -> bool:
        """Whether `possible` can tell anything of a place."""
        if not self.has_poses or not self._count:
            return False
        rows, known = self._rows(np.array([place]))
        return bool(known[0] and not np.isnan(self._real[rows[0], _RAW.start]))

    def lacks_pose(self, places: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which places are of this run of odometry, but were made while it was missing, bool [n].

        Those `possible` cannot tell anything of, though it can of places before and after them.
        """
        if not self.has_poses or not self._count:
            return np.zeros(len(places), bool)
        rows, known = self._rows(places)
        return known & np.isnan(self._real[rows, _RAW.start])

    def _rows(self, places: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Rows of places, and which of them were made since odometry was started last, [n]."""
        own = self._whole[: self._count, 0]
        rows = np.minimum(np.searchsorted(own, places), self._count - 1)
        return rows, (own[rows] == places) & (self._whole[rows, 2] == self._run)

    def close(
        self,
        stamp_ns: int,
        match_place: int,
        heading_rad: float = 0.0,
    ) -> None:
        """Anchor the robot at the match of the present image, where that is of this session.

        The match counts by the pose that odometry gave it, whatever a back end has made of that.

        Args:
            heading_rad: how the robot is turned now against then.
        """
        pose = self._now
        if pose is None or not self._count:
            return
        rows, known = self._rows(np.array([match_place]))
        driven = self._real[rows[0]]
        if known[0] and not np.isnan(driven[_RAW.start]):
            match = _matrix(Pose(tuple(driven[_RAW]), tuple(driven[_TURN])))
            matrices = _matrix(pose), match @ _turned(heading_rad)
            self._closures.append(
                _Closure(
                    stamp_ns,
                    self._count,
                    int(rows[0]),
                    *matrices,
                    self.travelled_m,
                    self._anchor,
                )
            )
            self._put(self._closures[-1])

    def _put(self, closure: _Closure) -> None:
        """Anchor the robot by a closure."""
        match = self._real[closure.match_row]
        correction = np.eye(4)
        correction[:3] = match[_CORRECTION].reshape(3, 4)
        self._anchor = _Anchor(
            correction @ closure.match @ np.linalg.inv(closure.pose),
            closure.travelled_m,
            float(match[_ANCHORED_WAY]),
            True,
        )

    def forget(self, stamp_ns: int, match_place: int) -> None:
        """Undo the closure of an image, which was wrong, and what was concluded from it."""
        made = [(c.stamp_ns, int(self._whole[c.match_row, 0])) for c in self._closures]
        if (stamp_ns, match_place) not in made:
            return  # nothing was anchored by it, or long ago
        wrong = made.index((stamp_ns, match_place))
        later = list(self._closures)[wrong:]
        for _ in later:
            self._closures.pop()
        ends = [c.first_row for c in later[1:]] + [self._count]
        self._anchor = later[0].before
        self._lay(later[0].first_row, ends[0])
        for closure, end in zip(later[1:], ends[1:], strict=True):
            self._closures.append(replace(closure, before=self._anchor))
            self._put(closure)
            self._lay(closure.first_row, end)

    def here(self, places: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the robot is known to be where it made places, bool [n]."""
        result = np.zeros(len(places), bool)
        if not self.has_poses or not self._count:
            return result
        assert self._now is not None
        rows, known = self._rows(places)
        raw = np.array(self._now.position_m)
        correction = self._anchor.correction
        anchored = correction[:3, :3] @ raw + correction[:3, 3]
        for place, columns in ((raw, _RAW), (anchored, _ANCHORED)):
            # NaN is near nothing.
            off_m = np.linalg.norm(self._real[rows, columns] - place, axis=1)
            result |= known & (off_m <= NEAR_M)
        return result


def _is_step(a: Pose, b: Pose) -> bool:
    """Whether a robot can have come from one pose to the next, by one run of odometry."""
    return a.frame_id == b.frame_id and math.dist(a.position_m, b.position_m) <= _JUMP_M


def _doubled(rows: NDArray[_T]) -> NDArray[_T]:
    """The same with as many rows again, which take no memory before they are written."""
    result = np.zeros((2 * len(rows), *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result


def _turned(angle_rad: float) -> NDArray[np.float64]:
    """4 x 4 of a turn to the left."""
    half = 0.5 * angle_rad
    return _matrix(Pose((0.0, 0.0, 0.0), (0.0, 0.0, math.sin(half), math.cos(half))))


def _matrix(pose: Pose) -> NDArray[np.float64]:
    """4 x 4 of a rigid pose."""
    x, y, z, w = np.array(pose.orientation) / math.hypot(*pose.orientation)
    result = np.eye(4)
    result[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    result[:3, 3] = pose.position_m
    return result


def spacing_of(place_map: PlaceMap) -> float:
    """Median metres from one place to the next; 0 where they have no poses.

    Where places between two have gone, the metres are theirs, too.
    """
    ids = place_map.first_views()
    if len(ids) < 2:
        return 0.0
    sample = np.linspace(0, len(ids) - 2, min(len(ids) - 1, _SAMPLE)).astype(int)
    pairs = zip(
        place_map.keyframes(ids[sample]), place_map.keyframes(ids[sample + 1]), strict=True
    )
    steps = [
        metres / (b.place - a.place)
        for a, b in pairs
        if a.session == b.session and (metres := apart_m(a.pose, b.pose)) is not None
    ]
    return float(np.median(steps)) if steps else 0.0
