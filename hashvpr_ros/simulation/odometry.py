"""Odometry that drifts, made of exact poses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Drift:
    """How odometry errs. The default is that of good wheels with a cheap gyroscope."""

    scale: float = 1.01  # of distances
    yaw_bias_rad_per_m: float = 0.0002
    noise: float = 0.02  # standard deviation of a step's length and turn, as shares of them
    seed: int = 0


def drifting(
    poses: Iterable[tuple[float, float, float]], drift: Drift
) -> Iterator[tuple[float, float, float]]:
    """Poses as odometry has them: errors of each step add up.

    Args:
        poses: x and y in metres, yaw in radians, exact; the first is taken as it is.
    """
    rng = np.random.default_rng(drift.seed)
    x = y = yaw = 0.0
    last: tuple[float, float, float] | None = None
    for pose in poses:
        if last is None:
            x, y, yaw = pose
        else:
            dx, dy = pose[0] - last[0], pose[1] - last[1]
            turn = (pose[2] - last[2] + math.pi) % (2 * math.pi) - math.pi
            step = math.hypot(dx, dy)
            heading = math.atan2(dy, dx) - last[2]  # against the robot's own
            length_error, turn_error = rng.normal(0.0, drift.noise, 2)
            length = step * drift.scale * (1.0 + length_error)
            x += length * math.cos(yaw + heading)
            y += length * math.sin(yaw + heading)
            yaw += turn * (1.0 + turn_error) + drift.yaw_bias_rad_per_m * step
        last = pose
        yield x, y, yaw
