"""Every input that gives nothing useful is named in log and diagnostics, with the remedy."""

import time
from types import SimpleNamespace

import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vpr_process import START_NS, Camera, image_message, new_namespace, picture, wait_until

from hashvpr_ros.config import InputConfig, PoseConfig
from hashvpr_ros.msg import PlaceHypotheses
from hashvpr_ros.ros.diagnostics import Stats, diagnostics, distinct_labels
from hashvpr_ros.ros.inputs import Problem, Reporter
from hashvpr_ros.ros.stamps import apart_text

OK, WARN, ERROR = 0, 1, 2
STALE_S = 0.3


@pytest.fixture(scope="module")
def node(start_module):
    """An active node that wants odometry, reliable, and descriptors of another robot."""
    namespace = new_namespace()
    return start_module(
        namespace,
        **{f"qos_overrides.{namespace}/odom.subscription.reliability": "reliable"},
        input__stale_after_s=STALE_S,
        input__descriptor_topics=["/other/descriptors"],
        pose__source="odometry",
        publish__diagnostics_period_s=0.1,
    ).activate()


@pytest.fixture(scope="module")
def camera(node):
    return Camera(node).connect()


def says(label, level, *parts):
    return lambda d: (
        label in d
        and d[label]["level"] == level
        and all(part in d[label]["message"] for part in parts)
    )


def send_odometry(publisher, stamp_ns, x=0.0):
    message = Odometry()
    message.header.frame_id = "odom"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    message.pose.pose.position.x = x
    message.pose.pose.orientation.w = 1.0
    publisher.publish(message)


def test_odometry_that_nobody_publishes(node, diagnostics):
    topic = f"{node.namespace}/odom"
    diagnostics(
        node,
        says(
            "odometry", WARN, "no odometry on", topic, "nobody publishes there", "odometry_topic"
        ),
        "it is said",
    )
    wait_until(lambda: node.logged(f"no odometry on {topic}"), "the log says it")


def test_odometry_of_another_type(node, diagnostics):
    publisher = node.client.publisher(PoseStamped, f"{node.namespace}/odom")
    diagnostics(
        node,
        says("odometry", WARN, "geometry_msgs/msg/PoseStamped, not nav_msgs/msg/Odometry"),
        "it is said",
    )
    node.client.destroy(publisher)


def test_odometry_of_an_incompatible_qos(node, diagnostics):
    publisher = node.client.publisher(Odometry, f"{node.namespace}/odom", reliable=False)
    diagnostics(node, says("odometry", WARN, "incompatible QoS", "qos_overrides"), "it is said")
    wait_until(lambda: node.logged("has an incompatible QoS (reliability)"), "the log says it")
    node.client.destroy(publisher)


@pytest.mark.parametrize(
    ("off_s", "parts"),
    [
        (2.0, ["s from the images' (later) when both arrive", "one clock"]),
        (-2.0, ["are 2.00 s from the images' (earlier)", "synchronise"]),
        (-1e9 + 5, ["are 1.0e9 s from the images' (earlier)", "one clock"]),
        (0.0, []),
    ],
)
def test_odometry_of_another_clock(node, camera, diagnostics, off_s, parts):
    topic = f"{node.namespace}/odom"
    publisher = node.client.matched(node.client.publisher(Odometry, topic, depth=100))
    second = [1000.0 + 100.0 * abs(off_s % 97)]

    def drive():
        second[0] += 0.05
        stamp_ns = START_NS + round(second[0] * 1e9)
        send_odometry(publisher, stamp_ns + round(off_s * 1e9), second[0])
        camera.publisher.publish(image_message(picture(round(20 * second[0])), stamp_ns))
        time.sleep(0.05)  # a rate, as a robot has it

    if not parts:
        good = says("odometry", OK, "messages come in")
        diagnostics(node, lambda d: drive() or good(d), "images have poses again")
        again = f"odometry on {topic}: images have poses again"
        wait_until(lambda: node.logged(again), "the log says it")
        return
    wanted = says("odometry", WARN, topic, *parts)
    diagnostics(node, lambda d: drive() or wanted(d), "it is said")
    wait_until(lambda: drive() or node.logged(parts[0]), "the log says it")
    node.client.destroy(publisher)


