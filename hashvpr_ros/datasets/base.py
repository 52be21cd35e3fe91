"""What every reader yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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

    @property
    def skipped(self) -> list[str]:
        """Why images were left out of the last pass, one line each."""
        ...

    @property
    def notes(self) -> list[str]:
        """What else is to be said of the last pass, a sentence each."""
        ...

    @property
    def lost(self) -> int:
        """Images that the last pass should have given, and did not."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


class Traverses(Protocol):
    """Images to be recognized, images to recognize them by, and which of these are correct."""

    queries: list[Path]
    references: list[Path]
    notes: list[str]  # what is to be said of the set, a sentence each

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """Indices of the correct references of each query; none where it has none.

        Args:
            tolerance: references within so many indices of a correct one count, too; where frames
                are numbered, within so many frames.

        Raises:
            ConfigError: the layout has no order in which neighbours could count.
        """
        ...
