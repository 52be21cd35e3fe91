"""Where in the map the robot is, or that the place is new: a discrete Bayes filter.

Its states are the map's keyframes, each with the direction in which the robot retraces it, and one
more: that the place is new. The scheme is that of Angeli et al. (IEEE TRO 2008) and of RTAB-Map
(Labbé and Michaud, IEEE TRO 2013, section III-C); that "new" is a state like others, not the lack
of a good match, is FAB-MAP's, too (Cummins and Newman, IJRR 2008). Those hold a probability for
each place and multiply by a matrix over all. Here only places with support are held, so that a
step costs the same in a map of any size: a place gains support as a candidate of an image, and
loses it when neither motion nor images lead to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.matching.distinct import MIN_OTHER_PLACES

# The logarithm of a candidate's likelihood ratio is linear in its normal score. Fitted on rendered
# courses (seeds 11, 12 and 14); with 40 instead of 100 candidates an image, on another course and
# on a real corridor the line is much the same.
_LOG_RATIO_SLOPE = 1.5
_EVEN_SCORE = 1.2
# A similarity this many deviations above the bulk is not of the bulk.
_CLIP_DEVIATIONS = 2.0
_CLIP_ROUNDS = 2
# Cosines of one pair of images differ by about this much from back end to back end.
_LEAST_DEVIATION = 1e-3
_LARGEST_SCORE = 20.0
# The middle of the likeliest place is one of the likeliest keyframes.
_HEAVIEST = 16
# Smaller steps add up before they are taken, else what they move could be too little to be held:
# keyframes passed, and the share of an image that counts in full.
_LEAST_ADVANCE = 0.2
LEAST_SHARE = 0.05
# Between sessions on one axis of ids, which are below it.
_SESSION_STRIDE = 2**32

SessionsOf = Callable[[NDArray[np.int64]], NDArray[np.integer]]


@dataclass(frozen=True)
class FilterSettings:
    """How a robot moves in its map, and how far its images are believed.

    Raises:
        ConfigError: one of them is out of range.
    """

    spacing_m: float = 0.5  # between keyframes of the map, as `keyframes.min_distance_m`,
    spacing_rad: float = 0.35  # or turn between them, as `keyframes.min_angle_rad`
    # Variance of the keyframes passed over their mean, less 1: the map may be half or twice as
    # dense as set; what images say of motion is coarser than odometry.
    spread: float = 0.5
    spread_without_odometry: float = 2.0
    turn_back: float = 0.005  # for each keyframe passed
    # Images taken this near to one another err alike: so far apart, each counts in full.
    view_keyframes: float = 4.0
    # From one such view to the next. Angeli et al. 2008 and RTAB-Map (`VirtualPlacePriorThr` and
    # `PredictionLC`) have 0.9 and 0.1. With 0.1 no belief would pass 0.97; what is recalled
    # without a wrong match is the same with either.
    stay_new: float = 0.9
    become_new: float = 0.02
    # Of the image of a place that is not among its candidates.
    miss_ratio: float = 0.1
    # Of one candidate at most, so that one image does not decide.
    max_ratio: float = 30.0
    max_support: int = 512  # keyframes held
    min_mass: float = 1e-6  # of a keyframe that is held
    near_keyframes: int = 6  # keyframes up to this far from one show its place
    max_advance: float = 32.0  # keyframes; who has moved further in one step may be anywhere

    def __post_init__(self) -> None:
        positive = (self.spacing_m, self.spacing_rad, self.view_keyframes, self.miss_ratio)
        shares = (self.turn_back, self.stay_new, self.become_new, self.miss_ratio, self.min_mass)
        if not min(positive) > 0.0 or not all(0.0 <= v <= 1.0 for v in shares):
            raise ConfigError(f"spacings must be above 0, probabilities 0 to 1: {self}")
        if not 1.0 <= self.max_ratio < math.inf or self.max_support < 1:
            raise ConfigError(f"max_ratio and max_support must be at least 1: {self}")
        if not min(self.spread, self.spread_without_odometry) >= 0.0:
            raise ConfigError(f"spreads must be at least 0: {self}")
        if not 0.0 < self.max_advance <= 256.0:
            raise ConfigError(f"max_advance must be above 0, at most 256: {self}")


@dataclass(frozen=True)
class Motion:
    """How the robot has moved from one image to the next."""

    elapsed_s: float
    distance_m: float | None = None  # travelled, from odometry; None, negative or NaN: none
    turned_rad: float = 0.0  # from odometry
    keyframes: float = 0.0  # passed as the images say, where there is no odometry


class BestPlace(NamedTuple):
    """The likeliest place of the map."""

    keyframe_id: int  # in its middle; 0: no place has support
    mass: float  # probability of it and the near keyframes of its session, 0 to 1


class PlaceFilter:
    """Belief over the map's keyframes and over the place being new.

    For each image call `predict`, then `update`. The ids of a session are taken to follow one
    another along its way: motion moves belief up or down along them, never into another session.

    Args:
        sessions_of: sessions of keyframes as integers, [n], by their ids; negative for an id that
            the map does not hold. Asked twice an image, for at most `max_support` ids.
        settings: see there.
    """

    def __init__(self, sessions_of: SessionsOf, settings: FilterSettings | None = None) -> None:
        self._sessions_of = sessions_of
        self._settings = settings or FilterSettings()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the place is new, and the next image counts in full."""
        self._ids = np.empty(0, np.int64)  # ascending
        self._sessions = np.empty(0, np.int64)
        self._mass = np.empty((2, 0))  # of passing the ids upwards and downwards
        self._new = 1.0
        self._advance = self._settings.view_keyframes  # since the last update
        self._not_moved = 0.0  # of that advance

    @property
    def new_place(self) -> float:
        """Probability that the map does not hold the place, 0 to 1."""
        return self._new

    @property
    def support(self) -> NDArray[np.int64]:
        """Ids of the keyframes that are held, ascending, int64 [n]."""
        return self._ids.copy()

    @property
    def sessions(self) -> NDArray[np.int64]:
        """Their sessions, int64 [n]."""
        return self._sessions.copy()

    def belief(self, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Probabilities of keyframes, float64 [k]; 0 for those that are not held.

        With `new_place`, those of all keyframes sum to 1.
        """
        asked = np.asarray(ids, np.int64)
        if not len(self._ids):
            return np.zeros(asked.shape)
        place = np.minimum(np.searchsorted(self._ids, asked), len(self._ids) - 1)
        return np.where(self._ids[place] == asked, self._mass.sum(0)[place], 0.0)

    def around(
        self, ids: NDArray[np.integer] | None = None, near_keyframes: int | None = None
    ) -> NDArray[np.float64]:
        """Probabilities of the places that keyframes show, float64 [k].

        A place is a keyframe with the near ones of its session; those of several may overlap.

        Args:
            ids: of the keyframes, [k]; None: all that are held.
            near_keyframes: which are near; None: as the settings say.
        """
        if ids is None:
            return self._around(self._ids, self._sessions, near_keyframes)
        asked = np.asarray(ids, np.int64)
        sessions = np.asarray(self._sessions_of(asked), np.int64)
        return self._around(asked, sessions, near_keyframes)

    def _around(
        self, ids: NDArray[np.int64], sessions: NDArray[np.int64], near: int | None = None
    ) -> NDArray[np.float64]:
        # Stretches of one cumulative sum; each with each would be quadratic. Session after
        # session, so that none reaches into the next.
        held = self._sessions * _SESSION_STRIDE + self._ids
        order = np.argsort(held, kind="stable")
        held, total = held[order], np.append(0.0, np.cumsum(self._mass.sum(0)[order]))
        asked = sessions * _SESSION_STRIDE + ids
        near = self._settings.near_keyframes if near is None else near
        first = np.searchsorted(held, asked - near, "left")
        end = np.searchsorted(held, asked + near, "right")
        return np.minimum(total[end] - total[first], 1.0)

    def best(self) -> BestPlace:
        """The place with the most belief."""
        if not len(self._ids):
            return BestPlace(0, 0.0)
        heaviest = np.argsort(-self._mass.sum(0), kind="stable")[:_HEAVIEST]
        masses = self._around(self._ids[heaviest], self._sessions[heaviest])
        middle = int(np.argmax(masses))
        return BestPlace(int(self._ids[heaviest[middle]]), float(masses[middle]))

    def predict(self, motion: Motion) -> None:
        """Move the belief as the robot has moved.

        A time that ran backwards and a motion too long to be followed are a reset.
        """
        settings = self._settings
        if motion.distance_m is not None and motion.distance_m >= 0.0:
            advance, spread = motion.distance_m / settings.spacing_m, settings.spread
            if math.isfinite(motion.turned_rad):
                advance = max(advance, abs(motion.turned_rad) / settings.spacing_rad)
        else:
            advance, spread = motion.keyframes, settings.spread_without_odometry
        if not (motion.elapsed_s >= 0.0 and advance <= settings.max_advance):
            self.reset()
            return
        self._advance += advance
        self._not_moved += advance
        if self._not_moved < _LEAST_ADVANCE:
            return
        advance, self._not_moved = self._not_moved, 0.0
        if len(self._ids):
            # Two turns are none: the share of odd counts at this rate.
            turned = 0.5 * (1.0 - math.exp(-2.0 * settings.turn_back * advance))
            self._mass = (1.0 - turned) * self._mass + turned * self._mass[::-1]
            self._shift(_passed(advance, spread))

    def _shift(self, passed: NDArray[np.float64]) -> None:
        """Move belief along the ids.

        Args:
            passed: probabilities of 0, 1, ... keyframes.
        """
        # The axis of the ids, without the long stretches that hold no belief: either side of each
        # keyframe that is held there is as much room as belief can move.
        room = len(passed) - 1
        gaps = np.minimum(np.diff(self._ids), 2 * room + 1)
        gaps[np.diff(self._sessions) != 0] = 2 * room + 1
        slots = room + np.append(0, np.cumsum(gaps))
        size = int(slots[-1]) + room + 1
        moved = np.zeros((2, size))
        moved[:, slots] = self._mass
        moved[0] = np.convolve(moved[0], passed)[:size]
        moved[1] = np.convolve(moved[1, ::-1], passed)[:size][::-1]
        likely = np.flatnonzero(moved.sum(0) >= self._settings.min_mass)
        origin = np.searchsorted((slots[:-1] + slots[1:]) // 2, likely)  # nearest that was held
        ids = self._ids[origin] + likely - slots[origin]
        self._hold(ids, moved[:, likely], self._sessions[origin])

    def update(
        self,
        ids: NDArray[np.integer],
        ratios: NDArray[np.floating],
        weight: float | None = None,
    ) -> None:
        """Weigh the belief by what an image shows.

        A place that is not among the candidates has `miss_ratio`, a new place 1.

        Args:
            ids: candidates, each once, [k]; there may be none.
            ratios: likelihood of the image if it shows this place over that if it shows another,
                [k], as of `likelihood_ratios`; NaN says nothing.
            weight: how far this image is a witness of its own beside those before it, 0 (or
                little) to 1; None: as the motion since the last one that counted says, so that a
                robot that stands still gains nothing from seeing one view again and again.

        Raises:
            ValueError: ids and ratios are not of one length.
        """
        settings = self._settings
        if np.ndim(ids) != 1 or np.shape(ids) != np.shape(ratios):
            raise ValueError(f"{np.shape(ids)} ids with {np.shape(ratios)} ratios")
        share = self._advance / settings.view_keyframes if weight is None else weight
        if not share >= LEAST_SHARE:
            return
        share = min(1.0, share)
        self._advance = 0.0

        asked, first = np.unique(np.asarray(ids, np.int64), return_index=True)
        merged = np.union1d(self._ids, asked)
        candidates = np.searchsorted(merged, asked)
        mass = np.zeros((2, len(merged)))
        mass[:, np.searchsorted(merged, self._ids)] = self._mass
        stayed = (1.0 - settings.become_new) ** share
        new = self._new + (1.0 - stayed) * (1.0 - self._new)
        mass *= stayed
        if len(asked):
            # Who returns to the map is at one of the candidates and goes either way. That there
            # are k of them, not how many places the map holds, is what chance is measured by: the
            # ratios compare a candidate with the others that the search found most alike.
            returned = self._new * (1.0 - settings.stay_new**share)
            new -= returned
            mass[:, candidates] += 0.5 * returned / len(asked)

        factors = np.full(len(merged), settings.miss_ratio)
        said = np.nan_to_num(np.asarray(ratios, np.float64)[first], nan=1.0)
        factors[candidates] = np.clip(said, settings.miss_ratio, settings.max_ratio)
        mass *= factors**share
        self._hold(merged, mass / (new + mass.sum()))

    def _hold(
        self,
        ids: NDArray[np.int64],
        mass: NDArray[np.float64],
        came_from: NDArray[np.int64] | None = None,
    ) -> None:
        """Hold what is likely; what is left over is belief in a new place.

        Args:
            ids: [n], ascending, but for those that have left their session.
            mass: [2, n], of sum 1 at most.
            came_from: sessions that the belief came from, [n].
        """
        settings = self._settings
        total = mass.sum(0)
        kept = np.flatnonzero(total >= settings.min_mass)
        surplus = len(kept) - settings.max_support
        if surplus > 0:
            kept = np.sort(kept[np.argpartition(total[kept], surplus)[surplus:]])
        sessions = np.asarray(self._sessions_of(ids[kept]), np.int64)
        inside = sessions >= 0
        if came_from is not None:
            inside &= sessions == came_from[kept]
        kept = kept[inside]
        self._ids, self._sessions, self._mass = ids[kept], sessions[inside], mass[:, kept]
        self._new = max(0.0, 1.0 - float(self._mass.sum()))


def _passed(advance: float, spread: float) -> NDArray[np.float64]:
    """Probabilities of having passed 0, 1, ... keyframes, float64 [n], n at least 2, of sum 1.

    A Poisson count, with spread a negative binomial one. Both add up: many small motions spread
    belief as one large one does, whatever the rate of the images.

    Args:
        advance: mean, above 0.
        spread: variance over mean, less 1.
    """
    deviation = math.sqrt(advance * (1.0 + spread))
    count = np.arange(1, 2 + math.ceil(advance + 5.0 * deviation))
    ratios = (advance + spread * (count - 1)) / (count * (1.0 + spread))
    relative = np.append(1.0, np.cumprod(ratios))
    return relative / relative.sum()


def likelihood_ratios(
    similarities: NDArray[np.floating], others: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """How likely an image is if it shows a candidate, over that if it shows another place.

    The cosine carries over from no place to the next, but how far it stands above those of the
    other candidates does, as in RTAB-Map (Labbé and Michaud, IEEE TRO 2013, section III-C). What
    stands out is no part of the bulk that it is measured by, be it one stretch or several.

    Args:
        similarities: of all candidates of one image, [k], in any order.
        others: which are known to be of another place than the best, bool [k]: those are the bulk.

    Returns:
        float64 [k]; where there are too few to be a bulk, that of what does not stand out.
    """
    similarities = np.asarray(similarities, np.float64)
    scores = np.zeros(similarities.shape)
    bulk = similarities if others is None else similarities[others]
    bulk = np.sort(bulk[np.isfinite(bulk)])
    if len(bulk) >= MIN_OTHER_PLACES:
        # What stands out is above: median and lower deviation hardly know of it.
        middle = bulk[len(bulk) // 2]
        deviation = middle - bulk[len(bulk) // 6]
        for _ in range(_CLIP_ROUNDS):
            reach = _CLIP_DEVIATIONS * max(deviation, _LEAST_DEVIATION)
            bulk = bulk[bulk <= middle + reach]
            middle, deviation = bulk.mean(), bulk.std()
        scores = (similarities - middle) / max(deviation, _LEAST_DEVIATION)
    bounded = np.clip(np.nan_to_num(scores), -_LARGEST_SCORE, _LARGEST_SCORE)
    return np.exp(_LOG_RATIO_SLOPE * (bounded - _EVEN_SCORE))
