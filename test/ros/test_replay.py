"""The live node decides as `hashvpr replay` does, bit for bit."""

import json
import os
import subprocess
import sys

from vpr_process import python_path

from hashvpr_ros.datasets.bag import Losses, read_own
from hashvpr_ros.datasets.bag_writer import ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.simulation.course import DAY, EVENING, Course


def replay(bag, out, *arguments):
    result = out.with_suffix(".json")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hashvpr_ros.cli.main", "replay", str(bag)),
            *("--out", str(out), "--json", str(result), "--pose-topic", ODOMETRY_TOPIC),
            *("--set", "matching.exclude_recent_s=10.0", "--set", "engine.threads=1"),
            # On a course this short few views lead to a match: let single ones be accepted.
            *("--set", "matching.min_sequence_support=0.0"),
            *("--set", "matching.target_precision=0.6"),
            # A busy machine may bring odometry late; here it is to be waited for.
            *("--set", "pose.wait_s=1.0", "--set", "publish.ledger=true", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": python_path()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text())


def ledgers(bag):
    """What each image was compared with, and why that was or was not it."""
    return [
        (
            stamp,
            m.reason,
            m.keyframes,
            m.newest_allowed.sec,
            [h.place_id for h in m.hypotheses],
            [(c.place_id, c.distance, c.similarity, c.belief, c.reason) for c in m.candidates],
        )
        for stamp, m in read_own(bag, "DecisionLedger", Losses())
    ]


def test_the_digest_of_the_live_node_is_that_of_the_replay(tmp_path):
    course = Course(45.0, seed=5, size=(120, 160))
    frames = (
        Frame(shot.rgb, shot.stamp_ns, planar_pose(shot.x_m, shot.y_m, shot.yaw_rad))
        for shot in course.drive([(DAY, 0.0, 0.0), (EVENING, 0.3, 0.05)], rate_hz=1.5)
    )
    bag = tmp_path / "bag"
    write_bag(bag, frames)
    offline = replay(bag, tmp_path / "offline")
    against = ("--against", str(tmp_path / "offline" / "decisions.jsonl"))
    # A node that is behind drops images, as it should: then they are played more slowly.
    for rate in ("4", "1"):
        live = replay(bag, tmp_path / f"live{rate}", "--ros", "--rate", rate, *against)
        if live["images"] == offline["images"]:
            break
    assert offline["images"] == live["images"] == course.count(2, rate_hz=1.5)
    assert offline["reasons"]["accepted"] > 0
    assert live["difference"] == ""
    assert live["digest"] == offline["digest"]
    of_node = ledgers(tmp_path / f"live{rate}" / "run" / "answers")
    assert len(of_node) == live["images"] and any(c for *_, c in of_node)
    assert of_node == ledgers(tmp_path / "offline" / "ledger")
