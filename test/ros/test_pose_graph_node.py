"""The example back end as a process: corrects odometry, judges closures, survives bad input."""

import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from nav_msgs.msg import Odometry, Path
from vpr_process import (
    PATIENCE_S,
    ROOT,
    START_NS,
    Camera,
    image_message,
    latched,
    new_namespace,
    picture,
    python_path,
    stamp_ns_of,
    wait_until,
)

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.msg import ClosureVerdict, LoopClosure
from hashvpr_ros.simulation.odometry import Drift, drifting
from hashvpr_ros.srv import InspectMap

# A mark, not importorskip: see test_packaging.py.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gtsam") is None,
    reason="needs GTSAM: pip install -r requirements/examples.txt",
)

PER_LAP, RADIUS_M = 60, 10.0
NAN = float("nan")


def stamp_ns(second):
    return START_NS + round(second * 1e9)


def set_stamp(stamp, ns):
    stamp.sec, stamp.nanosec = divmod(ns, 10**9)


def circle(laps):
    """Exact poses, some 1 m apart."""
    for i in range(PER_LAP * laps):
        angle = 2 * math.pi * i / PER_LAP
        yield RADIUS_M * math.cos(angle), RADIUS_M * math.sin(angle), angle + math.pi / 2


TRUTH = list(circle(2))
DRIFTED = list(drifting(TRUTH, Drift(scale=1.02, yaw_bias_rad_per_m=0.006)))


class BackEnd:
    """`pose_graph_node.py` as a process beside the topics of a `vpr_node`."""

    def __init__(self, client, folder, namespace=""):
        self.client, self.folder = client, folder
        self.namespace = namespace or new_namespace()
        self.tum, self.log = folder / "t.tum", folder / "back_end.log"
        self.paths = client.listen(Path, f"{self.namespace}/pose_graph/path", latched())
        self.verdicts = client.listen(ClosureVerdict, f"{self.namespace}/vpr_node/verdicts")
        command = [sys.executable, str(ROOT / "examples" / "pose_graph_node.py"), "--ros-args"]
        command += ["-r", f"__ns:={self.namespace}", "-p", f"tum_file:='{self.tum}'"]
        command += ["-p", "period_s:=0.05", "-p", "settle_s:=3.0"]
        command += ["-p", "update_poses:=true"]
        # The drift below is far more than that of the defaults.
        command += ["-p", "heading_noise_rad:=0.04", "-p", "position_noise_m:=0.2"]
        with self.log.open("w") as f:
            self.process = subprocess.Popen(
                command,
                stdout=f,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": python_path()},
            )
        self.odometry = client.publisher(Odometry, f"{self.namespace}/odom", depth=1000)
        self.closures = client.publisher(LoopClosure, f"{self.namespace}/vpr_node/loop_closures")

    def connect(self):
        """Wait until the node hears what is sent, the first pose of the drive to begin with."""
        self.client.matched(self.odometry)
        self.client.matched(self.closures)
        self.drive(range(1))
        return self

    def move(self, second, pose):
        """Send a pose (x, y, yaw), or an odometry message made by the test."""
        message = pose if isinstance(pose, Odometry) else odometry(*pose)
        set_stamp(message.header.stamp, stamp_ns(second))
        self.odometry.publish(message)

    def drive(self, numbers):
        """Send drifting odometry and wait until the last is in the path."""
        for i in numbers[:-1]:
            self.move(i, DRIFTED[i])
        last_ns = stamp_ns(numbers[-1])

        def arrived():
            if self.paths and stamp_ns_of(self.paths[-1]) == last_ns:
                return self.paths[-1]
            self.move(numbers[-1], DRIFTED[numbers[-1]])  # again: best effort may lose it
            return None

        return self.wait(arrived, "the path reaches the last odometry")

    def close(self, query, match, **changes):
        """Send a closure between two seconds; a double of `vpr_node`'s."""
        closure = LoopClosure(
            map_id="a map",
            query_map_id="a map",
            query_keyframe_id=query + 1,
            match_keyframe_id=match + 1,
            query_session="s",
            match_session="s",
            query_camera="lens",
            match_camera="lens",
            probability=0.99,
        )
        for stamp, second in ((closure.query_stamp, query), (closure.match_stamp, match)):
            set_stamp(stamp, stamp_ns(second))
        for name, value in changes.items():
            setattr(closure, name, value)
        self.closures.publish(closure)

    def said_of(self, query):
        """The verdicts on closures of a second, in the order of time."""
        wanted = stamp_ns(query)
        return [
            v.verdict
            for v in self.verdicts
            if v.query_stamp.sec * 10**9 + v.query_stamp.nanosec == wanted
        ]

    def wait(self, condition, what):
        try:
            return wait_until(condition, what)
        except AssertionError as e:
            raise AssertionError(f"{e}; the node says:\n{self.log.read_text()}") from None

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


