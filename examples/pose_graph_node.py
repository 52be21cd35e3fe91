#!/usr/bin/env python3
"""A back end beside vpr_node: corrects odometry by its loop closures (docs/back_end.md).

python3 examples/pose_graph_node.py --ros-args -r odom:=/odom -p tum_file:=trajectory.tum

Subscribes to `odom` (nav_msgs/Odometry) and `vpr_node/loop_closures` (hashvpr_ros/LoopClosure).
Publishes `~/path` (nav_msgs/Path) and, on `vpr_node/verdicts` (hashvpr_ros/ClosureVerdict), what
became of each closure. Writes the trajectory as a TUM file when it ends. With `update_poses:=true`
it also gives the keyframes of vpr_node's map the poses that it has optimised.
"""

from __future__ import annotations

import itertools
import math
import time
from contextlib import suppress
from pathlib import Path as FilePath

import rclpy
from geometry_msgs.msg import PoseStamped
from keyframe_poses import KeyframePoses
from nav_msgs.msg import Odometry, Path
from odometry_watch import OdometryWatch, Seen
from pose_graph import Closure, Noise, PoseGraph, write_tum
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.msg import ClosureVerdict, LoopClosure
from hashvpr_ros.ros.conversions import from_pose, ns_to_stamp, stamp_to_ns, to_pose_stamped

# A long trajectory takes seconds to optimise: then it is done less often, and what comes
# meanwhile waits in deep queues.
_SHARE_OF_TIME = 0.25
_QUEUE = 1000
_VERDICTS_AT_ONCE = 50  # vpr_node queues 100


