"""`hashvpr audit --rviz`: what looks alike reaches RViz, also one that is started later."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from visualization_msgs.msg import Marker, MarkerArray
from vpr_process import latched, python_path, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.types import Descriptor, Pose

DIM, PLACES = 64, 200
TOPIC = "/hashvpr_audit/alike"


def make_map(path, pose_of):
    """A straight way, whose places 150 to 169 look like 30 to 49."""
    rng = np.random.default_rng(0)
    own, plane = rng.normal(size=(PLACES + 6, DIM)), rng.normal(size=(512, DIM))
    views = sum(np.roll(own, k, 0) * 0.8 ** abs(k) for k in range(-3, 4))[3:-3]
    views[150:170] = views[30:50] + 0.05 * rng.normal(size=(20, DIM))
    with PlaceMap.open(path, "ab" * 32, DIM, session="one") as place_map:
        for i, x in enumerate((views / np.linalg.norm(views, axis=1)[:, None]).astype("f4")):
            place_map.add(
                camera="c",
                stamp_ns=i * 10**9,
                pose=pose_of(i),
                descriptor=Descriptor(np.packbits(plane @ x >= 0), x),
            )


@pytest.fixture
def audit(tmp_path):
    """Starts `hashvpr audit` of a map; stopped at the end."""
    started = []

    def start(path):
        command = [sys.executable, "-m", "hashvpr_ros.cli.main", "audit", str(path), "--rviz"]
        log = tmp_path / f"{len(started)}.log"
        with log.open("w") as f:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=f,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": python_path()},
                )
            )
        return started[-1], log

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_pairs_are_shown_until_the_audit_ends(client, audit, tmp_path):
    make_map(tmp_path / "a.vprmap", lambda i: Pose((float(i), 2.0, 0.5), frame_id="odom"))
    process, log = audit(tmp_path / "a.vprmap")
    heard = client.listen(MarkerArray, TOPIC, latched())
    wait_until(lambda: heard or process.poll() is not None, "markers are heard")
    assert heard, log.read_text()
    shown = {m.ns: m for m in heard[0].markers if m.action == Marker.ADD}
    assert heard[0].markers[0].action == Marker.DELETEALL
    assert {m.header.frame_id for m in shown.values()} == {"odom"}
    assert len(shown["keyframes"].points) == PLACES
    lines = shown["pairs"].points
    assert len(lines) >= 4 and len(lines) % 2 == 0 and len(shown["places"].points) == len(lines)
    for a, b in zip(lines[::2], lines[1::2], strict=True):
        assert abs(b.x - a.x - 120.0) <= 3.0 and (a.y, a.z) == (2.0, 0.5)
    assert " like " in shown["texts"].text and shown["texts"].color.a == 1.0

    late = client.listen(MarkerArray, TOPIC, latched())
    wait_until(lambda: late, "the markers reach one who came later")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0, log.read_text()
    assert "frame odom; Ctrl+C ends" in log.read_text() and "Traceback" not in log.read_text()
    wait_until(lambda: not client.node.get_publishers_info_by_topic(TOPIC), "nobody shows them")


def test_nothing_is_shown_any_more_where_the_audit_was_killed(client, audit, tmp_path):
    make_map(tmp_path / "a.vprmap", lambda i: Pose((float(i), 0.0, 0.0)))
    process, _log = audit(tmp_path / "a.vprmap")
    heard = client.listen(MarkerArray, TOPIC, latched())
    wait_until(lambda: heard or process.poll() is not None, "markers are heard")
    process.kill()
    wait_until(lambda: not client.node.get_publishers_info_by_topic(TOPIC), "nobody shows them")


def test_pairs_of_two_frames_are_counted_where_none_can_be_drawn(client, audit, tmp_path):
    path = tmp_path / "a.vprmap"
    make_map(path, lambda i: Pose((float(i), 0.0, 0.0), frame_id="odom" if i < 100 else "map"))
    process, log = audit(path)
    heard = client.listen(MarkerArray, TOPIC, latched())
    wait_until(lambda: heard or process.poll() is not None, "markers are heard")
    assert [m.ns for m in heard[0].markers if m.action == Marker.ADD] == ["keyframes"] * 2
    assert re.search(r"in RViz: 0 pairs .* odom, map; [1-9]\d* left out", log.read_text())


def test_a_map_without_poses_is_refused(audit, tmp_path):
    make_map(tmp_path / "a.vprmap", lambda i: None)
    process, log = audit(tmp_path / "a.vprmap")
    assert process.wait(60) == 2
    assert "has no keyframe with a pose" in log.read_text() and "--plot" in log.read_text()
