"""Where the pose of an image comes from: an odometry topic or tf."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

from nav_msgs.msg import Odometry
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time

from hashvpr_ros.config import PoseConfig
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.poses import PoseTrack, unit
from hashvpr_ros.ros.conversions import from_pose, stamp_to_ns
from hashvpr_ros.ros.qos import overridable
from hashvpr_ros.types import Pose


class PoseSource(Protocol):
    """Answers where the robot was."""

    def at(self, stamp_ns: int, config: PoseConfig) -> Pose | None:
        """The pose at a stamp, or None where none is known near enough; may wait for it."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class OdometryPoses:
    """Poses from nav_msgs/Odometry."""

    def __init__(self, node: Node, topic: str, group: CallbackGroup) -> None:
        self.track = PoseTrack()
        self._node = node
        with overridable(topic) as options:
            self._subscription = node.create_subscription(
                Odometry,
                topic,
                self._on_message,
                # Best effort is compatible with publishers of both kinds.
                QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
                callback_group=group,
                qos_overriding_options=options,
            )

    def _on_message(self, message: Any) -> None:
        pose = from_pose(message.pose.pose, message.header.frame_id)
        if not pose.is_valid():
            self._node.get_logger().warning(
                "odometry with NaN, infinity or a zero quaternion: keyframes get no pose from it",
                throttle_duration_sec=10.0,
            )
        self.track.add(stamp_to_ns(message.header.stamp), pose)

    def at(self, stamp_ns: int, config: PoseConfig) -> Pose | None:
        """See `PoseSource.at`."""
        return self.track.at(stamp_ns, config.max_age_s, config.wait_s)

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)


class TfPoses:
    """Poses from tf2: of the base frame in the fixed frame."""

    def __init__(self, node: Node, fixed_frame: str, base_frame: str) -> None:
        import tf2_ros

        self._node = node
        self._frames = fixed_frame, base_frame
        self._errors = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def at(self, stamp_ns: int, config: PoseConfig) -> Pose | None:
        """See `PoseSource.at`; tf is not waited for."""
        try:
            found = self._buffer.lookup_transform(*self._frames, Time(nanoseconds=stamp_ns))
        except self._errors:
            try:  # the newest, when the image is ahead of tf
                found = self._buffer.lookup_transform(*self._frames, Time())
            except self._errors as e:
                self._node.get_logger().warning(
                    f"no pose from tf: {e}", throttle_duration_sec=10.0
                )
                return None
            # Static transforms have stamp 0 and hold at any time.
            age_ns = abs(stamp_to_ns(found.header.stamp) - stamp_ns)
            if stamp_to_ns(found.header.stamp) and age_ns > config.max_age_s * 1e9:
                return None
        p, q = found.transform.translation, found.transform.rotation
        pose = Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w), self._frames[0])
        return unit(pose) if pose.is_valid() else None

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()


def check_pose_source(config: PoseConfig) -> None:
    """Refuse what cannot work here, before the node is active.

    Raises:
        ConfigError: tf is asked for and tf2_ros is not installed, or a name is empty.
    """
    if config.source == "tf":
        if importlib.util.find_spec("tf2_ros") is None:
            raise ConfigError(
                "pose.source is tf, but tf2_ros is not installed: install "
                "ros-<distro>-tf2-ros-py, or set pose.source to odometry or none"
            )
        if not config.fixed_frame or not config.base_frame:
            raise ConfigError("pose.source is tf: pose.fixed_frame and pose.base_frame need names")
    if config.source == "odometry" and not config.odometry_topic:
        raise ConfigError("pose.source is odometry: pose.odometry_topic needs a name")


def create_pose_source(node: Node, config: PoseConfig, group: CallbackGroup) -> PoseSource | None:
    """The source that the configuration asks for; None for none."""
    if config.source == "odometry":
        return OdometryPoses(node, config.odometry_topic, group)
    if config.source == "tf":
        return TfPoses(node, config.fixed_frame, config.base_frame)
    return None