def odometry(x, y, yaw):
    message = Odometry()
    pose = planar_pose(x, y, yaw)
    p, q = message.pose.pose.position, message.pose.pose.orientation
    p.x, p.y, p.z = pose.position_m
    q.x, q.y, q.z, q.w = pose.orientation
    return message


def error_m(path):
    """Of a path whose poses may be fewer than were sent, against the truth."""
    truth = {stamp_ns(i): pose[:2] for i, pose in enumerate(TRUTH)}
    off = [
        np.subtract((p.pose.position.x, p.pose.position.y), truth[stamp_ns_of(p)])
        for p in path.poses
    ]
    return float(np.sqrt((np.square(off)).sum(1).mean()))


@pytest.fixture
def start_back_end(client, tmp_path):
    """Starts one, in the namespace of a `vpr_node` perhaps; it must end well."""
    started = []

    def start_it(namespace=""):
        started.append(BackEnd(client, tmp_path, namespace))
        return started[-1]

    yield start_it
    for back_end in started:
        assert back_end.stop() == 0, back_end.log.read_text()


@pytest.fixture
def back_end(start_back_end):
    return start_back_end().connect()


def test_the_path_is_corrected_and_each_closure_judged_once(back_end):
    before = back_end.drive(range(1, PER_LAP + 30))
    assert len(before.poses) > 80 and before.header.frame_id == "map"
    assert error_m(before) > 1.0
    for i in range(PER_LAP, PER_LAP + 30):
        back_end.close(i, i - PER_LAP)
    back_end.close(PER_LAP + 10, 40)  # wrong: the other side of the circle
    # Wrong, since the robot did not drive the other way; and what is to be ignored.
    back_end.close(PER_LAP + 20, 21, has_relative_heading=True, relative_heading=math.pi)
    back_end.close(PER_LAP + 22, 23, has_relative_heading=False, relative_heading=math.pi)
    # Of a rear camera that may look anywhere, and of one that is known.
    back_end.close(PER_LAP + 24, 25, match_camera="rear")
    known = {"has_relative_heading": True, "relative_heading": 0.0}
    back_end.close(PER_LAP + 26, 27, match_camera="rear", **known)
    back_end.drive(range(PER_LAP + 30, PER_LAP + 40))
    back_end.wait(
        lambda: error_m(back_end.paths[-1]) < error_m(before) / 3, "the closures have their effect"
    )
    back_end.wait(lambda: len(back_end.verdicts) >= 34, "all are judged")
    assert len(back_end.said_of(PER_LAP + 24)) == 1 and len(back_end.said_of(PER_LAP + 26)) == 2
    assert {v.query_map_id for v in back_end.verdicts} == {"a map"}
    assert back_end.said_of(PER_LAP + 5) == ["accepted"]
    assert sorted(back_end.said_of(PER_LAP + 10)) == ["accepted", "rejected_by_graph"]
    assert sorted(back_end.said_of(PER_LAP + 20)) == ["accepted", "rejected_by_graph"]
    assert back_end.said_of(PER_LAP + 22) == ["accepted", "accepted"]
    rejected = [v for v in back_end.verdicts if v.verdict == "rejected_by_graph"]
    assert {(v.map_id, v.query_camera, v.match_keyframe_id) for v in rejected} == {
        ("a map", "lens", 41),
        ("a map", "lens", 22),
    }
    # Another closure: the graph is optimised anew, and nothing is said twice.
    back_end.close(PER_LAP + 33, 33)
    back_end.drive(range(PER_LAP + 40, PER_LAP + 45))
    back_end.wait(lambda: back_end.said_of(PER_LAP + 33), "the last is judged")
    assert len(back_end.verdicts) == 35
    assert back_end.stop() == 0
    written = read_tum(back_end.tum)
    assert written[-1][0] == stamp_ns(PER_LAP + 44)


def test_a_verdict_waits_until_the_closure_has_settled(back_end):
    back_end.drive(range(1, PER_LAP + 2))
    back_end.close(PER_LAP + 1, 1)
    back_end.wait(lambda: "1 closures are used" in back_end.log.read_text(), "it is used")
    back_end.drive(range(PER_LAP + 2, PER_LAP + 4))
    assert not back_end.verdicts
    back_end.drive(range(PER_LAP + 4, PER_LAP + 5))
    back_end.wait(lambda: back_end.said_of(PER_LAP + 1) == ["accepted"], "it is judged")


