"""Where the pose of an image comes from: an odometry topic or tf."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import deque
from typing import Any, Protocol

from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time

from hashvpr_ros.config import InputConfig, PoseConfig
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.poses import PoseTrack, unit
from hashvpr_ros.ros.conversions import from_pose, stamp_to_ns
from hashvpr_ros.ros.inputs import ERROR_AFTER, Input, Problem, Watched
from hashvpr_ros.ros.stamps import apart_text, stamp_or_arrival_ns
from hashvpr_ros.types import Pose

# Images that tell whether most of them have a pose.
_LAST_IMAGES = 20
# Images and odometry that arrive together may be stamped this far apart, as images are late.
_LATE_S = 1.0
# Two clocks of one robot that are further apart than this are not merely unsynchronised.
_OTHER_CLOCK_S = 60.0


class PoseSource(Watched, Protocol):
    """Answers where the robot was, and says why it cannot."""

    def at(self, stamp_ns: int, arrived_s: float, config: PoseConfig) -> Pose | None:
        """The pose at the stamp of an image, or None where none is known near enough.

        It may wait for one.

        Args:
            arrived_s: when the image arrived, monotonic.
        """
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class _Lacking:
    """Whether images lack a pose for long: all of them, or most of the last ones.

    Told in the worker's thread, asked in another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: deque[bool] = deque(maxlen=_LAST_IMAGES)  # whether each had a pose
        self._all_since_s: float | None = None  # when the first image of a row of those came
        self._most_since_s: float | None = None
        self._why = Problem("", "")

    def found(self) -> None:
        """An image has a pose."""
        with self._lock:
            self._all_since_s = None
            self._add(True)

    def missed(self, kind: str, why: str) -> None:
        """An image has none, and why."""
        with self._lock:
            self._why = Problem(kind, why)
            if self._all_since_s is None:
                self._all_since_s = time.monotonic()
            self._add(False)

    def _add(self, has_pose: bool) -> None:
        self._last.append(has_pose)
        if 2 * self._last.count(False) <= len(self._last):
            self._most_since_s = None
        elif self._most_since_s is None:
            self._most_since_s = time.monotonic()

    def problem(self, config: InputConfig) -> Problem | None:
        """What is wrong, after `input.stale_after_s`."""
        with self._lock:
            since = [s for s in (self._all_since_s, self._most_since_s) if s is not None]
            missed, images, why = self._last.count(False), len(self._last), self._why
        lasts_s = time.monotonic() - min(since) if since else 0.0
        if lasts_s <= config.stale_after_s:
            return None
        return Problem(
            why.kind,
            f"{missed} of the last {images} images have no pose: {why.text}",
            lasts_s > ERROR_AFTER * config.stale_after_s,
        )


def _off(what: str, gap_ns: int, max_age_s: float) -> tuple[str, str]:
    """Kind and text of stamps that do not fit those of the images."""
    side = "earlier" if gap_ns < 0 else "later"
    if abs(gap_ns) > _OTHER_CLOCK_S * 1e9:
        kind = "clock"
        remedy = "use one clock for both (set the same use_sim_time for all nodes)"
    else:
        kind = "age"
        remedy = (
            "synchronise the clocks, publish it more often, or raise pose.max_age_s (now "
            f"{max_age_s:g} s)"
        )
    return (
        kind,
        f"stamps of {what} are {apart_text(gap_ns / 1e9)} from the images' ({side}): {remedy}",
    )


