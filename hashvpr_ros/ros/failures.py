"""What the node does with exceptions that it survives: they are counted and logged. No ROS."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from hashvpr_ros.errors import HashVprError, reason_of

_REPEAT_S = 10.0  # between two lines about the same failure
_MOST_KINDS = 256  # that are told apart; the text of an error may come from outside


class Failures:
    """Counts every failure and logs the first of a kind at once, later ones now and then.

    Safe to use from several threads; never raises.

    Args:
        log: logs a text as an error.
        count: told a sentence, and the cameras whose image the failure cost.
    """

    def __init__(self, log: Callable[[str], None], count: Callable[..., None]) -> None:
        self._log = log
        self._count = count
        self._lock = threading.Lock()
        self._said: dict[tuple[str, ...], list[float]] = {}  # by kind: when, and how many since

    def report(
        self, error: BaseException, *cameras: str, doing: str = "", always: bool = False
    ) -> None:
        """Take note of an exception.

        Args:
            cameras: whose image it cost.
            doing: what raised it, for one that nobody foresaw.
            always: whether it is logged in any case, as the answer to what a user did.
        """
        with suppress(BaseException):  # memory may be short: the caller lives on in any case
            foreseen = isinstance(error, HashVprError)
            text = str(error) if foreseen else f"{type(error).__name__}: {reason_of(error)}"
            self._counted(text, cameras)
            first, unsaid = (True, 0) if always else self._to_say(error, text)
            if first is None:
                return
            if unsaid:
                text += f" ({unsaid} more times since this was last logged)"
            if first and not foreseen:
                place = f" in {doing}" if doing else ""
                text = f"unexpected error{place}: {text}\n" + "".join(
                    traceback.format_exception(error)
                )
            self._log(text)

    def _counted(self, text: str, cameras: tuple[str, ...]) -> None:
        try:
            self._count(text, *cameras)
        except KeyError:  # a camera of the configuration before
            self._count(text)

    def _to_say(self, error: BaseException, text: str) -> tuple[bool | None, int]:
        """Whether it is the first of its kind, None where nothing is to be said; and how many
        were not said since the last."""
        frames = traceback.extract_tb(error.__traceback__)
        # By the whole way to it: one function may fail for several reasons.
        kind = (type(error).__name__, *(f"{f.filename}:{f.lineno}" for f in frames))
        if isinstance(error, HashVprError) or not frames:
            kind += (re.sub(r"\d+", "0", text)[:200],)
        now = time.monotonic()
        with self._lock:
            found = self._said.get(kind)
            if found is None:
                while len(self._said) >= _MOST_KINDS:
                    del self._said[next(iter(self._said))]
                self._said[kind] = [now, 0]
                return True, 0
            if now - found[0] < _REPEAT_S:
                found[1] += 1
                return None, 0
            unsaid, found[:] = int(found[1]), [now, 0]
            return False, unsaid
