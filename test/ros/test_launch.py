"""The launch file with the real `ros2 launch`, where there is one."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image
from vpr_process import (
    PATIENCE_S,
    START_NS,
    TRANSITIONS,
    image_message,
    new_namespace,
    picture,
    wait_until,
)

MISSING = [n for n in ("launch", "launch_ros", "ros2launch") if not importlib.util.find_spec(n)]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}"),
    pytest.mark.skipif(not shutil.which("ros2"), reason="there is no ros2 command here"),
]


class Launched:
    """`ros2 launch hashvpr_ros vpr.launch.py` in a process group of its own."""

    def __init__(self, client, log, **arguments):
        self.client, self.log = client, log
        self.namespace = new_namespace()
        command = ["ros2", "launch", "hashvpr_ros", "vpr.launch.py"]
        command += [f"namespace:={self.namespace}"]
        command += [f"{name}:={value}" for name, value in arguments.items()]
        self.name = f"{self.namespace}/{arguments.get('name', 'vpr_node')}"
        with log.open("w") as f:
            # Of its own, and with the handlers of a terminal: else it ignores SIGINT where the
            # tests run in the background, and leaves its nodes.
            self.process = subprocess.Popen(
                command, stdout=f, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    def topic(self, name):
        return f"{self.name}/{name}"

    def text(self):
        return self.log.read_text(errors="replace")

    def is_running(self):
        return self.process.poll() is None

    def call(self, kind, name, **fields):
        return self.client.call(kind, self.topic(name), kind.Request(**fields), self.is_running)

    def state(self):
        return self.call(GetState, "get_state").current_state.label

    def get(self, name):
        (value,) = self.call(GetParameters, "get_parameters", names=[name]).values
        return parameter_value_to_python(value)

    def end(self):
        """Ctrl-C: to the whole group, as a terminal does; launch passes it on besides."""
        if self.is_running():
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"it did not end:\n{self.text()}") from None

    def end_well(self):
        self.end()
        assert self.process.returncode == 0, self.text()
        assert "process has finished cleanly" in self.text(), self.text()


@pytest.fixture
def launched(client, tmp_path):
    started = []

    def start(**arguments):
        log = tmp_path / f"{len(started)}.log"
        started.append(Launched(client, log, **arguments))
        return started[-1]

    yield start
    for one in started:
        if one.is_running():
            one.end()


def test_with_arguments_it_becomes_active(launched, tmp_path):
    params = tmp_path / "p.yaml"
    params.write_text("/**:\n  ros__parameters:\n    matching:\n      top_k: 7\n    mode: slam\n")
    path = tmp_path / "5"  # looks like a number and is none
    one = launched(
        name="places",
        map=path,
        mode="mapping",
        image_topics="left, right/image",
        use_sim_time="true",
        params_file=params,
        log_level="debug",
    )
    wait_until(lambda: one.state() == "active", "the node is active")
    assert one.get("map.path") == str(path)
    assert one.get("mode") == "mapping"
    assert list(one.get("input.image_topics")) == ["left", "right/image"]
    assert one.get("use_sim_time") is True
    assert one.get("matching.top_k") == 7
    assert one.get("input.compressed") is False
    assert one.get("autostart") is False  # the launch file drives it, not the node itself
    right = one.client.matched(one.client.publisher(Image, f"{one.namespace}/right/image"))

    def debug():
        right.publish(image_message(picture(1), START_NS))
        lines = [line for line in one.text().splitlines() if "[DEBUG]" in line]
        return lines if any("camera right/image at" in line for line in lines) else None

    lines = wait_until(debug, "the decision on an image is logged")
    assert not any("[rcl" in line or "[rmw" in line for line in lines)
    one.end_well()
    assert path.is_file()


def test_without_arguments_it_is_as_the_parameter_file_says(launched, tmp_path):
    one = launched(map=tmp_path / "m.vprmap", compressed="True")
    wait_until(lambda: one.state() == "active", "the node is active")
    assert list(one.get("input.image_topics")) == ["image"]
    assert one.get("input.compressed") is True
    assert one.get("mode") == "slam" and one.get("use_sim_time") is False
    one.end_well()


def test_it_can_be_left_to_a_lifecycle_manager(launched, tmp_path):
    one = launched(map=tmp_path / "m.vprmap", autostart="false")
    assert one.state() == "unconfigured"
    for transition, state in (("configure", "inactive"), ("activate", "active")):
        request = Transition(id=TRANSITIONS[transition])
        assert one.call(ChangeState, "change_state", transition=request).success
        assert one.state() == state
    one.end_well()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"compressed": "maybe"}, "compressed must be true or false, not 'maybe'"),
        ({"params_file": "/no/such.yaml"}, "there is no file /no/such.yaml"),
    ],
)
def test_wrong_arguments_are_refused(launched, arguments, reason):
    one = launched(**arguments)
    wait_until(lambda: not one.is_running(), "it ends")
    assert one.process.returncode != 0
    assert reason in one.text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"mode": "localisation"}, "ended with exit code 2"),
        ({"mode": "localization", "map": "/no/such.vprmap"}, "vpr_node cannot be configured"),
    ],
)
def test_a_node_that_cannot_start_ends_the_launch(launched, arguments, reason):
    one = launched(**arguments)
    wait_until(lambda: not one.is_running(), "it ends")
    assert one.process.returncode == 1
    assert reason in one.text() and "its log above says why" in one.text()
    assert "Destroyable" not in one.text()


def pid(one, count=1):
    """Of the node, which was started so often."""
    found = re.findall(r"process started with pid \[(\d+)\]", one.text())
    return int(found[-1]) if len(found) == count else 0


def test_a_node_that_dies_ends_the_launch(launched, tmp_path):
    one = launched(map=tmp_path / "m.vprmap")
    wait_until(lambda: one.state() == "active", "the node is active")
    os.kill(pid(one), signal.SIGABRT)
    wait_until(lambda: not one.is_running(), "it ends")
    assert one.process.returncode == 1
    assert "ended with exit code -6" in one.text()


def test_a_node_that_ends_well_ends_the_launch_well(launched, tmp_path):
    one = launched(map=tmp_path / "m.vprmap", autostart="false")
    assert one.state() == "unconfigured"
    os.kill(pid(one), signal.SIGINT)
    wait_until(lambda: not one.is_running(), "it ends")
    assert one.process.returncode == 0


def test_a_node_that_dies_is_started_again_where_that_is_asked_for(launched, tmp_path):
    one = launched(map=tmp_path / "m.vprmap", respawn="true")
    wait_until(lambda: one.state() == "active", "the node is active")
    os.kill(pid(one), signal.SIGABRT)
    wait_until(lambda: pid(one, 2), "it is started again")
    activated = "active: waiting for images"
    wait_until(lambda: one.text().count(activated) == 2, "the node is active again")
    one.end_well()