class OdometryPoses:
    """Poses from nav_msgs/Odometry."""

    label = "odometry"

    def __init__(self, node: Node, topic: str) -> None:
        self.track = PoseTrack()
        self._node = node
        self._lacking = _Lacking()
        self._invalid_since = 0  # messages with NaN in a row
        self._ahead_ns: int | None = None  # stamp of the last minus time of its arrival
        self._late_since_s: float | None = None
        self._late_s = (
            0.0  # by which images are stamped earlier than odometry that comes with them
        )
        self._input = Input(
            node,
            self.label,
            "odometry",
            Odometry,
            topic,
            self._on_message,
            # Best effort is compatible with publishers of both kinds.
            QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
            remedy="start the odometry, or correct pose.odometry_topic",
        )
        self._topic = self._input.topic
        self.recovered = f"odometry on {self._topic}: images have poses again"

    def _on_message(self, message: Any) -> None:
        pose = from_pose(message.pose.pose, message.header.frame_id)
        if pose.is_valid():
            self._invalid_since = 0
        else:
            self._invalid_since += 1
            self._node.get_logger().warning(
                "odometry with NaN, infinity or a zero quaternion: keyframes get no pose from it",
                throttle_duration_sec=10.0,
            )
        stamp_ns, clock = stamp_or_arrival_ns(self._node, message.header.stamp)
        if clock:
            self._node.get_logger().warning(
                f"odometry on {self._topic} has no stamp: the node uses its time of arrival, by "
                f"{clock}",
                once=True,
            )
        self._ahead_ns = stamp_ns - time.monotonic_ns()
        self.track.add(stamp_ns, pose)

    def at(self, stamp_ns: int, arrived_s: float, config: PoseConfig) -> Pose | None:
        """See `PoseSource.at`."""
        self._compare(stamp_ns, arrived_s)
        pose = self.track.at(stamp_ns, config.max_age_s, config.wait_s)
        if pose is not None:
            self._lacking.found()
        else:
            self._lacking.missed(*self._why(stamp_ns, config))
        return pose

    def _compare(self, stamp_ns: int, arrived_s: float) -> None:
        """See whether odometry has another clock than the images, though some of it fits them."""
        if self._ahead_ns is None:
            return
        self._late_s = (self._ahead_ns - stamp_ns) / 1e9 + arrived_s
        if self._late_s <= _LATE_S:
            self._late_since_s = None
        elif self._late_since_s is None:
            self._late_since_s = time.monotonic()

    def _other_time(self, config: InputConfig) -> Problem | None:
        since_s = self._late_since_s
        if since_s is None or time.monotonic() - since_s <= config.stale_after_s:
            return None
        return Problem(
            "late",
            f"stamps of odometry on {self._topic} are {apart_text(self._late_s)} from the images' "
            "(later) when both arrive, so images get the pose of another time: use one clock for "
            "both, or find what delays the images",
        )

    def _why(self, stamp_ns: int, config: PoseConfig) -> tuple[str, str]:
        gap_ns = self.track.gap_ns(stamp_ns)
        if self._invalid_since:
            return "invalid", (
                f"odometry on {self._topic} has NaN, infinity or a zero quaternion: check its "
                "publisher"
            )
        if gap_ns is None:
            return "none", f"no odometry has come on {self._topic}"
        return _off(f"odometry on {self._topic}", gap_ns, config.max_age_s)

    def problem(self, config: InputConfig) -> Problem | None:
        """See `Watched`."""
        return (
            self._input.problem(config)
            or self._lacking.problem(config)
            or self._other_time(config)
        )

    def state(self) -> str:
        """See `Watched`."""
        return self._input.state()

    def values(self) -> dict[str, Any]:
        """See `Watched`."""
        return self._input.values()

    def close(self) -> None:
        """Stop listening."""
        self._input.close()


class TfPoses:
    """Poses from tf2: of the base frame in the fixed frame."""

    label = "tf"
    recovered = "tf: images have poses again"

    def __init__(self, node: Node, fixed_frame: str, base_frame: str) -> None:
        import tf2_ros

        self._node = node
        self._frames = fixed_frame, base_frame
        self._errors = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._lacking = _Lacking()

    def at(self, stamp_ns: int, arrived_s: float, config: PoseConfig) -> Pose | None:
        """See `PoseSource.at`; tf is not waited for."""
        pose = self._look_up(stamp_ns, config)
        if pose is not None:
            self._lacking.found()
        return pose

    def _look_up(self, stamp_ns: int, config: PoseConfig) -> Pose | None:
        try:
            found = self._buffer.lookup_transform(*self._frames, Time(nanoseconds=stamp_ns))
        except self._errors:
            try:  # the newest, when the image is ahead of tf
                found = self._buffer.lookup_transform(*self._frames, Time())
            except self._errors as e:
                self._lacking.missed("frames", self._no_transform(e))
                return None
            # Static transforms have stamp 0 and hold at any time.
            gap_ns = stamp_to_ns(found.header.stamp) - stamp_ns
            if stamp_to_ns(found.header.stamp) and abs(gap_ns) > config.max_age_s * 1e9:
                what = "the transform from {1} to {0} on /tf".format(*self._frames)
                self._lacking.missed(*_off(what, gap_ns, config.max_age_s))
                return None
        p, q = found.transform.translation, found.transform.rotation
        pose = Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w), self._frames[0])
        if not pose.is_valid():
            self._lacking.missed("invalid", "tf has NaN: check its publishers")
            return None
        return unit(pose)

    def _no_transform(self, error: Exception) -> str:
        if not any(self._node.get_publishers_info_by_topic(t) for t in ("/tf", "/tf_static")):
            return "nobody publishes /tf or /tf_static; start a publisher, or set pose.source"
        fixed, base = self._frames
        return (
            f"tf cannot say where {base} is in {fixed}: {str(error).rstrip('. ')}; correct "
            "pose.fixed_frame and pose.base_frame, or start their publisher"
        )

    def problem(self, config: InputConfig) -> Problem | None:
        """See `Watched`."""
        return self._lacking.problem(config)

    def state(self) -> str:
        """See `Watched`."""
        return "transforms come in"

    def values(self) -> dict[str, Any]:
        """See `Watched`."""
        return {"topic": "/tf", "fixed_frame": self._frames[0], "base_frame": self._frames[1]}

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


def create_pose_source(node: Node, config: PoseConfig) -> PoseSource | None:
    """The source that the configuration asks for; None for none."""
    if config.source == "odometry":
        return OdometryPoses(node, config.odometry_topic)
    if config.source == "tf":
        return TfPoses(node, config.fixed_frame, config.base_frame)
    return None
