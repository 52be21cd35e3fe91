"""How near two keyframes are, in viewpoint and code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bits set in each 16-bit number: numpy has no popcount before its version 2.
_BITS = np.unpackbits(np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2), axis=1).sum(
    axis=1, dtype=np.uint8
)


@dataclass(frozen=True)
class Nearness:
    """How near two keyframes are where one of them can go."""

    within_m: float = 1.0
    within_rad: float = 0.35
    within_bits: int = 24


def bits_apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Hamming distances of codes, [..., 64] and [..., 64] or [64]: int32 [...]."""
    return np.asarray(_BITS[(a ^ b).view(np.uint16)].sum(axis=-1, dtype=np.int32))