def test_bad_input_changes_nothing_and_ends_nothing(back_end):
    good = back_end.drive(range(1, 10))
    zero = Odometry()
    zero.pose.pose.orientation.w = 0.0
    for second, bad in (
        (10.1, (NAN, 0.0, 0.0)),
        (10.2, (math.inf, 0.0, 0.0)),
        (10.3, (1e200, 0.0, 0.0)),
        (10.4, zero),
        (10.5, (500.0, 0.0, 0.0)),  # alone: it is a stray
        (-1e9, DRIFTED[9]),
        (1e9, DRIFTED[9]),
        (9.0, DRIFTED[9]),
    ):
        back_end.move(second, bad)
    for changes in (
        {"has_relative_heading": True, "relative_heading": NAN},
        {"probability": NAN},
        {"match_session": "another"},
        {"query_session": "", "match_session": ""},
        {"query_session": ""},
    ):
        back_end.close(9, 1, **changes)
    back_end.close(9, 9)
    back_end.close(10**9, 3)
    back_end.close(9, -(10**8))
    path = back_end.drive(range(10, 13))
    assert path.poses[: len(good.poses)] == good.poses
    assert len(path.poses) == len(good.poses) + 3
    back_end.close(12, 1)  # wrong, and judged by odometry alone
    back_end.drive(range(13, 18))
    back_end.wait(lambda: back_end.said_of(12) == ["rejected_by_graph"], "it is judged")
    assert len(back_end.verdicts) == 1


def test_odometry_that_begins_anew_goes_on_from_the_last_node(back_end):
    back_end.drive(range(1, 20))
    for i in range(20, 23):
        back_end.move(i, (1000.0 + i, 7.0, 0.0))

    def path():
        return next((p for p in back_end.paths if stamp_ns_of(p) == stamp_ns(22)), None)

    poses = back_end.wait(path, "the path goes on").poses
    places = [(p.pose.position.x, p.pose.position.y) for p in poses]
    assert max(itertools.starmap(math.dist, itertools.pairwise(places))) < 2.0


def test_a_clock_that_steps_back_begins_a_new_path(back_end):
    back_end.drive(range(1, 20))
    for i in range(3):
        back_end.move(i - 500, (1.0 * i, 0.0, 0.0))
    back_end.wait(
        lambda: stamp_ns_of(back_end.paths[-1]) == stamp_ns(-498), "the path begins anew"
    )
    assert len(back_end.paths[-1].poses) == 2


def test_a_real_vpr_node_learns_from_it(start, start_back_end, client, diagnostics):
    node = start(
        keyframes__min_distance_m=0.0,
        matching__temporal="none",
        matching__target_precision=0.6,
        matching__exclude_recent_s=30.0,
        matching__max_drift=0.0,  # odometry rules nothing out, so that one closure is wrong
        pose__source="odometry",
        pose__wait_s=1.0,
        publish__diagnostics_period_s=0.1,
    ).activate()
    back_end = start_back_end(node.namespace)
    camera = Camera(node).connect()
    client.matched(client.publisher(ClosureVerdict, node.topic("verdicts")))
    back_end.connect()
    back_end.wait(lambda: back_end.odometry.get_subscription_count() == 2, "both hear odometry")
    hypotheses = node.topic("hypotheses")
    back_end.wait(lambda: client.node.count_subscribers(hypotheses) == 2, "both hear hypotheses")
    # Halfway round the second lap the robot is shown what it saw at 7 m, and not of late as well.
    fooled = PER_LAP + 35
    accepted, keyframes = [], {}
    for i in range(1, 2 * PER_LAP - 2):
        back_end.move(i, DRIFTED[i])
        seen = 7 if i == fooled else i % PER_LAP
        answer = camera.send(image_message(picture(seen), stamp_ns(i)))
        keyframes[i] = answer.keyframe_id
        if answer.accepted:
            accepted.append(i)
    assert fooled in accepted and len(accepted) > 5
    back_end.drive(range(2 * PER_LAP - 2, 2 * PER_LAP))
    settled = sum(i <= 2 * PER_LAP - 1 - 3 for i in accepted)
    said = diagnostics(
        node,
        lambda d: (
            d["node"]["verdicts_accepted"] == str(settled - 1)
            and d["node"]["verdicts_rejected_by_graph"] == "1"
        ),
        f"it is told of {settled} closures, of which one is wrong",
    )
    assert said["node"]["verdicts_passed_over"] == "0"
    assert back_end.said_of(fooled) == ["rejected_by_graph"]
    drifted_m = np.hypot(*np.subtract(DRIFTED, TRUTH)[:, :2].T)
    assert error_m(back_end.paths[-1]) < float(np.sqrt(np.square(drifted_m).mean())) / 2

    def stored_m(second):
        """Where the map has a keyframe, in the frame of the optimised poses; None: it is not."""
        stored = node.call(InspectMap, "inspect_map", keyframe_id=keyframes[second]).keyframe
        at = stored.pose.pose.position
        return (at.x, at.y) if stored.pose.header.frame_id == "map" else None

    last = accepted[-1]  # until there closures have corrected the way
    back_end.wait(lambda: stored_m(last), "the map has the poses that were optimised")
    # The first images may have come before vpr_node and the back end had found each other. How
    # many depends on discovery; enough must be left to tell whether the poses are better.
    known = [i for i in range(1, last) if stored_m(i) is not None]
    assert len(known) >= 20
    off_m = [math.dist(stored_m(i), TRUTH[i][:2]) for i in known]
    assert np.sqrt(np.square(off_m).mean()) < np.sqrt(np.square(drifted_m[known]).mean()) / 2
