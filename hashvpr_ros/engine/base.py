"""The contract of every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import EngineError


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


def check_images(images: object, info: EngineInfo, source: object) -> NDArray[np.uint8]:
    """The batch as an array, where it is what an engine takes.

    Args:
        source: the file of the engine, for the error.

    Raises:
        EngineError: not uint8 [N, H, W, 3] of the engine's size with N of at least 1.
    """
    array = np.asarray(images)
    want = (info.height, info.width, 3)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != want or not len(array):
        raise EngineError(
            f"{source}: takes uint8 [N, {want[0]}, {want[1]}, 3] with N of at least 1, not "
            f"{array.dtype} {list(array.shape)}; resize the images first"
        )
    return array


def check_features(features: NDArray[np.float32], source: object) -> None:
    """Refuse what no distance can be computed from.

    Raises:
        EngineError: a feature is NaN or infinite.
    """
    if not np.isfinite(features).all():
        raise EngineError(f"{source}: the model gave NaN or infinity; export it again")


def closed(source: object) -> EngineError:
    """The error of an engine that is used after `close`."""
    return EngineError(f"{source}: the engine is closed; create it again")