def test_a_silence_that_lasts_is_an_error(node, diagnostics):
    diagnostics(node, says("odometry", ERROR, "no odometry on"), "it is an error")
    assert node.set("input.stale_after_s", 60.0).successful
    diagnostics(node, says("odometry", OK), "it is none by another limit")
    assert node.set("input.stale_after_s", STALE_S).successful


def test_other_robots_may_be_away_but_not_of_another_type(node, diagnostics):
    label = "descriptors other_descriptors"
    diagnostics(node, says(label, OK, "no message yet"), "silence is no fault")
    publishers = [
        node.client.publisher(String, "/other/descriptors"),
        node.client.publisher(String, node.topic("verdicts")),
    ]
    diagnostics(node, says(label, WARN, "std_msgs/msg/String, not", "descriptor_topics"), "said")
    diagnostics(node, says("verdicts", WARN, "std_msgs/msg/String, not"), "it is said")
    for publisher in publishers:
        node.client.destroy(publisher)


def test_a_slow_camera(node, camera, diagnostics):
    assert node.set("input.expected_rate_hz", 1000.0).successful
    number = iter(range(10**6))

    def show():
        stamp_ns = START_NS + (5000 * 10**9) + next(number) * 10**7
        camera.publisher.publish(image_message(picture(1), stamp_ns))
        time.sleep(0.02)

    slow = says("camera image", WARN, "Hz are expected (input.expected_rate_hz)")
    diagnostics(node, lambda d: show() or slow(d), "it is said")
    assert node.set("input.expected_rate_hz", 5.0).successful
    fast = says("camera image", OK, "images come in")
    diagnostics(node, lambda d: show() or fast(d), "it is fast enough")
    assert node.set("input.expected_rate_hz", 0.0).successful


def test_a_node_that_cannot_be_configured_is_an_error(start, diagnostics):
    node = start(
        mode="localization", map__path="/no/such.vprmap", publish__diagnostics_period_s=0.1
    )
    diagnostics(node, says("node", OK, "unconfigured"), "nobody has asked yet")
    assert not node.change("configure")
    diagnostics(node, says("node", ERROR, "cannot configure", "/no/such.vprmap"), "it says why")
    assert node.set("mode", "slam").successful and node.set("map.path", [""]).successful is False
    assert node.set("map.path", "").successful
    assert node.change("configure")
    diagnostics(node, says("node", OK, "inactive"), "it is configured")
    # The same for what can fail only when it is activated.
    assert node.change("cleanup")


def test_without_a_clock_the_time_of_arrival_is_real(start, diagnostics):
    node = start(
        use_sim_time=True,
        input__stale_after_s=0.3,
        keyframes__min_period_s=0.0,
        keyframes__min_novelty_bits=0,
        publish__diagnostics_period_s=0.1,
    ).activate()
    said = diagnostics(
        node, says("clock", WARN, "use_sim_time is true and nobody publishes /clock"), "it is said"
    )
    assert "ros2 bag play --clock" in said["clock"]["message"]
    heard = node.client.listen(PlaceHypotheses, node.topic("hypotheses"))
    publisher = node.client.matched(node.client.publisher(Image, f"{node.namespace}/image"))
    for seed in range(3):
        publisher.publish(image_message(picture(seed), 0))
        wait_until(lambda n=seed: len(heard) > n, "it is answered")
    assert [h.keyframe_id for h in heard] == [1, 2, 3]  # each is of a time of its own
    assert node.logged("images of camera image have no stamp") == 1
    assert node.logged("by the system's clock, because the node's clock stands at 0") == 1


def test_names_in_diagnostics_have_no_slash_but_that_of_the_namespace():
    names = distinct_labels(["", "camera /front/image", "camera front/image", "odometry"])
    assert names["camera /front/image"] == "camera front_image"
    assert names["camera front/image"] == "camera front_image 2"
    assert names["odometry"] == "odometry" and names[""] == ""
    stats = Stats()
    stats.start({"/front/image": "/front/image"})
    for name, hardware in (("r1/vpr_node", "/r1"), ("vpr_node", "")):
        message = diagnostics(name, "active", stats, None, [])
        assert [s.name for s in message.status] == [name, f"{name}: camera front_image"]
        assert all(s.hardware_id.endswith(hardware) for s in message.status)
        assert all(s.hardware_id.count("/") == bool(hardware) for s in message.status)
        assert message.status[0].hardware_id not in ("", "hashvpr")


