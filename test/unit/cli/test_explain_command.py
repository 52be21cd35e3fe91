"""`hashvpr explain`: from a replayed bag's ledger to words and a picture."""

import shutil

import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros.datasets.bag_writer import ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.simulation.course import DAY, Course

IMAGES = 44


@pytest.fixture
def replayed(run, tmp_path):
    """The folder of a replay with ledgers of two short laps, and its bag."""
    folder = tmp_path
    course = Course(45.0, seed=3, size=(120, 160))
    frames = (
        Frame(shot.rgb, shot.stamp_ns, planar_pose(shot.x_m, shot.y_m, shot.yaw_rad))
        for shot in course.drive([(DAY, 0.0, 0.0), (DAY, 0.2, 0.0)], rate_hz=1.0)
    )
    write_bag(folder / "bag", frames)
    arguments = ("replay", folder / "bag", "--pose-topic", ODOMETRY_TOPIC, "--out", folder / "out")
    settings = ("publish.ledger=true", "matching.exclude_recent_s=10", "matching.max_drift=0")
    for _ in range(2):  # a second run replaces the ledgers of the first
        well(run(*arguments, *(a for s in settings for a in ("--set", s))))
    return folder


def test_from_replay_to_words_and_picture(run, replayed, tmp_path):
    ledger = replayed / "out" / "ledger"
    _count(run, ledger, tmp_path)
    _explain(run, replayed, tmp_path)
    _refuse(run, replayed, tmp_path)


def _count(run, ledger, tmp_path):
    out = well(run("explain", ledger, "--json", tmp_path / "r.json"))
    reasons = strict_json(tmp_path / "r.json")["reasons"]
    assert sum(reasons.values()) == IMAGES and reasons["map_empty"] == 1
    assert "map empty" in out and "--stamp" in out


def _explain(run, replayed, tmp_path):
    plot = tmp_path / "pair.png"
    out = well(
        run(
            *("explain", replayed / "out" / "ledger", "--stamp", "135", "--place", "1"),
            *("--place", "40", "--map", replayed / "out" / "map.vprmap"),
            *("--plot", plot, "--json", tmp_path / "r.json"),
        )
    )
    result = strict_json(tmp_path / "r.json")
    assert result["stamp_ns"] == 135 * 10**9 and result["hypotheses"]
    assert "candidates were compared" in out and f"best: keyframe {result['hypotheses'][0]}" in out
    assert "keyframe 1 (" in out and "keyframe 40: was not compared" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    # Without the map the pictures come from the bag, if there is one.
    ledger = ("explain", replayed / "out" / "ledger", "--stamp", "135", "--plot")
    well(run(*ledger, tmp_path / "a.svg", "--images", replayed / "bag"))
    well(run(*ledger, tmp_path / "b.svg"))
    assert "no picture" in (tmp_path / "b.svg").read_text()
    assert "no picture" not in (tmp_path / "a.svg").read_text()


def _refuse(run, replayed, tmp_path):
    refused(run("explain", replayed / "bag", "--stamp", "100"), "publish.ledger")
    ledger = replayed / "out" / "ledger"
    refused(run("explain", ledger, "--stamp", "7"), "no image within")
    refused(run("explain", ledger, "--camera", "rear"), "of camera rear")
    refused(run("explain", tmp_path / "none"), "no such bag")
    damaged = tmp_path / "damaged"
    shutil.copytree(ledger, damaged)
    (damaged / "ledger.db3").write_bytes(b"\0" * 4096)
    refused(run("explain", damaged), "not a readable bag")
