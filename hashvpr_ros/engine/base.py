"""The contract of every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, known as soon as it is loaded."""

    name: str  # of the model, for people
    fingerprint: str  # 64 hex digits; equal for the same model whatever runtime executes it
    height: int  # pixels of the images that `describe` takes
    width: int
    feature_dim: int  # D
    provider: str  # what executes it, e.g. "CPUExecutionProvider"
    license: str = ""
    version: str = ""
    # Logistic curve P(match is right) = 1 / (1 + exp(-(slope * x + intercept))) over the
    # distinctness x (matching.distinct), fitted when the model was made; None: the file has none.
    probability_curve: tuple[float, float] | None = None


class DescriptorEngine(Protocol):
    """Turns images into descriptors. Used by one thread at a time."""

    @property
    def info(self) -> EngineInfo:
        """The engine's model, input size and provider."""
        ...

    def describe(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Describe a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, of the engine's height and width, N >= 1.

        Returns:
            codes uint8 [N, 64] and L2-normalised features float32 [N, D].

        Raises:
            EngineError: wrong shape or dtype, or the runtime failed.
        """
        ...

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first real one is not the slow one."""
        ...

    def close(self) -> None:
        """Free the runtime's memory; calling it again does nothing."""
        ...