class PoseGraphNode(Node):
    """Feeds a `PoseGraph` from topics and publishes what it makes of them."""

    def __init__(self) -> None:
        super().__init__("pose_graph")
        self._frame_id = str(self.declare_parameter("frame_id", "map").value)
        self._tum_file = str(self.declare_parameter("tum_file", "").value)
        period_s = float(self.declare_parameter("period_s", 1.0).value)
        # The first closures after a long way stand against all odometry: a verdict waits for more.
        settle_s = float(self.declare_parameter("settle_s", 5.0).value)
        self._settle_ns = round(settle_s * 1e9)
        # After one metre, growing with the way's root: see `Noise`.
        self._noise = Noise(
            float(self.declare_parameter("heading_noise_rad", Noise.heading_rad).value),
            float(self.declare_parameter("position_noise_m", Noise.position_m).value),
        )
        update_poses = bool(self.declare_parameter("update_poses", False).value)
        self._keyframes = KeyframePoses(self, self._frame_id) if update_poses else None
        self._begin()
        best_effort = QoSProfile(depth=_QUEUE, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Odometry, "odom", self._on_odometry, best_effort)
        deep = QoSProfile(depth=_QUEUE)
        self.create_subscription(LoopClosure, "vpr_node/loop_closures", self._on_closure, deep)
        self._verdicts = self.create_publisher(ClosureVerdict, "vpr_node/verdicts", deep)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._path = self.create_publisher(Path, "~/path", latched)
        # Not the node's clock: simulated time may stand still.
        self.create_timer(period_s, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _begin(self) -> None:
        """Forget everything."""
        self._watch = OdometryWatch()
        self._graph = PoseGraph(self._noise)
        self._closures: list[LoopClosure] = []
        self._used: list[bool | None] = []  # of the first closures, as of the last optimisation
        self._said: dict[int, bool] = {}  # verdicts published, by the closure's number
        self._changed = False
        if self._keyframes is not None:
            self._keyframes.begin()
        self._unsent = False  # keyframes have not got the poses of the last optimisation
        self._next_s = 0.0  # when to optimise again, at the earliest

    def finish(self) -> None:
        """Optimise a last time and write the TUM file, where one is wanted."""
        if not self._tum_file:
            return
        self._optimise()
        try:
            write_tum(FilePath(self._tum_file), self._graph.trajectory())
        except ConfigError as e:
            self.get_logger().error(str(e))

    def _on_odometry(self, message: Odometry) -> None:
        pose = from_pose(message.pose.pose)
        stamp_ns = stamp_to_ns(message.header.stamp)
        seen = self._watch.see(stamp_ns, pose)
        if seen is Seen.PASSED_OVER:
            self.get_logger().warning(
                f"odometry at {stamp_ns / 1e9:.3f} s passed over: invalid, late, or far from the "
                "last",
                throttle_duration_sec=10.0,
            )
            return
        if seen is Seen.RESTARTED:
            self.get_logger().warning("stamps of odometry stepped back: everything begins anew")
            self._begin()
            self._watch.see(stamp_ns, pose)
        elif seen is Seen.JUMPED:
            self.get_logger().warning("odometry jumped: the graph goes on as if lost for a while")
        self._changed |= self._graph.add_odometry(stamp_ns, pose, jumped=seen is Seen.JUMPED)

    def _on_closure(self, closure: LoopClosure) -> None:
        # Keyframes of other sessions have no nodes here, and stamps that may be anything.
        if not closure.query_session or closure.query_session != closure.match_session:
            self.get_logger().info("closures with other sessions are passed over", once=True)
            return
        if not closure.has_relative_heading and closure.query_camera != closure.match_camera:
            self.get_logger().info(
                "closures of two cameras without a relative heading are passed over; give "
                "vpr_node input.camera_headings or input.heading_frame",
                once=True,
            )
            return
        # Of one camera: images that match look the same way.
        turn = closure.relative_heading if closure.has_relative_heading else 0.0
        if not math.isfinite(turn) or not math.isfinite(closure.probability):
            self.get_logger().warning("closure with NaN passed over", throttle_duration_sec=10.0)
            return
        self._closures.append(closure)
        stamps_ns = stamp_to_ns(closure.query_stamp), stamp_to_ns(closure.match_stamp)
        self._graph.add_closure(Closure(*stamps_ns, turn, closure.probability))

    def _on_timer(self) -> None:
        if time.monotonic() >= self._next_s:
            self._optimise()
        if self._changed:
            self._path.publish(self._message())
            self._changed = False
        if self._keyframes is not None and self._unsent:
            trajectory = self._graph.trajectory()
            self._unsent = not self._keyframes.send(trajectory, self._graph.newest_ns)
        for number, used in itertools.islice(self._unsaid(), _VERDICTS_AT_ONCE):
            self._verdicts.publish(self._verdict(self._closures[number], used))
            self._said[number] = used

    def _optimise(self) -> None:
        if not self._graph.is_behind:
            return
        started_s = time.monotonic()
        try:
            self._used = self._graph.optimise()
        except RuntimeError as e:
            reason = str(e).strip().split("\n")[0]
            self.get_logger().error(f"GTSAM cannot solve it: {reason}", throttle_duration_sec=10.0)
        else:
            self._changed = True
            self.get_logger().info(
                f"{self._used.count(True)} closures are used, {self._used.count(False)} rejected, "
                f"{self._used.count(None)} wait for odometry"
            )
            self._unsent = self._keyframes is not None
        ended_s = time.monotonic()
        self._next_s = ended_s + (ended_s - started_s) / _SHARE_OF_TIME

    def _unsaid(self) -> list[tuple[int, bool]]:
        """Closures that are settled, and of which another verdict was published, or none."""
        settled_ns = self._graph.newest_ns - self._settle_ns
        return [
            (i, used)
            for i, used in enumerate(self._used)
            if used is not None
            and self._said.get(i) is not used
            and stamp_to_ns(self._closures[i].query_stamp) <= settled_ns
        ]

    def _verdict(self, closure: LoopClosure, used: bool) -> ClosureVerdict:
        verdict = ClosureVerdict(
            map_id=closure.map_id,
            query_map_id=closure.query_map_id,
            query_stamp=closure.query_stamp,
            query_camera=closure.query_camera,
            match_keyframe_id=closure.match_keyframe_id,
            verdict=ClosureVerdict.VERDICT_ACCEPTED
            if used
            else ClosureVerdict.VERDICT_REJECTED_BY_GRAPH,
        )
        verdict.header.stamp = self.get_clock().now().to_msg()
        return verdict

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
