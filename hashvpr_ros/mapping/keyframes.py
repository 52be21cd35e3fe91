"""Selection of keyframes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.map.nearness import bits_apart
from hashvpr_ros.poses import turned_rad
from hashvpr_ros.types import Pose


class KeyframeSelector:
    """Decides for one camera whether an image becomes a keyframe.

    With poses: after `min_distance_m` or `min_angle_rad` since the last keyframe. Without: not
    sooner than `min_period_s`, and when the code differs by `min_novelty_bits` or `max_period_s`
    has passed, so that a robot that stands still does not fill its map with one view.
    """

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self._last: tuple[int, Pose | None, NDArray[np.uint8]] | None = None

    def should_add(self, stamp_ns: int, pose: Pose | None, code: NDArray[np.uint8]) -> bool:
        """Whether this image is a keyframe.

        Args:
            pose: None where it is not known; an invalid one counts as None.
            code: uint8 [64].
        """
        if self._last is None:
            return True
        last_stamp_ns, last_pose, last_code = self._last
        if pose is not None and not pose.is_valid():
            pose = None
        if pose is not None and last_pose is not None and pose.frame_id == last_pose.frame_id:
            return (
                math.dist(pose.position_m, last_pose.position_m) >= self.config.min_distance_m
                or turned_rad(pose, last_pose) >= self.config.min_angle_rad
            )
        elapsed_s = (stamp_ns - last_stamp_ns) / 1e9
        if elapsed_s < 0:  # time has jumped back: what came before says nothing
            return True
        if elapsed_s < self.config.min_period_s:
            return False
        if 0 < self.config.max_period_s <= elapsed_s:
            return True
        return bool(bits_apart(code, last_code) >= self.config.min_novelty_bits)

    def added(self, stamp_ns: int, pose: Pose | None, code: NDArray[np.uint8]) -> None:
        """Remember the keyframe that the next ones are compared with."""
        valid = pose if pose is not None and pose.is_valid() else None
        self._last = (stamp_ns, valid, code)
