"""How well a run of views fits a place of the map, and how far it stands above other places.

One image may err, a run of images seldom errs in step (SeqSLAM, Milford and Wyeth, ICRA 2012).
While a robot retraces a path, the keyframes that its views match advance evenly. So each candidate
place gets the mean similarity of the last views along the best line through it, keyframe over
view. Two yardsticks tell a true place from an impostor: the best line through any place that is
surely another one, and the number of views whose own best match lies on the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Keyframes passed per view, forwards and backwards.
_ADVANCES = (0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)
_SLOPES = np.array([*_ADVANCES, *(-v for v in _ADVANCES)])
# Keyframes by which the best match of a view may lie beside the line and still support it.
_TOLERANCE = 2
# Views of the shorter runs.
_LENGTHS = (4, 8)
# Keyframes on either side among which the position is chosen.
_HALF_WINDOW = 6
# A view counts for the position by this factor less than the next one.
_DECAY, _POSITION_VIEWS = 0.7, 8
# The position's weights are exp(factor * score / spread of the scores).
_SHARPNESS = 2.5
# By how many keyframes a match may be wrong, where the map is not dense.
TOLERANCE_KEYFRAMES = 2.5
# Standard deviation of the position, in keyframes: a floor, and a share of the distance between
# the two estimates. Chosen on five real sets together (docs/log/decisions.md).
_LEAST_STDDEV, _STDDEV_PER_KEYFRAME = 0.35, 0.8


def best_of_each(places: NDArray[np.integer], values: NDArray[np.floating]) -> NDArray[np.intp]:
    """Index of the largest value of each place, by ascending place; NaN is the least.

    Args:
        places, values: of candidates, [k], in any order.
    """
    order = np.lexsort((-values, places))
    return order[np.flatnonzero(np.diff(places[order], prepend=-1))]


# Places of a view that span at most so many numbers are looked up in an array.
_DENSE_SPAN = 1 << 16


class View:
    """The candidates of one image, one for each place.

    Args:
        places: ascending, int64 [m]; at least one.
        similarities: best of each place, [m]; NaN counts as the least.
    """

    def __init__(self, places: NDArray[np.int64], similarities: NDArray[np.floating]) -> None:
        self.places = places
        self.similarities = np.nan_to_num(np.asarray(similarities, float), nan=-1.0)
        self.best = int(places[int(np.argmax(self.similarities))])
        self._least = float(self.similarities.min())
        self._first = int(places[0]) - 1
        self._dense: NDArray[np.float64] | None = None
        span = int(places[-1]) - self._first + 2
        if span <= _DENSE_SPAN:
            self._dense = np.full(span, self._least)
            self._dense[places - self._first] = self.similarities
            self._around = self._dense.copy()
            np.maximum(self._around[1:], self._dense[:-1], out=self._around[1:])
            np.maximum(self._around[:-1], self._dense[1:], out=self._around[:-1])

    @classmethod
    def of(cls, places: NDArray[np.integer], similarities: NDArray[np.floating]) -> View:
        """The best similarity of each place.

        Args:
            places, similarities: of the candidates, [k], in any order.
        """
        chosen = best_of_each(places, similarities)
        return cls(np.asarray(places[chosen], np.int64), similarities[chosen])

    def at(self, positions: NDArray[np.float64], *, around: bool) -> NDArray[np.float64]:
        """Similarities at positions along the map, in the shape of `positions`.

        A place that is no candidate counts as the least similar candidate.

        Args:
            around: take the best of a place and its two neighbours.
        """
        rounded = np.rint(positions).astype(np.int64)
        if self._dense is not None:
            values = self._around if around else self._dense
            index = rounded - self._first
            inside = (index >= 0) & (index < len(values))
            return np.where(inside, values[np.clip(index, 0, len(values) - 1)], self._least)
        result = np.full(positions.shape, self._least)
        for shift in (-1, 0, 1) if around else (0,):
            index = np.searchsorted(self.places, rounded + shift)
            index = np.minimum(index, len(self.places) - 1)
            hit = self.places[index] == rounded + shift
            np.maximum(result, np.where(hit, self.similarities[index], -np.inf), out=result)
        return result


@dataclass(frozen=True)
class Position:
    """Which keyframe of a place matches best, and how sure that is."""

    place: int
    stddev_keyframes: float

    def probability(self, tolerance_keyframes: float = TOLERANCE_KEYFRAMES) -> float:
        """That the position is right to so many keyframes, 0 to 1."""
        return math.erf(tolerance_keyframes / (math.sqrt(2.0) * self.stddev_keyframes))


@dataclass(frozen=True)
class RunScores:
    """The run of views that ends with the present image, for each of its candidate places."""

    places: NDArray[np.int64]  # ascending, [m]
    scores: NDArray[np.float64]  # mean similarity along the best line, [m]
    recent: NDArray[np.float64]  # the same, with the last views counting most, [m]
    hits: NDArray[np.int64]  # views whose best match lies on a line through the place, [m]
    views: int  # in the run, with the present one
    bests: NDArray[np.int64]  # best place of each view, the latest first, [views]
    behind: NDArray[np.float64]  # views that lie between each of them and the present image
    neighbours: float = 0.0  # mean similarity of consecutive views

    @property
    def best_place(self) -> int:
        """The place that the run fits best."""
        return int(self.places[int(np.argmax(self.scores))])

    def advance(self, place: int) -> int:
        """Keyframes by which the views on the best line through a place have advanced.

        A robot that stands still sees one place again and again, which is one witness.
        """
        beside = np.abs(place - _SLOPES[:, np.newaxis] * self.behind - self.bests)
        on_line = beside <= _TOLERANCE
        seen = self.bests[on_line[int(np.argmax(on_line.sum(1)))]]
        return int(seen.max() - seen.min()) if len(seen) else 0

    def position(self, place: int) -> Position:
        """The best keyframe around a place.

        The mean of two estimates: where the whole run fits best, and the mean of the last views'
        scores. How far the two differ says how uncertain the position is.
        """
        near = np.flatnonzero(np.abs(self.places - place) <= _HALF_WINDOW)
        if not len(near):
            return Position(place, float(_HALF_WINDOW))
        recent, numbers = self.recent[near], self.places[near]
        weights = np.exp(_SHARPNESS * (recent - recent.max()) / max(recent.std(), 1e-3))
        mean = float((weights * numbers).sum() / weights.sum())
        by_run = float(numbers[int(np.argmax(self.scores[near]))])
        middle = (mean + by_run) / 2
        chosen = int(numbers[int(np.argmin(np.abs(numbers - middle)))])
        stddev = math.hypot(_LEAST_STDDEV, _STDDEV_PER_KEYFRAME * abs(mean - by_run))
        return Position(chosen, stddev)


def score_runs(
    present: View, before: Sequence[View], is_new: bool, neighbours: float = 0.0
) -> list[RunScores]:
    """Runs of several lengths that end with an image, for each of its candidate places.

    A long run tells more, but a robot that has just come back to its map has a short one.

    Args:
        present: of the image; at least one candidate.
        before: earlier views, the latest first; each with at least one candidate.
        is_new: whether the image shows more than the latest view did.
        neighbours: mean similarity of consecutive views.

    Returns:
        the longest run first; each has at least one view.
    """
    behind = np.append(0.0, np.arange(len(before)) + (1.0 if is_new else 0.5))
    shape = len(present.places), len(_SLOPES)
    total = np.repeat(present.similarities[:, np.newaxis], shape[1], 1)
    recent = total.copy()
    on_line = np.abs(present.places - present.best) <= _TOLERANCE
    hits = np.repeat(on_line[:, np.newaxis].astype(np.int64), shape[1], 1)
    weight, weights = 1.0, 1.0
    ends = [n for n in _LENGTHS if n <= len(before)]
    partial = []
    for number, view in enumerate(before):
        if number + 1 in ends:
            partial.append((number + 1, total.max(1) / (number + 1), hits.max(1)))
        positions = present.places[:, np.newaxis] - _SLOPES * behind[number + 1]
        total += view.at(positions, around=True)
        hits += np.abs(positions - view.best) <= _TOLERANCE
        if number + 1 < _POSITION_VIEWS:
            weight *= _DECAY
            weights += weight
            recent += weight * view.at(positions, around=False)
    views = 1 + len(before)
    recently = recent.max(1) / weights
    bests = np.array([present.best, *(view.best for view in before)])
    lengths = [*partial, (views, total.max(1) / views, hits.max(1))]
    return [
        RunScores(present.places, scores, recently, on_lines, n, bests[:n], behind[:n], neighbours)
        for n, scores, on_lines in reversed(lengths)
    ]


@dataclass(frozen=True)
class RunEvidence:
    """How a run of views bears on one place, against the other places of its session."""

    views: int  # in the run
    score: float  # mean similarity along the line, -1 to 1
    margin: float  # of the score over the best one elsewhere
    spread: float  # of the scores elsewhere: the best less the median
    lead: int  # views on the line, minus those on the best line elsewhere
    hits: int  # views on the line
    advance: int  # keyframes by which those views have advanced
    neighbours: float  # mean similarity of consecutive views


# Fewer surely different places than this do not show how similar different places are.
MIN_ELSEWHERE = 12


def evidence_for(runs: RunScores, place: int, elsewhere: NDArray[np.bool_]) -> RunEvidence | None:
    """The evidence for a place; None where too few other places are known.

    Args:
        place: in question.
        elsewhere: which of the candidate places are surely other places, bool [m].
    """
    near = np.abs(runs.places - place) <= _TOLERANCE
    if int(elsewhere.sum()) < MIN_ELSEWHERE or not near.any():
        return None
    score, hits = float(runs.scores[near].max()), int(runs.hits[near].max())
    others = runs.scores[elsewhere]
    best = float(others.max())
    return RunEvidence(
        runs.views,
        score,
        score - best,
        best - float(np.median(others)),
        hits - int(runs.hits[elsewhere].max()),
        hits,
        runs.advance(place),
        runs.neighbours,
    )
