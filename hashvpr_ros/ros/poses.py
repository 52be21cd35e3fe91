"""Where the pose of an image comes from: an odometry topic or tf."""

from __future__ import annotations

import bisect
import importlib.util
import math
import threading
from typing import Any, Protocol

from nav_msgs.msg import Odometry
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time

from hashvpr_ros.config import PoseConfig
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.ros.conversions import stamp_to_ns
from hashvpr_ros.types import Pose

_KEEP = 2000  # poses: some seconds at any rate that odometry has
_JUMP_NS = 1_000_000_000  # odometry that steps back further than this was restarted


class PoseSource(Protocol):
    """Answers where the robot was."""

    def at(self, stamp_ns: int, max_age_s: float) -> Pose | None:
        """The pose at a stamp, or None where none is known within `max_age_s` of it."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class PoseTrack:
    """Poses by stamp, interpolated. Safe to use from several threads."""

    def __init__(self, keep: int = _KEEP) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._stamps: list[int] = []
        self._poses: list[Pose] = []
        self.invalid = 0  # poses with NaN, infinity or a zero quaternion, which were left out

    def add(self, stamp_ns: int, pose: Pose) -> None:
        """Add a pose; one that steps far back in time starts the track anew."""
        if not pose.is_valid():
            self.invalid += 1
            return
        with self._lock:
            if self._stamps and stamp_ns < self._stamps[-1] - _JUMP_NS:
                self._stamps.clear()
                self._poses.clear()
            at = bisect.bisect_right(self._stamps, stamp_ns)
            self._stamps.insert(at, stamp_ns)
            self._poses.insert(at, pose)
            # In one go: deleting the first of a list each time would move all others.
            if len(self._stamps) > 2 * self._keep:
                del self._stamps[: -self._keep], self._poses[: -self._keep]

    def at(self, stamp_ns: int, max_age_s: float) -> Pose | None:
        """Between two poses that are both near enough: interpolated; else the nearest."""
        max_age_ns = round(max_age_s * 1e9)
        with self._lock:
            after = bisect.bisect_left(self._stamps, stamp_ns)
            near = [
                (self._stamps[i], self._poses[i])
                for i in (after - 1, after)
                if 0 <= i < len(self._stamps) and abs(self._stamps[i] - stamp_ns) <= max_age_ns
            ]
        if not near:
            return None
        if len(near) == 1 or near[0][0] == near[1][0]:
            return near[0][1]
        (t0, first), (t1, second) = near
        return interpolate(first, second, (stamp_ns - t0) / (t1 - t0))


def interpolate(first: Pose, second: Pose, share: float) -> Pose:
    """The pose at `share` (0 to 1) of the way: linear position, normalised linear orientation."""
    if first.frame_id != second.frame_id:
        return first if share < 0.5 else second
    sign = 1.0
    if sum(a * b for a, b in zip(first.orientation, second.orientation, strict=True)) < 0:
        sign = -1.0  # the same rotation on the other side of the sphere
    position = [
        a + share * (b - a) for a, b in zip(first.position_m, second.position_m, strict=True)
    ]
    q = [
        (1 - share) * a + share * sign * b
        for a, b in zip(first.orientation, second.orientation, strict=True)
    ]
    norm = math.sqrt(sum(v * v for v in q))
    if norm < 1e-9:
        return first if share < 0.5 else second
    x, y, z = position
    return Pose((x, y, z), (q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm), first.frame_id)


def unit(pose: Pose) -> Pose:
    """The same pose with a quaternion of length 1; an invalid one as it is."""
    norm = math.hypot(*pose.orientation)
    if not pose.is_valid() or not math.isfinite(norm):
        return pose
    x, y, z, w = (v / norm for v in pose.orientation)
    return Pose(pose.position_m, (x, y, z, w), pose.frame_id)


class OdometryPoses:
    """Poses from nav_msgs/Odometry."""

    def __init__(self, node: Node, topic: str, group: CallbackGroup) -> None:
        self.track = PoseTrack()
        self._node = node
        self._subscription = node.create_subscription(
            Odometry,
            topic,
            self._on_message,
            # Best effort is compatible with publishers of both kinds.
            QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
            callback_group=group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _on_message(self, message: Any) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        pose = Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w), message.header.frame_id)
        if not pose.is_valid():
            self._node.get_logger().warning(
                "odometry with NaN, infinity or a zero quaternion: keyframes get no pose from it",
                throttle_duration_sec=10.0,
            )
        self.track.add(stamp_to_ns(message.header.stamp), unit(pose))

    def at(self, stamp_ns: int, max_age_s: float) -> Pose | None:
        """See `PoseSource.at`."""
        return self.track.at(stamp_ns, max_age_s)

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

    def at(self, stamp_ns: int, max_age_s: float) -> Pose | None:
        """See `PoseSource.at`."""
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
            if stamp_to_ns(found.header.stamp) and age_ns > max_age_s * 1e9:
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
