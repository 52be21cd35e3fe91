"""Do the preceding images of a camera point to the same stretch of the map?

The idea is SeqSLAM's (Milford and Wyeth, ICRA 2012): one image may err, a run of them seldom errs
in step. Only the best match of each preceding image is asked, so the cost does not grow with the
map.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.types import Keyframe

# A view counts only when its code differs by this much from the one before: a robot that stands
# still sees one view again and again, and one view is one witness.
NEW_VIEW_BITS = 24
# How much faster or slower than when the map was made the robot may move.
_SPEED_RATIO = 2
_SLACK_KEYFRAMES = 1
_SLACK_NS = 500_000_000
# Views further apart in time than this are of different drives.
MAX_GAP_NS = 60 * 1_000_000_000


@dataclass(frozen=True)
class _View:
    stamp_ns: int
    code: NDArray[np.uint8]
    best: Keyframe | None  # best match of that image


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

    def agreeing(self, stamp_ns: int, match: Keyframe) -> int:
        """How many of the remembered views, at most `length`, matched near this keyframe."""
        count = 0
        for age, view in enumerate(reversed(self._views), start=1):
            best = view.best
            if best is None or best.session != match.session:
                continue
            near = abs(best.id - match.id) <= _SPEED_RATIO * age + _SLACK_KEYFRAMES
            tolerance_ns = _SPEED_RATIO * (stamp_ns - view.stamp_ns) + _SLACK_NS
            if near or abs(best.stamp_ns - match.stamp_ns) <= tolerance_ns:
                count += 1
        return count

    def add(self, stamp_ns: int, code: NDArray[np.uint8], best: Keyframe | None) -> None:
        """Remember an image, if it shows something new."""
        if self._views:
            last = self._views[-1].code
            if int(np.unpackbits(last ^ code).sum()) < NEW_VIEW_BITS:
                return
        self._views.append(_View(stamp_ns, code, best))
