#!/usr/bin/env python3
"""A back end beside vpr_node: corrects odometry by its loop closures (docs/back_end.md).

python3 examples/pose_graph_node.py --ros-args -r odom:=/odom -p tum_file:=trajectory.tum

Subscribes to `odom` (nav_msgs/Odometry) and `vpr_node/loop_closures` (hashvpr_ros/LoopClosure),
publishes `~/path` (nav_msgs/Path), and writes the trajectory as a TUM file when it ends.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path as FilePath

import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from pose_graph import PoseGraph, write_tum
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data

from hashvpr_ros.msg import LoopClosure
from hashvpr_ros.ros.conversions import ns_to_stamp, stamp_to_ns, to_pose_stamped
from hashvpr_ros.types import Pose


class PoseGraphNode(Node):
    """Feeds a `PoseGraph` from topics and publishes what it makes of them."""

    def __init__(self) -> None:
        super().__init__("pose_graph")
        self._frame_id = str(self.declare_parameter("frame_id", "map").value)
        self._tum_file = str(self.declare_parameter("tum_file", "").value)
        period_s = float(self.declare_parameter("period_s", 1.0).value)
        self._graph = PoseGraph()
        self._new_closures = 0
        self._changed = False
        # A deep queue of odometry, for the seconds in which a long trajectory is optimised.
        odometry_qos = QoSProfile(depth=1000, reliability=qos_profile_sensor_data.reliability)
        self.create_subscription(Odometry, "odom", self._on_odometry, odometry_qos)
        self.create_subscription(
            LoopClosure, "vpr_node/loop_closures", self._on_closure, QoSProfile(depth=1000)
        )
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._path = self.create_publisher(Path, "~/path", latched)
        self.create_timer(period_s, self._on_timer)

    def finish(self) -> None:
        """Optimise a last time and write the TUM file, where one is wanted."""
        if self._tum_file:
            self._graph.optimise()
            write_tum(FilePath(self._tum_file), self._graph.trajectory())

    def _on_odometry(self, message: Odometry) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        pose = Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        self._changed |= self._graph.add_odometry(stamp_to_ns(message.header.stamp), pose)

    def _on_closure(self, closure: LoopClosure) -> None:
        # Keyframes of other sessions have no nodes here, and stamps that may be anything.
        if closure.query_session == closure.match_session:
            self._graph.add_closure(
                stamp_to_ns(closure.query_stamp), stamp_to_ns(closure.match_stamp)
            )
            self._new_closures += 1

    def _on_timer(self) -> None:
        if self._new_closures:
            result = self._graph.optimise()
            self.get_logger().info(
                f"{self._new_closures} new closures: {result.used} pairs of nodes are used, "
                f"{result.rejected} rejected"
            )
        if self._new_closures or self._changed:
            self._path.publish(self._message())
        self._new_closures, self._changed = 0, False

    def _message(self) -> Path:
        message = Path()
        message.header.frame_id = self._frame_id
        for stamp_ns, pose in self._graph.trajectory():
            stamped: PoseStamped = to_pose_stamped(pose, stamp_ns)
            stamped.header.frame_id = self._frame_id
            message.poses.append(stamped)
            message.header.stamp = ns_to_stamp(stamp_ns)  # in the end the last node's
        return message


def main() -> None:
    """Run until interrupted, then write the trajectory."""
    rclpy.init()
    node = PoseGraphNode()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    node.finish()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
