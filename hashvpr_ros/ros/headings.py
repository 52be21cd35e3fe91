"""How cameras are turned in the robot, from tf."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

from rclpy.node import Node
from rclpy.time import Time

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.types import Pose


class TfHeadings:
    """Looks for the heading of each camera until tf has it.

    Args:
        frame: of the robot, x ahead.
        found: told the headings of all cameras known so far, radians to the left.
    """

    def __init__(self, node: Node, frame: str, found: Callable[[dict[str, float]], None]) -> None:
        import tf2_ros

        self._node = node
        self._frame = frame
        self._found = found
        self._headings_rad: dict[str, float] = {}
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
            self._node.get_logger().warning(
                f"no heading of camera {camera} from tf: {e}", throttle_duration_sec=10.0
            )
            return
        q = transform.rotation
        turn = Pose((0.0, 0.0, 0.0), (q.x, q.y, q.z, q.w))
        self._headings_rad[camera] = heading_rad(turn, frame_id)
        self._found(self._headings_rad)

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
