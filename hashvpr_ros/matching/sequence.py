"""Do the preceding images of a camera lead to this place of the map?

The idea is SeqSLAM's (Milford and Wyeth, ICRA 2012): one image may err, a run of them seldom errs
in step. While a robot retraces a stretch of its map, in either direction, the keyframes that its
views match advance evenly. So the share of preceding views whose best match lies on one line
through the present match, keyframe id over view count, is the support of that match. Only the best
match of each view is asked: the cost does not grow with the map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.nearness import bits_apart
from hashvpr_ros.matching.runs import RunScores, View, score_runs
from hashvpr_ros.types import Keyframe

# A view counts only when its code differs by this much from the one before, about half a metre in
# a street: a robot that stands still sees one view again and again, and one view is one witness.
NEW_VIEW_BITS = 48
# Keyframes by which a view's match may lie beside the line.
_TOLERANCE_KEYFRAMES = 2.0
# Keyframes of the map per view, at least and at most: a line that stands still is no motion.
_ADVANCE = 0.25, 4.0
# Views further apart in time than this are of different drives.
MAX_GAP_NS = 60 * 1_000_000_000


@dataclass(frozen=True)
class _View:
    stamp_ns: int
    code: NDArray[np.uint8]
    best: Keyframe | None  # best match of that image
    distinctness: float  # of that match
    places: NDArray[np.int64]  # places of that match, and the same one when it was passed before
    candidates: View | None  # all places that the image may show; None where there was none


@dataclass(frozen=True)
class Run:
    """How the preceding views bear on one match."""

    support: float  # share of `length` views on the line, 0 to 1
    distinctness: float  # mean of those views and the present one


class SequenceMemory:
    """The last distinct views of one camera and what each matched best.

    Args:
        length: views remembered.
    """

    def __init__(self, length: int) -> None:
        self._views: deque[_View] = deque(maxlen=length)
        self.length = length

    def begin(self, stamp_ns: int) -> None:
        """Forget the past when time has jumped; call before an image is judged."""
        if self._views:
            gap = stamp_ns - self._views[-1].stamp_ns
            if gap < 0 or gap > MAX_GAP_NS:
                self._views.clear()

    def run(self, code: NDArray[np.uint8], match: Keyframe, distinctness: float) -> Run:
        """The run of preceding views that leads to a match of the present image.

        Args:
            code: of the present image, uint8 [64].
            match: the keyframe in question.
            distinctness: of that match.
        """
        if not self._views:
            return Run(0.0, distinctness)
        views = list(reversed(self._views))
        places = np.full((len(views), max(len(v.places) for v in views)), np.nan)
        for row, v in zip(places, views, strict=True):
            if v.best is not None and v.best.session == match.session:
                row[: len(v.places)] = v.places
        # The present image is a view of its own, or shows much the same as the last one.
        behind = np.arange(len(views))[:, np.newaxis] + (1.0 if self._is_new(code) else 0.5)
        back = match.place - places  # [views, passes]
        slopes = back / behind
        with np.errstate(invalid="ignore"):
            slopes = slopes[(np.abs(slopes) >= _ADVANCE[0]) & (np.abs(slopes) <= _ADVANCE[1])]
        if not len(slopes):
            return Run(0.0, distinctness)
        beside = np.abs(back - slopes[:, np.newaxis, np.newaxis] * behind)
        on_line = (beside <= _TOLERANCE_KEYFRAMES).any(2)  # [lines, views]; False for NaN
        best = on_line[np.argmax(on_line.sum(1))]
        total = distinctness + sum(v.distinctness for v, on in zip(views, best, strict=True) if on)
        count = int(best.sum())
        return Run(count / self.length, total / (1 + count))

    def score(self, code: NDArray[np.uint8], present: View) -> list[RunScores]:
        """How well runs of views that end with the present image fit each of its places.

        Args:
            code: of the present image, uint8 [64].
            present: its candidates.

        Returns:
            runs of several lengths, the longest first.
        """
        before = [v.candidates for v in reversed(self._views) if v.candidates is not None]
        return score_runs(present, before, self._is_new(code), self._neighbours())

    def _neighbours(self) -> float:
        """Mean similarity of consecutive views, by the angle that their codes differ by."""
        if len(self._views) < 2:
            return 0.0
        codes = np.array([v.code for v in self._views])
        share = bits_apart(codes[1:], codes[:-1]) / (8 * codes.shape[1])
        return float(np.cos(np.pi * share).mean())

    def _is_new(self, code: NDArray[np.uint8]) -> bool:
        if not self._views:
            return True
        return bool(bits_apart(self._views[-1].code, code) >= NEW_VIEW_BITS)

    def add(
        self,
        stamp_ns: int,
        code: NDArray[np.uint8],
        best: Keyframe | None,
        distinctness: float,
        copies: Sequence[int] = (),
        candidates: View | None = None,
    ) -> None:
        """Remember an image, if it shows something new.

        Args:
            best: match of the image, with its distinctness; None for none.
            copies: places of the same session known to be the same, of other laps.
            candidates: all places that the image may show.
        """
        if self._is_new(code):
            places = np.array([] if best is None else [best.place, *copies], np.int64)
            self._views.append(_View(stamp_ns, code, best, distinctness, places, candidates))
