"""Which images of several cameras are of one instant; the replay groups as the node does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

# A camera that has been silent for this long is not waited for.
_SILENT_S = 2.0


class Stamped(Protocol):
    """What is needed of an image that waits."""

    @property
    def stamp_ns(self) -> int: ...

    @property
    def arrived_s(self) -> float: ...

    @property
    def run(self) -> int: ...


class Instants:
    """Gathers the newest images of the cameras into instants.

    Args:
        cameras: all that there are.
        sync_s: images stamped within this time of each other are of one instant.
    """

    def __init__(self, cameras: list[str], sync_s: float) -> None:
        self.sync_s = sync_s
        self._last_s = dict.fromkeys(cameras, float("-inf"))  # when an image of each arrived

    def arrived(self, camera: str, now_s: float) -> None:
        """Learn that a camera is alive; from the thread that receives images."""
        self._last_s[camera] = now_s

    def gather(self, waiting: Mapping[str, Stamped], now_s: float) -> tuple[list[str], float]:
        """The cameras whose images are to be judged now, as one instant.

        Args:
            waiting: the newest image of each camera, in the order in which they are served.

        Returns:
            cameras; or none, and for how many seconds at most the others are to be waited for.
        """
        first = next(iter(waiting.values()))
        together = [
            camera
            for camera, image in waiting.items()
            if image is first
            or (
                is_together(image.stamp_ns, first.stamp_ns, self.sync_s) and image.run == first.run
            )
        ]
        missing = [
            camera
            for camera, last_s in self._last_s.items()
            if camera not in waiting and now_s - last_s < _SILENT_S
        ]
        left_s = first.arrived_s + self.sync_s - now_s
        if missing and left_s > 0.0:
            return [], left_s
        return together, 0.0


def is_together(a_ns: int, b_ns: int, sync_s: float) -> bool:
    """Whether two stamps are of one instant."""
    return sync_s > 0.0 and abs(a_ns - b_ns) <= round(sync_s * 1e9)
