"""What the log says while all is well, and of parameter files that set nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from vpr_process import Camera, new_namespace, python_path, wait_until

from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.ros.parameter_files import without_effect
from hashvpr_ros.ros.progress import Progress
from hashvpr_ros.types import Decision, Descriptor, Hypothesis, Keyframe, Reason


class Log:
    """A double of a logger, that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, severity):
        return lambda text: self.lines.append((severity, text))

    def new(self, severity):
        found = [text for s, text in self.lines if s == severity]
        self.lines = [line for line in self.lines if line[0] != severity]
        return found


def decision(second, reason=Reason.NEW_PLACE, session="one", keyframe_id=0):
    descriptor = Descriptor(np.zeros(64, np.uint8), np.ones(4, np.float32) / 2)
    match = Hypothesis(Keyframe(7, "zero", "left", 5 * 10**9), 10, 0.9, 0.1, 0.998, 1.0)
    return Decision(
        second * 10**9,
        "left",
        "map",
        descriptor,
        reason,
        keyframe_id,
        session,
        hypotheses=(match,) if reason is Reason.ACCEPTED else (),
    )


def test_first_results_and_each_decision():
    log = Log()
    progress = Progress(log)
    progress.decided(decision(1), 45.4)
    (first,) = log.new("info")
    assert first == (
        "first image is answered, 45 ms after it came: camera left at 1.000 s, new_place"
    )
    progress.decided(decision(2, Reason.ACCEPTED), 45.0)
    (place,) = log.new("info")
    assert place == (
        "first place is recognised: camera left at 2.000 s is at keyframe 7 (camera left, 5.000 "
        "s, probability 0.998)"
    )
    progress.decided(decision(3, Reason.ACCEPTED), 45.0)
    assert log.new("info") == []
    progress.decided(decision(4, Reason.ACCEPTED, session="two"), 45.0)
    assert len(log.new("info")) == 1  # of the new session
    debug = log.new("debug")
    assert len(debug) == 4
    assert debug[0] == "camera left at 1.000 s: new_place"
    assert debug[1].startswith("camera left at 2.000 s: accepted, best keyframe 7 (")
    progress.start()
    progress.decided(decision(5, Reason.ACCEPTED, session="two"), 45.0)
    assert len(log.new("info")) == 2  # anew with each activation


def test_a_summary_each_minute(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hashvpr_ros.ros.progress.time.monotonic", lambda: now[0])
    log, stats = Log(), Stats()
    stats.start({"left": "/left"})
    progress = Progress(log)
    progress.decided(decision(1, keyframe_id=1), 1.0)
    log.new("info")
    for i in range(2, 6):
        progress.decided(decision(i, Reason.ACCEPTED if i % 2 else Reason.BELOW_TARGET), 1.0)
    log.new("info")
    stats.dropped("left")
    stats.cameras["left"].without_pose = 3
    now[0] += 59.0
    progress.summarise(stats, 1)
    assert log.new("info") == []
    now[0] += 2.0
    progress.summarise(stats, 1)
    assert log.new("info") == [
        "last 61 s: images answered: 5, keyframes added: 1 (in the map: 1), loop closures: 2; not "
        "accepted: 2 below_target, 1 new_place; images without a pose: 3; lost: 1 dropped"
    ]
    now[0] += 61.0
    progress.summarise(stats, 1)
    assert log.new("info") == []  # nothing came: the inputs say so
    progress.decided(decision(9), 1.0)
    now[0] += 61.0
    progress.summarise(stats, 2)
    assert log.new("info") == [
        "last 61 s: images answered: 1, keyframes added: 0 (in the map: 2), loop closures: 0; not "
        "accepted: 1 new_place"
    ]


@pytest.mark.parametrize(
    ("content", "node", "other"),
    [
        ("/**: {ros__parameters: {mode: slam}}", "/robot1/vpr_node", ""),
        ("vpr_node: {ros__parameters: {mode: slam}}", "/vpr_node", ""),
        ("/vpr_node: {ros__parameters: {mode: slam}}", "/vpr_node", ""),
        ("robot1: {vpr_node: {ros__parameters: {mode: slam}}}", "/robot1/vpr_node", ""),
        ("/robot1/vpr_node: {ros__parameters: {mode: slam}}", "/robot1/vpr_node", ""),
        ("/*/vpr_node: {ros__parameters: {mode: slam}}", "/robot1/vpr_node", ""),
        ("/**/vpr_node: {ros__parameters: {mode: slam}}", "/a/b/vpr_node", ""),
        ("vpr_node: {ros__parameters: {mode: slam}}", "/robot1/vpr_node", "/vpr_node"),
        ("vpr_node: {ros__parameters: {mode: slam}}", "/places", "/vpr_node"),
        ("/*/vpr_node: {ros__parameters: {mode: slam}}", "/vpr_node", "/*/vpr_node"),
        ("amcl: {ros__parameters: {a: 1}}", "/vpr_node", "/amcl"),
        ("[1, 2]", "/vpr_node", ""),  # ROS says what is wrong with it
        ("a: &a [*a]", "/vpr_node", ""),
        ("{", "/vpr_node", ""),
        ("a: &a {b: *a}", "/vpr_node", ""),
    ],
)
def test_a_parameter_file_of_another_node(tmp_path, content, node, other):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    said = without_effect(["vpr_node", "--ros-args", "--params-file", str(path)], node)
    if not other:
        assert said == []
    else:
        (sentence,) = said
        assert sentence.startswith(f"{path}: sets no parameter of {node}")
        assert f"'{other}'" in sentence and "write '/**'" in sentence


def test_parameter_files_that_are_none(tmp_path):
    arguments = ["--params-file", str(tmp_path / "none"), "--params-file", "/dev/zero"]
    assert without_effect(arguments, "/vpr_node") == []
    assert without_effect(["--params-file"], "/vpr_node") == []


def test_a_running_node_says_that_it_works(start):
    node = start().activate()
    camera = Camera(node).connect()
    for second in range(3):
        camera.show(second, float(second))
    wait_until(lambda: node.logged("first image is answered") == 1, "it is said once")


def test_a_running_node_says_that_its_parameter_file_is_of_another_node(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("vpr_node: {ros__parameters: {mode: mapping}}\n")
    command = [sys.executable, "-m", "hashvpr_ros.ros.node", "--ros-args", "-r"]
    command += [f"__ns:={new_namespace()}", "--params-file", str(path)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as node:
        try:
            said = next(line for line in node.stderr if "sets no parameter of" in line)
        finally:
            node.terminate()
    assert "[WARN]" in said and str(path) in said
