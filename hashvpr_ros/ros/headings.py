"""How cameras are turned in the robot, from tf."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from hashvpr_ros.config import InputConfig
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.ros.inputs import Problem
from hashvpr_ros.types import Pose


class TfHeadings:
    """Looks for the heading of each camera until tf has it; see `Watched`.

    Args:
        frame: of the robot, x ahead.
        found: told the headings of all cameras known so far, radians to the left.
    """

    label = "headings"
    recovered = "tf has the headings of all cameras"

    def __init__(self, node: Node, frame: str, found: Callable[[dict[str, float]], None]) -> None:
        import tf2_ros

        self._node = node
        self._frame = frame
        self._found = found
        self._headings_rad: dict[str, float] = {}
        self._missing: dict[str, tuple[float, str]] = {}  # since when and why, by camera
        self._error = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def see(self, camera: str, frame_id: str) -> None:
        """Learn in which frame a camera's images are."""
        if camera in self._headings_rad:
            return
        try:
            transform = self._buffer.lookup_transform(self._frame, frame_id, Time()).transform
        except self._error as e:
            since_s, _ = self._missing.get(camera, (time.monotonic(), ""))
            self._missing[camera] = since_s, str(e).rstrip(". ")
            return
        self._missing.pop(camera, None)
        q = transform.rotation
        turn = Pose((0.0, 0.0, 0.0), (q.x, q.y, q.z, q.w))
        self._headings_rad[camera] = heading_rad(turn, frame_id)
        self._found(self._headings_rad)

    def problem(self, config: InputConfig) -> Problem | None:
        """See `Watched`."""
        now_s = time.monotonic()
        for camera, (since_s, why) in list(self._missing.items()):
            if now_s - since_s > config.stale_after_s:
                return Problem(
                    "frames",
                    f"no heading of camera {camera} from tf: {why}; correct input.heading_frame, "
                    "start the publisher of the frames, or give input.camera_headings",
                )
        return None

    def state(self) -> str:
        """See `Watched`."""
        return f"{len(self._headings_rad)} headings are known"

    def values(self) -> dict[str, Any]:
        """See `Watched`."""
        return {f"{c}_rad": f"{heading:.3f}" for c, heading in self._headings_rad.items()}

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()


def heading_rad(turn: Pose, frame_id: str) -> float:
    """Where a camera looks, radians to the left of ahead.

    Args:
        turn: orientation of the camera's frame in the robot's, x ahead and z up.
        frame_id: of the camera; optical frames look along z, others along x (REP 103).
    """
    x, y, z, w = turn.orientation
    if frame_id.endswith(("_optical", "_optical_frame")):
        ahead, left = 2.0 * (x * z + y * w), 2.0 * (y * z - x * w)
    else:
        ahead, left = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + z * w)
    return math.atan2(left, ahead)


def check_heading_frame(frame: str) -> None:
    """Refuse what cannot work here, before the node is active.

    Raises:
        ConfigError: tf is asked for and tf2_ros is not installed.
    """
    if frame and importlib.util.find_spec("tf2_ros") is None:
        raise ConfigError(
            "input.heading_frame is given, but tf2_ros is not installed: install "
            "ros-<distro>-tf2-ros-py, or give input.camera_headings"
        )
