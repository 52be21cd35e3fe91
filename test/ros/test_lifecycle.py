"""Every transition over DDS, those that fail, and how the process ends."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from vpr_process import TRANSITIONS, Camera, python_path, wait_until

from hashvpr_ros.engine.factory import default_model_path

ALLOWED = {
    "unconfigured": {"configure": "inactive"},
    "inactive": {"activate": "active", "cleanup": "unconfigured"},
    "active": {"deactivate": "inactive"},
}


@pytest.fixture(scope="module")
def node(start_module):
    return start_module()


def test_every_transition_and_every_invalid_one(node):
    for state, transition, reached in [
        ("unconfigured", "configure", "inactive"),
        ("inactive", "activate", "active"),
        ("active", "deactivate", "inactive"),
        ("inactive", "activate", "active"),
        ("active", "deactivate", "inactive"),
        ("inactive", "cleanup", "unconfigured"),
        ("unconfigured", "configure", "inactive"),
        ("inactive", "cleanup", "unconfigured"),
    ]:
        assert node.state() == state
        for invalid in TRANSITIONS:
            if invalid not in ALLOWED[state] and not invalid.startswith(state):
                assert not node.change(invalid), f"{invalid} in {state}"
                assert node.state() == state
        assert node.change(transition)
        assert node.state() == reached


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("engine.path", None, "no such"),
        ("engine.path", b"", "x.onnx"),
        ("engine.path", b"not a network" * 100, "x.onnx"),
        ("map.path", b"not a map" * 1000, "not a map"),
        ("map.path", b"", "x"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_and_can_be_put_right(
    node, tmp_path, path, content, reason
):
    bad = tmp_path / ("x.onnx" if path == "engine.path" else "x.vprmap")
    if content is not None:
        bad.write_bytes(content)
    good = node.get(path)
    before = len(node.text().splitlines())
    assert node.set(path, str(bad)).successful
    assert not node.change("configure")
    assert node.state() == "unconfigured"
    said = [line for line in node.text().splitlines()[before:] if "ERROR" in line]
    assert len(said) == 1 and str(bad) in said[0], said
    assert "Traceback" not in node.text()
    if content is not None:
        assert bad.read_bytes() == content
    assert node.set(path, good).successful
    assert node.change("configure")
    assert node.change("cleanup")


def test_a_truncated_network_is_refused(node, tmp_path):
    whole = default_model_path().read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    assert node.set("engine.path", str(tmp_path / "half.onnx")).successful
    assert not node.change("configure")
    assert node.set("engine.path", "").successful


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("input.image_topics", ["no topic!"], "not a topic name"),
        ("input.image_topics", ["//robot1/image"], "input.image_topics: '//robot1/image'"),
        ("input.image_topics", ["/front//image"], "input.image_topics: '/front//image'"),
        ("input.image_topics", ["image/"], "input.image_topics: 'image/'"),
        ("input.image_topics", ["~image"], "input.image_topics: '~image'"),
        ("input.image_topics", ["{no}/image"], "input.image_topics: '{no}/image'"),
        ("input.image_topics", ["x" * 300], "not a topic name"),
        ("input.descriptor_topics", ["//robot1/d"], "input.descriptor_topics: '//robot1/d'"),
        ("input.camera_names", ["a", "b"], "2 names for 1 topics"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(node, name, value, reason):
    good = node.get(name)
    assert node.set(name, value).successful
    assert not node.change("configure")
    assert reason in node.text() and "Traceback" not in node.text()
    assert node.set(name, good if good else [""]).successful
    assert node.change("configure")
    assert node.change("cleanup")


@pytest.mark.parametrize("topic", ["//robot1/odom", "/a//odom", "odom/", "", "o dom"])
def test_a_topic_of_odometry_that_is_none_is_refused(node, topic):
    assert node.set("pose.source", "odometry").successful
    assert node.set("pose.odometry_topic", topic).successful
    assert not node.change("configure")
    assert "pose.odometry_topic" in node.text() and "Traceback" not in node.text()
    assert node.set("pose.source", "none").successful


def test_tf_without_tf2_ros_is_refused(node):
    pytest.importorskip("rclpy")
    import importlib.util

    if importlib.util.find_spec("tf2_ros") is not None:
        pytest.skip("tf2_ros is installed here")
    assert node.set("pose.source", "tf").successful
    assert not node.change("configure")
    assert "tf2_ros is not installed" in node.text()
    assert node.set("pose.source", "none").successful


def test_a_damaged_map_is_refused_and_untouched(node, tmp_path):
    path = tmp_path / "damaged.vprmap"
    assert node.set("map.path", str(path)).successful
    assert node.change("configure")
    assert node.change("cleanup")
    db = sqlite3.connect(path)
    db.execute("DELETE FROM meta")
    db.commit()
    db.close()
    damaged = path.read_bytes()
    assert not node.change("configure")
    assert path.read_bytes() == damaged
    path.unlink()
    assert node.change("configure")
    assert node.change("cleanup")


def test_a_map_in_use_elsewhere_is_refused(node, start, tmp_path):
    path = tmp_path / "shared.vprmap"
    other = start(map__path=str(path))
    assert other.change("configure")
    assert node.set("map.path", str(path)).successful
    assert not node.change("configure")
    assert "another process has this map open" in node.text()
    assert other.change("cleanup")
    assert node.change("configure")
    assert node.change("cleanup")


@pytest.mark.parametrize("state", ["unconfigured", "inactive", "active"])
def test_shutdown_from_every_state(start, state):
    node = start()
    if state != "unconfigured":
        assert node.change("configure")
    if state == "active":
        assert node.change("activate")
    assert node.change(f"{state}_shutdown")
    assert node.state() == "finalized"
    assert not node.change("configure")
    assert node.stop() == 0


@pytest.mark.parametrize("signals", ["INT", "TERM", "INT INT TERM " * 30])
def test_a_signal_ends_the_process_and_writes_the_map(start, signals, tmp_path):
    path = tmp_path / "m.vprmap"
    # A period so long that only the end can have written the keyframe.
    node = start(map__path=str(path), autostart=True, map__commit_period_s=60.0)
    wait_until(lambda: node.logged("active: waiting"), "the node has started itself")
    Camera(node).connect().show(1, 0.0)
    # Several at once come from a launch that is interrupted; they are one wish to end.
    for name in signals.split():
        if node.is_running():
            node.process.send_signal(signal.Signals[f"SIG{name}"])
            time.sleep(0.01)
    assert node.process.wait(20.0) == 0, node.text()
    assert count(path) == 1
    assert not list(tmp_path.glob("m.vprmap-*")), "the write-ahead log was left behind"


def test_cleanup_frees_the_engine_and_the_map(node, tmp_path):
    assert node.set("map.path", str(tmp_path / "freed.vprmap")).successful
    for _ in range(3):
        assert node.change("configure")
        assert node.change("activate")
        assert node.change("deactivate")
        assert node.change("cleanup")
    files = subprocess.run(
        ["ls", "-l", f"/proc/{node.process.pid}/fd"], capture_output=True, text=True
    ).stdout
    assert ".vprmap" not in files


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-p", "matching.top_k:=0"], "matching.top_k"),
        (["-p", "matching.top_k:=many"], "matching.top_k"),
        (["-p", "mode:=slamming"], "mode must be one of"),
        (["-p", "matching.target_precision:=.nan"], "matching.target_precision"),
        (["-p", "matching.top_k:=[1, 2]"], "matching.top_k"),
        (["-p", "autostart:=maybe"], "autostart"),
        (["-p", "use_sim_time:=5"], "use_sim_time"),
        (["-p", "input.camera_headings:=[0, 3.14]"], "[0.0, 3.14]"),
        (["-p", "nonsense"], "NAME:=VALUE"),
        (["-p", "map.allowed_dirs:=[relative]"], "not an absolute path"),
        (["--log-level", "verbose"], "give debug, info"),
        (["-r", "__ns:=//robot1"], "__ns:=/NAME"),
        (["-r", "image:=//robot1/image"], "FROM:=TO"),
        (["-r", "__node:=a b"], "FROM:=TO"),
        (["--no-such-option"], "--help"),
        (["--params-file", "none.yaml"], "No such file"),
        (["--params-file", "fifo.yaml"], "is a FIFO"),
        (["--params-file", "."], "a folder"),
        (["--params-file", "unkeyed.yaml"], "under `/**:` and `ros__parameters:`"),
        (["--params-file", "broken.yaml"], "broken.yaml"),
        (["--params-file", "binary.yaml"], "binary.yaml"),
    ],
)
def test_bad_arguments_end_the_process_with_one_sentence(arguments, reason, tmp_path):
    (tmp_path / "unkeyed.yaml").write_text("/**:\n  matching:\n    top_k: 5\n")
    (tmp_path / "broken.yaml").write_text("/**:\n  ros__parameters:\n    a: [1\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "fifo.yaml")
    done = run("--ros-args", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "hashvpr_ros.ros.node", *arguments],
        capture_output=True, text=True, timeout=60, cwd=cwd,
        env={**os.environ, "PYTHONPATH": python_path()},
    )  # fmt: skip


def test_help_and_unknown_arguments():
    done = run("--help")
    assert done.returncode == 0 and "usage: vpr_node" in done.stdout and not done.stderr
    done = run("--params-file", "x.yaml")  # without --ros-args
    assert done.returncode == 2 and "after --ros-args" in done.stderr


def count(path) -> int:
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return db.execute("SELECT count(*) FROM keyframes").fetchone()[0]
    finally:
        db.close()
