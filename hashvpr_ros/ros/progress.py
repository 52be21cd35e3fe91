"""What the log says while all is well: the first results, and a summary each minute."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.types import Decision, Reason

_PERIOD_S = 60.0


class Progress:
    """Logs first results and summaries at INFO, and each decision at DEBUG.

    Args:
        logger: of the node.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._lock = threading.Lock()  # decisions and summaries come from two threads
        self.start()

    def start(self) -> None:
        """Begin anew: the node was activated."""
        with self._lock:
            self._is_first = True
            self._recognised_in: str | None = None  # session whose first place was logged
            self._begin_summary(Counter())

    def _begin_summary(self, lost: Counter[str]) -> None:
        self._since_s = time.monotonic()
        self._reasons: Counter[str] = Counter()
        self._keyframes = 0
        self._lost_before = lost

    def decided(self, decision: Decision, total_ms: float) -> None:
        """Count a decision that is published.

        Args:
            total_ms: from the image's arrival until now.
        """
        with self._lock:
            is_first, self._is_first = self._is_first, False
            first_place = decision.accepted and self._recognised_in != decision.session
            if first_place:
                self._recognised_in = decision.session
            self._reasons[decision.reason.value] += 1
            self._keyframes += decision.keyframe_id > 0
        at = f"camera {decision.camera} at {decision.stamp_ns / 1e9:.3f} s"
        best = decision.hypotheses[0] if decision.hypotheses else None
        match = ""
        if best is not None:
            match = (
                f"keyframe {best.keyframe.id} (camera {best.keyframe.camera}, "
                f"{best.keyframe.stamp_ns / 1e9:.3f} s, probability {best.probability:.3f})"
            )
        if is_first:
            self._logger.info(
                f"first image is answered, {total_ms:.0f} ms after it came: {at}, "
                f"{decision.reason.value}"
            )
        if first_place:
            self._logger.info(f"first place is recognised: {at} is at {match}")
        self._logger.debug(f"{at}: {decision.reason.value}" + (f", best {match}" if match else ""))

    def summarise(self, stats: Stats, keyframes: int) -> None:
        """Log a summary where the last is a minute old and images came since.

        Args:
            keyframes: in the map.
        """
        with self._lock:
            lasted_s = time.monotonic() - self._since_s
            if lasted_s < _PERIOD_S:
                return
            lost = stats.lost()
            new = lost - self._lost_before
            reasons, added = self._reasons, self._keyframes
            self._begin_summary(lost)
        images = reasons.total()
        if not images and not new:
            return
        accepted = reasons.pop(Reason.ACCEPTED.value, 0)
        text = (
            f"last {lasted_s:.0f} s: images answered: {images}, keyframes added: {added} (in the "
            f"map: {keyframes}), loop closures: {accepted}"
        )
        if reasons:
            text += "; not accepted: " + _counts(reasons)
        if without_pose := new.pop("without pose", 0):
            text += f"; images without a pose: {without_pose}"
        if new:
            text += "; lost: " + _counts(new)
        self._logger.info(text)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common())
