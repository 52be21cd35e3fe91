"""What every reader yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.types import Pose


@dataclass(frozen=True)
class Frame:
    """One image with what is known of it."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    stamp_ns: int
    pose: Pose | None = None
    name: str = ""  # file or topic, for messages to people


class Frames(Protocol):
    """A sized sequence of frames, read one at a time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...