def test_stamps_apart():
    assert apart_text(-1.7e9) == "1.7e9 s"
    assert apart_text(0.351) == "0.35 s" and apart_text(3600) == "3600 s"


class Log:
    """A double of a logger, that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, severity):
        return lambda text: self.lines.append((severity, text))


def test_a_problem_is_logged_when_it_begins_changes_and_ends(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hashvpr_ros.ros.inputs.time.monotonic", lambda: now[0])
    log = Log()
    reporter, current = Reporter(log), [None]
    one = SimpleNamespace(label="odometry", recovered="over", problem=lambda c: current[0])

    def after(seconds, problem):
        now[0] += seconds
        current[0] = problem
        before = len(log.lines)
        reporter.report([one], InputConfig())
        return log.lines[before:]

    assert after(1, None) == []
    assert after(1, Problem("nobody", "a 5 s")) == [("warning", "a 5 s")]
    assert after(10, Problem("nobody", "a 15 s")) == []
    assert after(1, Problem("type", "b")) == [("warning", "b")]
    assert after(1, Problem("nobody", "a")) == []  # it comes and goes
    assert after(30, Problem("type", "b", is_error=True)) == [("error", "b")]
    assert after(1, None) == [("info", "over")]
    assert after(1, None) == []


@pytest.fixture
def tf(monkeypatch):
    """TfPoses over a double of tf2_ros, which is no wheel: `answer` is what a lookup gives."""
    import sys

    from hashvpr_ros.ros.poses import TfPoses

    class TransformException(Exception):
        pass

    state = SimpleNamespace(answer=TransformException('"base" passed to lookup does not exist. '))

    class Buffer:
        def __init__(self, node):
            pass

        def lookup_transform(self, target, source, stamp):
            if isinstance(state.answer, Exception):
                raise state.answer
            if stamp.nanoseconds not in (0, state.answer):
                raise TransformException("extrapolation into the future")
            sec, nanosec = divmod(state.answer, 10**9)
            return SimpleNamespace(
                header=SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec)),
                transform=SimpleNamespace(
                    translation=SimpleNamespace(x=1.0, y=2.0, z=0.0),
                    rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0),
                ),
            )

    double = SimpleNamespace(
        TransformException=TransformException,
        Buffer=Buffer,
        TransformListener=lambda buffer, node: SimpleNamespace(unregister=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "tf2_ros", double)
    publishers = []
    node = SimpleNamespace(get_publishers_info_by_topic=lambda topic: publishers)
    state.publishers, state.poses = publishers, TfPoses(node, "odom", "base")
    return state


def test_tf_that_has_no_such_frame_or_is_late(tf, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hashvpr_ros.ros.poses.time.monotonic", lambda: now[0])
    config, pose_config, stamp_ns = InputConfig(stale_after_s=2.0), PoseConfig(), 10**18

    def images(count):
        for _ in range(count):
            found = tf.poses.at(stamp_ns, 0.0, pose_config)
            now[0] += 1.0
        return found, tf.poses.problem(config)

    assert images(2) == (None, None)  # it may still come
    found, problem = images(2)
    assert found is None and "nobody publishes /tf" in problem.text and not problem.is_error
    tf.publishers.append("one")
    _, problem = images(1)
    assert "where base is in odom" in problem.text and "pose.base_frame" in problem.text
    assert "does not exist" in problem.text
    _, problem = images(20)
    assert problem.is_error
    tf.answer = stamp_ns - 3 * 10**9  # the newest
    tf.poses.at(stamp_ns, 0.0, pose_config)
    assert "are 3.00 s from the images' (earlier)" in tf.poses.problem(config).text
    tf.answer = stamp_ns
    found, problem = images(1)
    assert found.position_m == (1.0, 2.0, 0.0)
    for _ in range(12):
        _, problem = images(1)
    assert problem is None


def test_most_images_without_a_pose_are_said_though_some_have_one(tf, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hashvpr_ros.ros.poses.time.monotonic", lambda: now[0])
    config, stamp_ns, lost = InputConfig(stale_after_s=5.0), 10**18, tf.answer
    problems = []
    for i in range(60):
        tf.answer = stamp_ns if i < 20 or i % 3 == 0 else lost
        tf.poses.at(stamp_ns, 0.0, PoseConfig())
        now[0] += 1.0
        problems.append(tf.poses.problem(config))
    assert not any(problems[:25])
    assert "14 of the last 20 images have no pose" in problems[-1].text
