"""Descriptors of other robots, matched with this robot's map."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.msg import PlaceDescriptor
from hashvpr_ros.ros.conversions import from_descriptor, from_pose, stamp_to_ns
from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.ros.inputs import Input
from hashvpr_ros.ros.runtime import Runtime
from hashvpr_ros.types import Decision

_WAITING_AT_MOST = 20  # descriptors for the worker, over which new ones are passed over


def check_peer_topics(node: Node, topics: list[str]) -> None:
    """Refuse that a node listens to itself.

    Raises:
        ConfigError: a topic is this node's own.
    """
    own = node.resolve_topic_name("~/descriptors")
    if own in [node.resolve_topic_name(t) for t in topics]:
        raise ConfigError(
            f"input.descriptor_topics has {own}, on which this node publishes; give those of "
            "other robots"
        )


class Peers:
    """Subscriptions to the descriptors of other robots.

    Args:
        topics: on which they publish them.
        stats: counts them.
        publish: called in the worker's thread with what a descriptor shows, and its message.
        fail: called with errors that the node survives.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(
        self,
        node: Node,
        topics: list[str],
        runtime: Runtime,
        stats: Stats,
        publish: Callable[[Decision, PlaceDescriptor], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._node = node
        self._runtime = runtime
        self._stats = stats
        self._publish = publish
        self._fail = fail
        self._waiting = threading.Semaphore(_WAITING_AT_MOST)
        self.inputs: list[Input] = []
        try:
            for topic in topics:
                self.inputs.append(
                    Input(
                        node,
                        f"descriptors {topic}",
                        "descriptor",
                        PlaceDescriptor,
                        topic,
                        functools.partial(self._on_descriptor, topic),
                        QoSProfile(depth=_WAITING_AT_MOST),
                        remedy="correct input.descriptor_topics",
                        optional=True,  # the other robot may be away
                    )
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        for each in self.inputs:
            each.close()
        self.inputs = []

    def _on_descriptor(self, topic: str, message: PlaceDescriptor) -> None:
        try:
            info = self._runtime.info
            descriptor = from_descriptor(message, info.fingerprint, info.feature_dim)
            self._refuse_own(message)
        except ConfigError as e:
            self._pass_over(f"descriptor on {topic} ignored: {e}")
            return
        if not self._waiting.acquire(blocking=False):
            self._pass_over(f"descriptors on {topic} come faster than they can be matched")
            return

        def judge() -> None:
            decision = self._runtime.recognizer.match_peer(
                topic,
                message.map_id,
                message.session,
                message.camera,
                descriptor,
                stamp_to_ns(message.header.stamp),
                from_pose(message.pose.pose, message.pose.header.frame_id)
                if message.has_pose
                else None,
            )
            self._publish(decision, message)
            self._stats.peer()

        self._runtime.worker.call(judge).add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        self._waiting.release()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._fail(error)

    def _refuse_own(self, message: PlaceDescriptor) -> None:
        """Refuse what this node has published, which would match the keyframe made of it.

        A relay gives it another topic than the one that `check_peer_topics` knows.
        """
        place_map = self._runtime.map
        if message.session and (message.map_id, message.session) == (
            place_map.map_id,
            place_map.session,
        ):
            raise ConfigError(
                f"it is of this node's own map and session {message.session!r}; give topics of "
                "other robots, and give robots with copies of one map different sessions"
            )

    def _pass_over(self, text: str) -> None:
        self._stats.peer(passed_over=text)
        self._node.get_logger().warning(text, throttle_duration_sec=10.0)
