"""Poses by stamp: between two, beside one, far from all; and waiting for those that come."""

import math
import threading
import time

import pytest

from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.types import Pose

S = 10**9


def track(*poses, keep=0):
    made = PoseTrack(keep)
    for second, x in poses:
        made.add(round(second * S), Pose((x, 0.0, 0.0)))
    return made


def x_at(made, second, max_age_s=1.0, wait_s=0.0):
    pose = made.at(round(second * S), max_age_s, wait_s)
    return None if pose is None else pose.position_m[0]


def test_between_two_it_is_interpolated_and_at_one_it_is_that_one():
    made = track((1.0, 0.0), (2.0, 10.0))
    assert x_at(made, 1.25) == pytest.approx(2.5)
    third = Pose((0.1, 0.2, 0.3), (0.0, 0.0, math.sin(0.3), math.cos(0.3)))
    made.add(3 * S, third)
    exact = made.at(3 * S, 1.0)
    assert exact.position_m == third.position_m
    assert exact.orientation == pytest.approx(third.orientation, abs=1e-15)


def test_beside_one_it_is_the_nearest_and_far_from_all_there_is_none():
    made = track((1.0, 0.0), (5.0, 10.0))
    assert x_at(made, 1.9) == 0.0 and x_at(made, 4.1) == 10.0
    assert x_at(made, 3.0) is None and x_at(made, 9.0) is None and x_at(track(), 1.0) is None


def test_orientations_are_made_unit_and_what_is_no_pose_is_counted():
    made = PoseTrack()
    made.add(S, Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 4.0)))
    made.add(2 * S, Pose((math.nan, 0.0, 0.0)))
    assert made.at(S, 0.0).orientation == (0.0, 0.0, 0.0, 1.0)
    assert made.invalid == 1 and made.at(2 * S, 0.0) is None


def test_the_same_turn_on_the_other_side_of_the_sphere():
    made = PoseTrack()
    made.add(0, Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    made.add(2 * S, Pose((0.0, 0.0, 0.0), (0.0, 0.0, -0.0, -1.0)))
    assert abs(made.at(S, 5.0).orientation[3]) == pytest.approx(1.0)


def test_only_the_newest_are_kept_and_a_jump_back_starts_anew():
    made = track(*((i, float(i)) for i in range(100)), keep=10)
    assert x_at(made, 95.0) == 95.0 and x_at(made, 10.0) is None
    made.add(5 * S, Pose((7.0, 0.0, 0.0)))
    assert x_at(made, 5.0) == 7.0 and x_at(made, 95.0) is None


def test_a_pose_that_comes_while_an_image_waits_is_used():
    made = track((1.0, 0.0))
    later = threading.Timer(0.05, lambda: made.add(2 * S, Pose((10.0, 0.0, 0.0))))
    later.start()
    assert x_at(made, 1.5, wait_s=30.0) == pytest.approx(5.0)
    later.join()


def test_nobody_waits_for_what_is_there_or_twice_in_vain():
    made = track((1.0, 0.0), (2.0, 10.0))
    started = time.monotonic()
    assert x_at(made, 2.0, wait_s=30.0) == 10.0
    assert x_at(made, 2.5, wait_s=0.1) == 10.0  # in vain
    assert x_at(made, 2.6, wait_s=30.0) == 10.0
    assert time.monotonic() - started < 15.0
    made.add(round(2.7 * S), Pose((11.0, 0.0, 0.0)))  # it is worth waiting again
    later = threading.Timer(0.05, lambda: made.add(3 * S, Pose((14.0, 0.0, 0.0))))
    later.start()
    assert x_at(made, 2.9, wait_s=30.0) == pytest.approx(13.0)
    later.join()
