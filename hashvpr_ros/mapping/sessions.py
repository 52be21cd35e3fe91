"""When a new session begins: the stamps of a camera start again."""

from __future__ import annotations

import time

# A camera that steps back further than this is a bag that was started again, not a late image.
JUMP_NS = 1_000_000_000
# When a bag starts again all its cameras step back, each with its next image.
_TOGETHER_S = 5.0


class StampWatch:
    """Notices that stamps start again, as those of a bag that is played once more.

    It outlives the subscriptions, for the bag may start again while the node is inactive.
    """

    def __init__(self) -> None:
        self._last_ns: dict[str, int] = {}
        self._runs: dict[str, int] = {}
        self._run = 0  # the newest of all cameras
        self._since_s = 0.0
        self._begun = 0

    def see(self, camera: str, stamp_ns: int) -> tuple[int, int]:
        """Look at an image's stamp, in the thread that receives images.

        Returns:
            the run that it belongs to, and how far its camera stepped back, in ns.
        """
        back_ns = max(0, self._last_ns.get(camera, stamp_ns) - stamp_ns)
        self._last_ns[camera] = stamp_ns
        if back_ns > JUMP_NS:
            now = time.monotonic()
            if self._runs.get(camera, 0) == self._run or now - self._since_s > _TOGETHER_S:
                self._run += 1
                self._since_s = now
            self._runs[camera] = self._run
        return self._runs.get(camera, 0), back_ns

    def begins(self, run: int) -> bool:
        """Whether an image is the first of its run that is worked on; in the worker's thread."""
        first = run > self._begun
        self._begun = max(run, self._begun)
        return first
