"""What odometry forbids, before and after a closure; and what is too recent."""

import math

import numpy as np
import pytest

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.matching.odometer import Odometer
from hashvpr_ros.types import Pose

S = 10**9


def drive(odometer, poses, first_id=1, first_s=0, mark=True):
    """A keyframe a second at each pose; returns the ids."""
    ids = []
    for i, pose in enumerate(poses):
        odometer.move(pose)
        if mark:
            odometer.mark(first_id + i, (first_s + i) * S)
        ids.append(first_id + i)
    return np.array(ids)


def straight(count, start=0.0, y=0.0):
    return [planar_pose(start + i, y, 0.0) for i in range(count)]


def test_what_lies_further_off_than_odometry_errs_is_forbidden():
    odometer = Odometer(0.1)
    ids = drive(odometer, straight(200))
    possible = odometer.possible(ids)
    # At 199 m; a keyframe of x m ago may be 10 m + 10 % of x off, and is x off.
    for x in (0, 5, 11, 12, 50, 199):
        assert possible[199 - x] == (x <= 10 + 0.1 * x)
    assert not odometer.possible(np.array([1]))[0]
    assert odometer.knows(1) and not odometer.knows(500)
    assert odometer.possible(np.array([500, 7_000])).all()  # of another session


def test_a_share_of_zero_forbids_nothing():
    odometer = Odometer(0.0)
    ids = drive(odometer, straight(200))
    assert odometer.possible(ids).all() and not odometer.knows(1)


def test_without_poses_nothing_is_forbidden():
    odometer = Odometer(0.2)
    ids = drive(odometer, [None] * 50)
    assert odometer.possible(ids).all() and not odometer.knows(1)
    assert odometer.move(None) is None


def circle(laps, length_m=400.0, drift_rad_per_m=0.0, per_lap=200):
    """Poses of laps as odometry with a biased gyro has them."""
    x, y, yaw = 0.0, 0.0, 0.0
    step = length_m / per_lap
    for _ in range(laps * per_lap):
        yield planar_pose(x, y, yaw)
        x += step * math.cos(yaw)
        y += step * math.sin(yaw)
        yaw += 2 * math.pi / per_lap + drift_rad_per_m * step


def test_after_laps_of_drift_a_closure_makes_odometry_sharp_again():
    poses = list(circle(5, drift_rad_per_m=0.0004))
    # Where the first lap ends the drift is some 30 m, and 200 m from there nothing is forbidden
    # after four laps.
    blind, sharp = Odometer(0.2), Odometer(0.2)
    for i, pose in enumerate(poses):
        for odometer in (blind, sharp):
            odometer.move(pose)
        if i >= 200 and i % 10 == 0:
            match = i % 200 + 1
            assert sharp.possible(np.array([match]))[0], i
            sharp.close(i * S, match)
        for odometer in (blind, sharp):
            odometer.mark(i + 1, i * S)
    here = len(poses) - 1  # the end of a lap
    same = np.array([200, 400, 600, 800])
    opposite = np.array([100, 300, 500, 700])
    assert sharp.possible(same).all()
    assert not sharp.possible(opposite).any()
    assert blind.possible(opposite)[:2].all()
    assert here == 999


def test_poses_turned_against_one_another_are_still_one_place():
    # The second pass by odometry that has turned by 90 degrees and shifted by 30 m.
    odometer = Odometer(0.05)
    first = straight(100)
    ids = drive(odometer, first)
    for i in range(20):  # on the way back to the start, somewhere
        odometer.move(planar_pose(100.0, 15.0 * i, math.pi / 2))
    second = [planar_pose(95.0 + 1.0, 285.0 + 0.5 * i, math.pi / 2) for i in range(60)]
    odometer.move(second[0])
    odometer.close(0, 1)
    for pose in second:
        odometer.move(pose)
    # 29.5 m after the closure at keyframe 1: keyframe 30 is there, keyframe 90 is not, though both
    # are far by raw odometry's own frame.
    anchored = [
        np.linalg.norm(np.array(first[i].position_m) - np.array([29.5, 0.0, 0.0]))
        for i in (29, 89)
    ]
    assert anchored[0] < 1.0 < anchored[1]
    assert not odometer.possible(ids[[89]])[0]


def test_odometry_that_was_restarted_says_nothing_of_before():
    odometer = Odometer(0.1)
    drive(odometer, straight(100))
    assert not odometer.possible(np.array([1]))[0]
    assert odometer.move(planar_pose(0.0, 0.0, 0.0)) is None  # 99 m in one step
    assert odometer.possible(np.array([1, 50, 100])).all() and not odometer.knows(1)
    odometer.close(0, 1)
    drive(odometer, straight(60), first_id=101)
    assert not odometer.possible(np.array([101]))[0]
    other = Pose((59.0, 0.0, 0.0), frame_id="map")
    assert odometer.move(other) is None and odometer.move(other) is None  # of another frame
    assert odometer.possible(np.array([101]))[0] and not odometer.knows(101)


