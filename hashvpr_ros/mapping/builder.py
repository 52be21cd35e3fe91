"""Builds a map from frames, by the very recognizer that a robot runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Pose


class FrameLike(Protocol):
    """What is needed of a frame; `datasets.base.Frame` is one."""

    @property
    def rgb(self) -> NDArray[np.uint8]: ...

    @property
    def stamp_ns(self) -> int: ...

    @property
    def pose(self) -> Pose | None: ...


@dataclass(frozen=True)
class BuildCounts:
    """What a build did."""

    images: int
    keyframes: int


def build_map(
    recognizer: Recognizer,
    frames: Iterable[FrameLike],
    *,
    camera: str = "camera",
    progress: Callable[[], None] = lambda: None,
) -> BuildCounts:
    """Feed frames to a recognizer in mode `mapping`.

    Args:
        progress: called after each image.

    Raises:
        MapError: the map could not be written. Errors of the frames' reader pass through; what was
        added before stays.
    """
    images = keyframes = 0
    for frame in frames:
        decision = recognizer.process(frame.rgb, frame.stamp_ns, frame.pose, camera)
        if decision.store_error:
            raise MapError(decision.store_error)
        images += 1
        keyframes += decision.keyframe_id > 0
        progress()
    return BuildCounts(images, keyframes)
