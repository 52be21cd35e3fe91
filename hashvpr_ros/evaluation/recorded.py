"""An engine that repeats descriptors: many ways of matching then cost one run of the network."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.types import Descriptor

_SIDE_PX = 8  # of the blank images that it takes


class RecordedEngine:
    """Gives recorded descriptors one after the other, whatever the images.

    Args:
        info: of the engine that made them; its size is replaced by a small one, so that resizing
            costs nothing.
        codes, features: uint8 [n, 64] and float32 [n, D].
    """

    def __init__(
        self, info: EngineInfo, codes: NDArray[np.uint8], features: NDArray[np.float32]
    ) -> None:
        self.info = dataclasses.replace(info, height=_SIDE_PX, width=_SIDE_PX, local_shape=None)
        self._codes, self._features = codes, features
        self._next = 0

    @property
    def blank(self) -> NDArray[np.uint8]:
        """An image to give to it, uint8 [H, W, 3]."""
        return np.zeros((_SIDE_PX, _SIDE_PX, 3), np.uint8)

    def describe(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The next descriptors, as many as there are images."""
        rows = slice(self._next, self._next + len(images))
        self._next = rows.stop
        return self._codes[rows], self._features[rows]

    def descriptors(self, images: NDArray[np.uint8]) -> list[Descriptor]:
        """The same as `Descriptor`s, without local ones."""
        return [Descriptor(c, f) for c, f in zip(*self.describe(images), strict=True)]

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""
