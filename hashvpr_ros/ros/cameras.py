"""The image subscriptions of an active node, and why a topic is silent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from sensor_msgs.msg import CompressedImage, Image

from hashvpr_ros.mapping.sessions import JUMP_NS, StampWatch
from hashvpr_ros.ros.conversions import stamp_to_ns
from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.ros.qos import overridable

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

_REPEAT_S = 30.0


@dataclass(frozen=True)
class Arrival:
    """An image message as it waits for the engine."""

    message: Any
    stamp_ns: int  # of the header, or of the arrival where the header has none
    arrived_s: float  # monotonic
    run: int  # how often the stamps have started again before it


def _sensor_qos() -> QoSProfile:
    """rclpy's profile for sensors, made anew: see `overridable`."""
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class Cameras:
    """Subscriptions to all cameras.

    Args:
        topics: topic by camera name.
        offer: called with (camera, Arrival); returns whether an older image was replaced.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(
        self,
        node: Node,
        topics: dict[str, str],
        compressed: bool,
        stats: Stats,
        watch: StampWatch,
        offer: Callable[[str, Arrival], bool],
    ) -> None:
        self._node = node
        self._stats = stats
        self._offer = offer
        self._kind = CompressedImage if compressed else Image
        self._watch = watch
        self._said: dict[str, float] = {}
        self._subscriptions: dict[str, Any] = {}  # by camera
        self._closed = False
        # Of its own: rclpy (7.1) leaves a group blocked when an event's owner is destroyed
        # between the event and its callback.
        group = MutuallyExclusiveCallbackGroup()
        try:
            for camera, topic in topics.items():
                self._subscriptions[camera] = self._subscribe(camera, topic, group)
        except BaseException:
            self.close()
            raise

    def _subscribe(self, camera: str, topic: str, group: CallbackGroup) -> Any:
        with overridable(topic) as options:
            return self._node.create_subscription(
                self._kind,
                topic,
                lambda message: self._on_image(camera, message),
                _sensor_qos(),
                callback_group=group,
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=lambda event: self._on_incompatible(topic, event)
                ),
                qos_overriding_options=options,
            )

    def close(self) -> None:
        """Stop taking images."""
        self._closed = True
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _on_image(self, camera: str, message: Any) -> None:
        if self._closed:
            return
        self._stats.arrived(camera)
        stamp_ns = stamp_to_ns(message.header.stamp)
        if stamp_ns <= 0:
            stamp_ns = self._node.get_clock().now().nanoseconds
            self._say_once(
                f"{camera} stamp",
                f"images of camera {camera} have no stamp: the time of their arrival is used to "
                "find their pose and to store them",
            )
        run, back_ns = self._watch.see(camera, stamp_ns)
        if back_ns > JUMP_NS:
            self._node.get_logger().warning(
                f"stamps of camera {camera} went back by {back_ns / 1e9:.1f} s (a bag that was "
                "started again?): what follows is recorded as a new session"
            )
        elif back_ns:
            self._say_once(f"{camera} order", f"images of camera {camera} come out of order")
        if self._offer(camera, Arrival(message, stamp_ns, time.monotonic(), run)):
            self._stats.dropped(camera)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said[key] = time.monotonic()
            self._node.get_logger().warning(text)

    def _on_incompatible(self, topic: str, event: Any) -> None:
        try:
            policy = QoSPolicyKind(event.last_policy_kind).name.lower()
        except ValueError:
            policy = str(event.last_policy_kind)
        self._node.get_logger().warning(
            f"a publisher on {self._node.resolve_topic_name(topic)} has an incompatible QoS "
            f"({policy}), so its images do not arrive: change it there, or here by the "
            "qos_overrides parameters"
        )

    def report_silence(self, stale_after_s: float) -> dict[str, str]:
        """Log which topics are silent and why, now and then; and when they come back.

        Returns:
            why, by silent camera.
        """
        now = time.monotonic()
        reasons = {}
        for camera, subscription in list(self._subscriptions.items()):
            stats = self._stats.cameras[camera]
            key = f"{camera} silent"
            silent_s = now - stats.last_arrival_s
            if silent_s <= stale_after_s:
                if self._said.pop(key, None) is not None:
                    self._node.get_logger().info(f"images come on {stats.topic} again")
                continue
            reasons[camera] = why = self._why(stats.topic, subscription)
            if now - self._said.get(key, float("-inf")) > _REPEAT_S:
                self._said[key] = now
                self._node.get_logger().warning(
                    f"no image on {stats.topic} for {silent_s:.0f} s: {why}"
                )
        return reasons

    def _why(self, topic: str, subscription: Any) -> str:
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return "nobody publishes there"
        wanted = f"sensor_msgs/msg/{self._kind.__name__}"
        of_kind = [p for p in publishers if p.topic_type == wanted]
        if not of_kind:
            kinds = ", ".join(sorted({p.topic_type for p in publishers}))
            return f"its type is {kinds}, not {wanted} (input.compressed?)"
        reasons = []
        for publisher in of_kind:
            compatible, reason = qos_check_compatible(
                publisher.qos_profile, subscription.qos_profile
            )
            if compatible != QoSCompatibility.ERROR:
                return f"publishers there: {len(of_kind)}, but they send nothing"
            reasons.append(reason.removeprefix("ERROR: ").rstrip("; "))
        return f"incompatible QoS: {reasons[0]}"
