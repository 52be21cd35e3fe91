"""Poses from odometry: interpolated, missing, senseless; and what is stored of them."""

import itertools
import math

import pytest
from nav_msgs.msg import Odometry
from vpr_process import START_NS, Camera, wait_until

from hashvpr_ros.srv import InspectMap

EVERYTHING = {
    "keyframes__min_distance_m": 0.0,
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
}
NAN = float("nan")


class Robot:
    """A node, its camera and its odometry."""

    def __init__(self, node):
        self.node = node
        self.camera = Camera(node).connect()
        self.publisher = node.client.matched(
            node.client.publisher(Odometry, f"{node.namespace}/odom", depth=100)
        )
        self.seed = 0

    def drive(self, second, position=(0.0, 0.0, 0.0), orientation=(0.0, 0.0, 0.0, 1.0)):
        message = Odometry()
        message.header.frame_id = "odom"
        stamp_ns = START_NS + round(second * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        p, q = message.pose.pose.position, message.pose.pose.orientation
        p.x, p.y, p.z = position
        q.x, q.y, q.z, q.w = orientation
        self.publisher.publish(message)

    def keyframe(self, second):
        """What is stored of an image of this stamp."""
        self.seed += 1
        hypotheses = self.camera.show(self.seed, second)
        assert hypotheses.keyframe_id > 0
        stored = self.node.call(InspectMap, "inspect_map", keyframe_id=hypotheses.keyframe_id)
        assert stored.result == stored.RESULT_OK
        return stored.keyframe

    def keyframe_with_pose(self, second):
        """The same, once the odometry that was sent before has arrived."""
        tries = itertools.count()

        def stored():
            # Another topic may be behind: then another image is shown, a microsecond later.
            keyframe = self.keyframe(second + 1e-6 * next(tries))
            return keyframe if keyframe.has_pose else None

        return wait_until(stored, "odometry arrives")


@pytest.fixture(scope="module")
def robot(start_module):
    return Robot(
        start_module(
            **EVERYTHING,
            pose__source="odometry",
            pose__max_age_s=0.5,
            matching__exclude_recent_s=0.0,
            publish__diagnostics_period_s=0.1,
        ).activate()
    )


def test_no_odometry_at_all(robot, diagnostics):
    none_asked_for = robot.node.call(InspectMap, "inspect_map").keyframe
    for keyframe in (robot.keyframe(1.0), none_asked_for):
        assert not keyframe.has_pose
        assert math.isnan(keyframe.pose.pose.position.x)
        assert math.isnan(keyframe.pose.pose.orientation.w)
    said = diagnostics(robot.node, lambda d: d["camera image"]["processed"] != "0", "it counts")
    assert said["camera image"]["without_pose"] == "1"
    assert said["node"]["level"] == 0


def test_between_two_poses_it_is_interpolated(robot):
    half = math.sqrt(0.5)
    # Not of length 1, as some drivers send them.
    robot.drive(10.2, (3.0, 0.0, 1.0), (0.0, 0.0, 2 * half, 2 * half))
    robot.drive(9.8, (1.0, 2.0, 1.0), (0.0, 0.0, 0.0, 3.0))
    q = robot.keyframe_with_pose(9.4).pose.pose.orientation  # which only the second is near to
    assert (q.x, q.y, q.z, q.w) == pytest.approx((0.0, 0.0, 0.0, 1.0))
    stored = robot.keyframe_with_pose(10.0)
    p, q = stored.pose.pose.position, stored.pose.pose.orientation
    assert (p.x, p.y, p.z) == pytest.approx((2.0, 1.0, 1.0), abs=1e-3)
    assert (q.x, q.y) == (0.0, 0.0)
    assert 2 * math.atan2(q.z, q.w) == pytest.approx(math.pi / 4, abs=1e-3)
    assert stored.pose.header.frame_id == "odom"
    assert stored.pose.header.stamp == stored.stamp
    again = robot.camera.show(robot.seed, 11.0)
    best = again.hypotheses[0]
    assert best.has_pose and best.pose.pose == stored.pose.pose


def test_an_image_far_from_any_pose_has_none(robot):
    robot.drive(20.0, (5.0, 0.0, 0.0))
    assert robot.keyframe_with_pose(20.4).pose.pose.position.x == 5.0
    assert not robot.keyframe(20.6).has_pose
    assert robot.node.set("pose.max_age_s", 1.0).successful
    assert robot.keyframe(20.7).has_pose
    assert robot.node.set("pose.max_age_s", 0.5).successful


@pytest.mark.parametrize(
    ("position", "orientation"),
    [
        ((NAN, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        ((0.0, math.inf, 0.0), (0.0, 0.0, 0.0, 1.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, NAN, 0.0, 1.0)),
    ],
)
def test_senseless_odometry_gives_a_keyframe_without_a_pose(robot, position, orientation):
    second = 100.0 + 10 * robot.seed
    robot.drive(second, position, orientation)
    robot.drive(second + 5.0, (1.0, 1.0, 1.0))  # sent after it: when it is there, both are
    assert robot.keyframe_with_pose(second + 5.0).has_pose
    assert not robot.keyframe(second).has_pose
    assert robot.node.logged("odometry with NaN") >= 1


def test_senseless_odometry_is_said_now_and_then(robot):
    before = robot.node.logged("odometry with NaN")
    for i in range(100):
        robot.drive(1000.0 + 0.001 * i, (NAN, 0.0, 0.0))
    robot.drive(1005.0)
    assert robot.keyframe_with_pose(1005.0).has_pose
    assert robot.node.logged("odometry with NaN") < before + 20


def test_odometry_that_starts_again(robot):
    robot.drive(5.0, (7.0, 0.0, 0.0))
    assert robot.keyframe_with_pose(5.0).pose.pose.position.x == 7.0
