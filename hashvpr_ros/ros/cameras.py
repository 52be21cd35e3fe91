"""The image subscriptions of an active node, and why a topic is silent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from hashvpr_ros.ros.conversions import stamp_to_ns
from hashvpr_ros.ros.diagnostics import Stats

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# A camera that steps back further than this is a bag that was started again, not a late image.
_JUMP_NS = 1_000_000_000
_REPEAT_S = 30.0


@dataclass(frozen=True)
class Arrival:
    """An image message as it waits for the engine."""

    message: Any
    stamp_ns: int  # of the header, or of the arrival where the header has none
    arrived_s: float  # monotonic
    new_session: bool  # the stamps have started again


class Cameras:
    """Subscriptions to all cameras.

    Args:
        topics: topic by camera name.
        offer: called with (camera, Arrival); returns whether an older image was replaced.
    """

    def __init__(
        self,
        node: Node,
        topics: dict[str, str],
        compressed: bool,
        stats: Stats,
        offer: Callable[[str, Arrival], bool],
        group: CallbackGroup,
    ) -> None:
        self._node = node
        self._stats = stats
        self._offer = offer
        self._kind = CompressedImage if compressed else Image
        self._last_ns: dict[str, int] = {}
        self._new_session: set[str] = set()
        self._said: dict[str, float] = {}
        self._subscriptions: list[Any] = []
        try:
            for camera, topic in topics.items():
                self._subscriptions.append(self._subscribe(camera, topic, group))
        except BaseException:
            self.close()
            raise

    def _subscribe(self, camera: str, topic: str, group: CallbackGroup) -> Any:
        return self._node.create_subscription(
            self._kind,
            topic,
            lambda message: self._on_image(camera, message),
            qos_profile_sensor_data,
            callback_group=group,
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda event: self._on_incompatible(topic, event)
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def close(self) -> None:
        """Stop taking images."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _on_image(self, camera: str, message: Any) -> None:
        if not self._subscriptions:
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
        last_ns = self._last_ns.get(camera)
        if last_ns is not None and stamp_ns < last_ns - _JUMP_NS:
            self._new_session.add(camera)
            self._node.get_logger().warning(
                f"stamps of camera {camera} went back by {(last_ns - stamp_ns) / 1e9:.1f} s (a "
                "bag that was started again?): what follows is recorded as a new session"
            )
        elif last_ns is not None and stamp_ns < last_ns:
            self._say_once(f"{camera} order", f"images of camera {camera} come out of order")
        self._last_ns[camera] = stamp_ns
        arrival = Arrival(message, stamp_ns, time.monotonic(), camera in self._new_session)
        if self._offer(camera, arrival):
            self._stats.dropped(camera)

    def session_started(self, camera: str) -> None:
        """The worker has seen `new_session` of this camera."""
        self._new_session.discard(camera)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said[key] = time.monotonic()
            self._node.get_logger().warning(text)

    def _on_incompatible(self, topic: str, event: Any) -> None:
        self._node.get_logger().warning(
            f"a publisher on {self._node.resolve_topic_name(topic)} has an incompatible QoS, so "
            f"its images do not arrive ({event.last_policy_kind}): change it there, or here by "
            "the qos_overrides parameters"
        )

    def report_silence(self, stale_after_s: float) -> None:
        """Log which topics are silent and why, now and then; and when they come back."""
        now = time.monotonic()
        for camera, stats in list(self._stats.cameras.items()):
            key = f"{camera} silent"
            silent_s = now - stats.last_arrival_s
            if silent_s <= stale_after_s:
                if self._said.pop(key, None) is not None:
                    self._node.get_logger().info(f"images come on {stats.topic} again")
            elif now - self._said.get(key, float("-inf")) > _REPEAT_S:
                self._said[key] = now
                self._node.get_logger().warning(
                    f"no image on {stats.topic} for {silent_s:.0f} s: {self._why(stats.topic)}"
                )

    def _why(self, topic: str) -> str:
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return "nobody publishes there"
        wanted = f"sensor_msgs/msg/{self._kind.__name__}"
        kinds = {p.topic_type for p in publishers}
        if wanted not in kinds:
            return f"its type is {', '.join(sorted(kinds))}, not {wanted} (input.compressed?)"
        return f"publishers there: {len(publishers)}, but nothing arrives (QoS, or it has stopped)"