def test_a_stray_pose_costs_its_image_alone():
    odometer, unspoiled = Odometer(0.1), Odometer(0.1)
    drive(unspoiled, straight(102))
    drive(odometer, straight(100))
    assert odometer.move(planar_pose(1e6, 0.0, 0.0)) is None
    assert not odometer.has_poses and odometer.possible(np.array([1]))[0]
    odometer.mark(101, 100 * S)
    odometer.close(100 * S, 1)  # nothing is anchored there
    assert odometer.move(planar_pose(101.0, 0.0, 0.0))[0] == pytest.approx(2.0)
    odometer.mark(102, 101 * S)
    ids = np.arange(1, 101)
    assert (odometer.possible(ids) == unspoiled.possible(ids)).all()
    assert odometer.knows(100) and not odometer.knows(101) and odometer.knows(102)
    assert odometer.travelled_m == unspoiled.travelled_m
    # As does one that comes first, and strays at several places in turn.
    drive(odometer, [planar_pose(x, 0.0, 0.0) for x in (-5e5, 3e5, 1e300)], first_id=103)
    assert odometer.move(planar_pose(102.0, 0.0, 0.0))[0] == pytest.approx(1.0)


def test_odometry_that_stops_vouches_for_nothing():
    odometer = Odometer(0.1)
    ids = drive(odometer, straight(100))
    assert odometer.move(None) is None
    assert odometer.possible(ids).all() and not odometer.knows(90)
    assert not odometer.here(ids).any() and not odometer.has_poses
    # It counts again as soon as it comes back.
    odometer.move(planar_pose(100.0, 0.0, 0.0))
    assert not odometer.possible(ids)[0] and odometer.knows(90) and odometer.here(ids)[-1]


def test_the_motion_between_images():
    odometer = Odometer(0.1)
    assert odometer.move(planar_pose(0.0, 0.0, 0.0)) is None
    metres, radians = odometer.move(planar_pose(3.0, 4.0, math.pi / 2))
    assert metres == pytest.approx(5.0) and radians == pytest.approx(math.pi / 2)
    assert odometer.move(None) is None
    metres, radians = odometer.move(Pose((3.0, 4.0, 1.0), (0.0, 0.0, -2.0, -2.0), "odom"))
    assert metres == pytest.approx(1.0) and radians == pytest.approx(0.0, abs=1e-6)
    assert odometer.travelled_m == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("recent", "newest"),
    [
        ((0.0, 0.0, 0), 99),
        ((10.5, 0.0, 0), 88),  # by time: 99 s less 10.5 s
        ((0.0, 20.0, 0), 79),  # by way: what was made less than 20 m ago
        ((0.0, 0.0, 30), 69),
        ((10.5, 20.0, 30), 69),
        ((0.0, 0.0, 1000), -1),
        ((0.0, 1e6, 0), -1),
    ],
)
def test_what_is_too_recent(recent, newest):
    odometer = Odometer(0.1)
    drive(odometer, straight(100))
    allowed_ns = odometer.newest_allowed_ns(99 * S, *recent)
    assert max((i for i in range(100) if i * S <= allowed_ns), default=-1) == newest


def test_without_keyframes_only_time_counts():
    assert Odometer(0.1).newest_allowed_ns(50 * S, 20.0, 5.0, 5) == 30 * S


def test_how_far_apart_keyframes_are():
    odometer = Odometer(0.1)
    drive(odometer, straight(19))
    assert odometer.spacing_m() is None  # too few
    drive(odometer, [planar_pose(19.0 + 3.0 * i, 0.0, 0.0) for i in range(1200)], first_id=20)
    assert odometer.spacing_m() == pytest.approx(3.0)  # of late
    still = Odometer(0.1)
    drive(still, [None] * 50)
    assert still.spacing_m() is None and not still.has_poses


@pytest.mark.parametrize("wrong_at", [250, 430, 510])
def test_a_closure_that_is_forgotten_leaves_nothing_behind(wrong_at):
    """Also not in what was anchored after it, directly or by closures with what it had moved."""
    poses = list(circle(4, drift_rad_per_m=0.0004))
    never, forgot = Odometer(0.1), Odometer(0.1)
    for i, pose in enumerate(poses):
        for odometer in (never, forgot):
            odometer.move(pose)
        if i == wrong_at:
            forgot.close(i * S, 60)
        elif i >= 220 and i % 40 == 0:
            for odometer in (never, forgot):
                odometer.close(i * S, i - 199)
        for odometer in (never, forgot):
            odometer.mark(i + 1, i * S)
    ids = np.arange(1, len(poses) + 1)
    assert np.abs(never.positions(ids) - forgot.positions(ids)).max() > 5.0
    forgot.forget(wrong_at * S, 61)  # another match than that which was made
    assert np.abs(never.positions(ids) - forgot.positions(ids)).max() > 5.0
    forgot.forget(wrong_at * S, 60)
    np.testing.assert_allclose(never.positions(ids), forgot.positions(ids), atol=1e-9)
    assert (never.possible(ids) == forgot.possible(ids)).all()
    for odometer in (never, forgot):  # and the future is the same
        odometer.move(planar_pose(1.0, 2.0, 0.5))
        odometer.mark(len(poses) + 1, len(poses) * S)
    np.testing.assert_allclose(never._real[:801], forgot._real[:801], atol=1e-9)


def test_where_keyframes_were_made_the_robot_is_again():
    odometer = Odometer(0.1)
    ids = drive(odometer, straight(50))
    assert odometer.here(ids).tolist() == [49 - i <= 6 for i in range(50)]
    assert not odometer.here(np.array([0, 51, 1000])).any()
    assert not Odometer(0.0).here(ids).any()
