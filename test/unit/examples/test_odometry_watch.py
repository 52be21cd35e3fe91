"""Odometry as it comes: late, lost, invalid, begun anew."""

import pytest
from odometry_watch import OdometryWatch, Seen

from hashvpr_ros.types import Pose

NAN = float("nan")


def see(watch, *messages):
    """What the watch makes of messages at (second, x)."""
    return [watch.see(round(t * 1e9), Pose((x, 0.0, 0.0))).name for t, x in messages]


@pytest.fixture
def watch():
    """One that has seen a robot at x = 10 m after 100 s."""
    watch = OdometryWatch()
    assert see(watch, (99.0, 9.0), (100.0, 10.0)) == ["NEXT", "NEXT"]
    return watch


@pytest.mark.parametrize(
    "pose",
    [
        Pose((NAN, 0.0, 0.0)),
        Pose((float("inf"), 0.0, 0.0)),
        Pose((1e300, 0.0, 0.0)),
        Pose((10.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
        Pose((10.0, 0.0, 0.0), (0.0, 0.0, NAN, 1.0)),
    ],
)
def test_a_pose_of_nowhere_is_passed_over_however_often_it_comes(watch, pose):
    for i in range(3):
        assert watch.see(101_000_000_000 + i, pose) is Seen.PASSED_OVER
    assert see(watch, (101.0, 11.0)) == ["NEXT"]


@pytest.mark.parametrize("stray", [(4e9, 10.0), (-5.0, 10.0), (0.0, 0.0), (100.1, 500.0)])
def test_a_single_stray_changes_nothing(watch, stray):
    seen = see(watch, stray, (100.2, 10.0), stray, (100.4, 10.0))
    assert seen == ["PASSED_OVER", "NEXT", "PASSED_OVER", "NEXT"]


def test_strays_that_do_not_follow_one_another_change_nothing(watch):
    strays = [(4e9, 10.0), (-5.0, 10.0), (100.1, 500.0), (100.15, 900.0)]
    assert see(watch, *strays, (100.2, 10.0)) == ["PASSED_OVER"] * 4 + ["NEXT"]


def test_late_ones_are_passed_over(watch):
    late = [(100.0, 10.0), (99.9, 9.9), (99.95, 9.95)]
    assert see(watch, *late, (100.1, 10.1)) == ["PASSED_OVER"] * 3 + ["NEXT"]


def test_a_jump_counts_once_the_next_one_confirms_it(watch):
    seen = see(watch, (100.1, 500.0), (100.2, 500.1), (100.3, 500.2))
    assert seen == ["PASSED_OVER", "JUMPED", "NEXT"]


def test_a_clock_that_steps_back_begins_anew(watch):
    seen = see(watch, (5.0, 10.0), (5.1, 10.0), (5.2, 10.0))
    assert seen == ["PASSED_OVER", "RESTARTED", "NEXT"]


def test_a_long_silence_is_no_jump_where_the_robot_can_have_got_there(watch):
    assert see(watch, (1000.0, 40.0), (1000.1, 40.0)) == ["PASSED_OVER", "NEXT"]
    assert see(watch, (1011.0, 5000.0), (1011.1, 5000.0)) == ["PASSED_OVER", "JUMPED"]


def test_a_first_message_of_nowhere_is_got_over():
    assert see(OdometryWatch(), (4e9, 0.0), (1.0, 0.0), (1.1, 0.0), (1.2, 0.0)) == [
        "NEXT",
        "PASSED_OVER",
        "RESTARTED",
        "NEXT",
    ]
