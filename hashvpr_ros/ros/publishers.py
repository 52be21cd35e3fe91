"""What a configured node publishes: the results of images, and the status of its map."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from hashvpr_ros.msg import (
    DecisionLedger,
    LoopClosure,
    MapStatus,
    PlaceDescriptor,
    PlaceHypotheses,
)
from hashvpr_ros.ros.conversions import to_descriptor, to_hypotheses, to_ledger, to_loop_closure
from hashvpr_ros.ros.qos import overridable
from hashvpr_ros.ros.runtime import Runtime
from hashvpr_ros.types import Decision, Mode


class Publishers:
    """Made by configure, closed by cleanup; those of results are managed by the lifecycle.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(self, node: LifecycleNode) -> None:
        group = MutuallyExclusiveCallbackGroup()  # of their own for the reason that Cameras has
        with ExitStack() as made:

            def lifecycle(kind: Any, topic: str) -> Any:
                with overridable(topic) as options:
                    publisher = node.create_lifecycle_publisher(
                        kind,
                        topic,
                        QoSProfile(depth=10),
                        callback_group=group,
                        qos_overriding_options=options,
                    )
                made.callback(node.destroy_lifecycle_publisher, publisher)
                return publisher

            self._hypotheses = lifecycle(PlaceHypotheses, "~/hypotheses")
            self._closures = lifecycle(LoopClosure, "~/loop_closures")
            self._descriptors = lifecycle(PlaceDescriptor, "~/descriptors")
            self._ledger = lifecycle(DecisionLedger, "~/ledger")
            self._peer_hypotheses = lifecycle(PlaceHypotheses, "~/peer_hypotheses")
            self._peer_closures = lifecycle(LoopClosure, "~/peer_closures")
            latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._status = node.create_publisher(
                MapStatus, "~/map_status", latched, callback_group=group
            )
            made.callback(node.destroy_publisher, self._status)
            self._made = made.pop_all()
        self._last_status: MapStatus | None = None

    def close(self) -> None:
        """Destroy the publishers."""
        self._made.close()

    def publish_image(
        self, decision: Decision, hypotheses: PlaceHypotheses, header: Header, fingerprint: str
    ) -> None:
        """Publish what an image shows.

        Args:
            hypotheses: of the decision.
            header: of the image.
            fingerprint: of the model, for the image's descriptor; "" publishes none.
        """
        self._hypotheses.publish(hypotheses)
        if decision.accepted:
            self._closures.publish(to_loop_closure(decision, header))
        if fingerprint:
            self._descriptors.publish(to_descriptor(decision, header, fingerprint))
        if decision.ledger is not None:
            self._ledger.publish(to_ledger(decision, decision.ledger, header))

    def publish_peer(self, decision: Decision, header: Header, map_id: str) -> None:
        """Publish what an image of another robot shows, whose map and header these are."""
        self._peer_hypotheses.publish(to_hypotheses(decision, header))
        if decision.accepted:
            self._peer_closures.publish(to_loop_closure(decision, header, map_id))

    def publish_status(self, status: MapStatus) -> None:
        """Publish the status of the map where it is another than the last."""
        last = self._last_status
        if last is not None:
            last.header = status.header
        if status != last:
            self._status.publish(status)
            self._last_status = status


def map_status(runtime: Runtime) -> MapStatus:
    """The status of the map in use, without a stamp."""
    place_map, info = runtime.map, runtime.info
    return MapStatus(
        map_id=place_map.map_id,
        path=place_map.path,
        mode=runtime.mode.value,
        session="" if runtime.mode is Mode.LOCALIZATION else place_map.session,
        model_name=info.name,
        model_fingerprint=info.fingerprint,
        keyframes=len(place_map),
        sessions=place_map.session_count,
        uncommitted=place_map.uncommitted(),
        file_bytes=place_map.file_bytes,
        index_bytes=place_map.index_bytes,
        read_only=place_map.read_only,
    )
