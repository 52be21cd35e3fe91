"""Gives the keyframes of vpr_node's map the poses that a back end has optimised."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future

from hashvpr_ros.msg import PlaceHypotheses
from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.ros.conversions import stamp_to_ns, to_pose_stamped
from hashvpr_ros.srv import UpdatePoses
from hashvpr_ros.types import Pose

_QUEUE = 1000
_ANY_AGE_S = 1e6  # a robot that stands still makes no nodes
_PATIENCE_S = 10.0  # for an answer, of a vpr_node that may have ended meanwhile


class KeyframePoses:
    """Hears from `vpr_node/hypotheses` which images became keyframes, and when.

    Only keyframes of the present session have stamps that the back end knows.

    Args:
        node: that subscribes and calls.
        frame_id: of the optimised poses.
    """

    def __init__(self, node: Node, frame_id: str) -> None:
        self._node, self._frame_id = node, frame_id
        node.create_subscription(
            PlaceHypotheses, "vpr_node/hypotheses", self._on_hypotheses, QoSProfile(depth=_QUEUE)
        )
        self._client = node.create_client(UpdatePoses, "vpr_node/update_poses")
        self._answer: Future | None = None  # that is waited for
        self._asked_s = 0.0  # when, by time.monotonic
        self.begin()

    def begin(self) -> None:
        """Forget all keyframes, as when the clock stepped back."""
        self._map_id = self._session = ""
        self._stamps_ns: dict[int, int] = {}  # by id

    def _on_hypotheses(self, message: PlaceHypotheses) -> None:
        if (message.map_id, message.session) != (self._map_id, self._session):
            self.begin()
            self._map_id, self._session = message.map_id, message.session
        if message.keyframe_id > 0:
            self._stamps_ns[message.keyframe_id] = stamp_to_ns(message.header.stamp)

    def send(self, trajectory: Sequence[tuple[int, Pose]], until_ns: int) -> bool:
        """Give keyframes their poses of a trajectory.

        Args:
            trajectory: stamps in nanoseconds and poses, at least one.
            until_ns: up to where the robot's way is known.

        Returns:
            False: not now, for there is no vpr_node, or it has not answered the last time.
        """
        waits = self._answer is not None and time.monotonic() - self._asked_s < _PATIENCE_S
        if waits or not self._client.service_is_ready():
            return False
        track = PoseTrack(keep=0)
        for stamp_ns, pose in trajectory:
            track.add(stamp_ns, pose)
        request = UpdatePoses.Request(map_id=self._map_id, frame_id=self._frame_id)
        for id_, stamp_ns in self._stamps_ns.items():
            pose_then = track.at(stamp_ns, _ANY_AGE_S)
            if trajectory[0][0] <= stamp_ns <= until_ns and pose_then is not None:
                request.keyframe_ids.append(id_)
                request.poses.append(to_pose_stamped(pose_then, stamp_ns).pose)
        if request.poses:
            self._asked_s = time.monotonic()
            self._answer = self._client.call_async(request)
            self._answer.add_done_callback(self._on_answer)
        return True

    def _on_answer(self, answer: Future) -> None:
        if answer is self._answer:
            self._answer = None
        response = answer.result()
        if response.result == UpdatePoses.Response.RESULT_OK:
            self._node.get_logger().info(f"{response.updated} keyframes have their new poses")
        else:
            if response.result == UpdatePoses.Response.RESULT_INVALID:
                self._stamps_ns.clear()  # the map was cleared
            self._node.get_logger().warning(
                f"keyframes keep their poses: {response.message}", throttle_duration_sec=10.0
            )
