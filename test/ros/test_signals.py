"""SIGINT and SIGTERM end the process in time in every state, with the map saved."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_lifecycle import count
from vpr_process import START_NS, Camera, image_message, picture, python_path, wait_until

from hashvpr_ros.srv import InspectMap, LoadMap, SaveMap

LIMIT_S = 2.0
ALL = os.environ.get("HASHVPR_SOAK")  # else a few states: each needs a process of its own


@pytest.fixture(scope="module", autouse=True)
def load():
    """Another process that never rests."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    burner.kill()
    burner.wait()


def end(node, sig=signal.SIGTERM) -> tuple[int, float]:
    """The exit code, and how long it took."""
    started = time.monotonic()
    node.process.send_signal(sig)
    code = node.process.wait(30.0)
    return code, time.monotonic() - started


# What hangs, and what provokes it.
HANGS = {
    "decode": lambda node: node.camera.publisher.publish(image_message(picture(2), START_NS)),
    "process": lambda node: node.camera.publisher.publish(image_message(picture(2), START_NS)),
    "commit": lambda node: node.camera.publisher.publish(image_message(picture(2), START_NS)),
    "verify": lambda node: node.client.node.create_client(
        InspectMap, node.topic("inspect_map")
    ).call_async(InspectMap.Request(verify=True)),
    "load": lambda node: node.client.node.create_client(
        LoadMap, node.topic("load_map")
    ).call_async(LoadMap.Request(path=node.copy)),
    "status": lambda node: None,
    "post": lambda node: node.set("matching.top_k", 60),
    "close": lambda node: None,
}
IN_TEST = ("decode", "load")


@pytest.mark.parametrize("hook", HANGS if ALL else IN_TEST)
def test_what_never_ends_is_not_waited_for(start, tmp_path, hook):
    faults, path = tmp_path / "faults", tmp_path / "m.vprmap"
    node = start(broken=faults, map__path=str(path), map__commit_period_s=60.0).activate()
    node.copy = str(tmp_path / "copy.vprmap")
    assert node.call(SaveMap, "save_map", path=node.copy).result == 0
    node.camera = Camera(node).connect()
    node.camera.show(1, 0.0)
    faults.write_text(f"{hook} hang 9\n")
    HANGS[hook](node)
    if hook != "close":
        wait_until(faults.with_suffix(".hangs").exists, f"{hook} hangs")
    code, took_s = end(node)
    assert took_s < LIMIT_S, node.text()
    assert code == 0, node.text()
    assert count(path) == 1


def test_where_the_map_itself_hangs_it_is_said_that_keyframes_were_lost(start, tmp_path):
    if not ALL:
        pytest.skip("takes longer; it is part of `make soak`")
    faults = tmp_path / "faults"
    node = start(broken=faults, map__commit_period_s=60.0).activate()
    Camera(node).connect().show(1, 0.0)
    faults.write_text("flush hang 9\n")
    code, took_s = end(node)
    assert code == 1 and took_s < 6.0
    assert "keyframes were lost" in node.text()


@pytest.mark.parametrize("hook", ["engine", "activate"] if ALL else ["engine"])
def test_a_transition_that_never_ends_is_not_waited_for(start, tmp_path, hook):
    faults = tmp_path / "faults"
    faults.write_text(f"{hook} hang 1\n")
    node = start(broken=faults, autostart=True)
    wait_until(faults.with_suffix(".hangs").exists, f"{hook} hangs")
    code, took_s = end(node, signal.SIGINT)
    assert (code, took_s < LIMIT_S) == (0, True), (took_s, node.text())


@pytest.mark.parametrize("state", ["unconfigured", "inactive"] if ALL else ["unconfigured"])
def test_a_quiet_node_ends_at_once_and_says_before_what_it_waits_for(start, state):
    node = start()
    wait_until(lambda: node.logged("unconfigured: waits for"), "it says what it waits for")
    assert node.logged(f"`ros2 lifecycle set {node.name} configure`") == 1
    if state == "inactive":
        assert node.change("configure")
    # A terminal that is closed sends SIGHUP.
    code, took_s = end(node, signal.SIGHUP)
    assert (code, took_s < LIMIT_S) == (0, True), (took_s, node.text())


def test_images_at_a_high_rate_do_not_keep_it(start, tmp_path):
    path = tmp_path / "m.vprmap"
    node = start(map__path=str(path), map__commit_period_s=60.0).activate()
    camera = Camera(node).connect()
    camera.show(1, 0.0)
    stop = threading.Event()

    def flood() -> None:
        message = image_message(picture(8, 480, 640), START_NS)
        while not stop.wait(0.005):
            message.header.stamp.sec += 1
            camera.publisher.publish(message)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        wait_until(lambda: len(camera.heard) > 5, "images are answered")
        code, took_s = end(node, signal.SIGINT)
    finally:
        stop.set()
        thread.join()
    assert (code, took_s < LIMIT_S) == (0, True), (took_s, node.text())
    assert count(path) >= 1


def caught(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@pytest.mark.parametrize("after_s", (0.0, 0.1, 0.3, 0.6, 1.0, 1.5) if ALL else (0.0, 0.5))
def test_a_signal_during_the_start_ends_it_in_order(after_s):
    """From the first moment that Python runs the program."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hashvpr_ros.ros.node"],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_until(lambda: caught(process.pid), "it has a handler")
    time.sleep(after_s)  # no event tells how far it is
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30.0)
    took_s = time.monotonic() - started
    assert (process.returncode, took_s < LIMIT_S) == (0, True), (took_s, said)
    assert "Traceback" not in said
