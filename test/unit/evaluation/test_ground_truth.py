"""Which images show one place: by pose, and by the indices of a dataset."""

import math

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.evaluation.ground_truth import TruthByPose, TruthByStamp

S = 10**9


def truth(poses, exclude_recent_s=20.0, **near):
    return TruthByPose(poses.get, poses, exclude_recent_s, **near)


def test_near_is_near_in_place_and_in_direction():
    poses = {
        1: planar_pose(0.0, 0.0, 0.0),
        2: planar_pose(3.9, 0.0, math.radians(39)),
        3: planar_pose(4.1, 0.0, 0.0),
        4: planar_pose(0.0, 0.0, math.radians(41)),
        5: planar_pose(0.0, 0.0, math.radians(-179)),
        6: planar_pose(0.0, 0.0, math.radians(179)),
    }
    judge = truth(poses)
    assert judge.near(1, 2) and not judge.near(1, 3) and not judge.near(1, 4)
    assert judge.near(5, 6)  # across the seam
    assert not judge.near(1, 99)  # of which no pose is known
    assert judge.right(1, 2) and not judge.right(1, 3)


def test_possible_is_what_was_seen_before_the_recent_past():
    poses = {i * S: planar_pose(float(i), 0.0, 0.0) for i in range(30)}
    poses[40 * S] = planar_pose(5.0, 2.0, 0.0)
    poses[41 * S] = planar_pose(5.0, 2.0, math.pi)  # the other way
    poses[42 * S] = planar_pose(100.0, 0.0, 0.0)
    judge = truth(poses)
    assert not any(judge.possible(i * S) for i in range(30))
    assert judge.possible(40 * S)
    assert not judge.possible(41 * S) and not judge.possible(42 * S)
    assert not judge.possible(99 * S)
    assert not truth(poses, 39.0).possible(40 * S)  # all near ones are too recent


def test_every_image_of_a_map_that_was_made_before_counts():
    poses = {5 * S: planar_pose(0.0, 0.0, 0.0), 9 * S: planar_pose(1.0, 0.0, 0.0)}
    judge = TruthByPose(poses.get, [9 * S], None)
    assert judge.possible(5 * S)  # though its stamp is before
    assert not TruthByPose(poses.get, [9 * S], 0.0).possible(5 * S)


def test_cells_do_not_hide_neighbours():
    # On both sides of the borders of cells, negative ones too.
    poses = {i: planar_pose(0.7 * i - 50.0, -0.3 * i + 20.0, 0.0) for i in range(1, 150)}
    judge = TruthByPose(poses.get, poses, None)
    for i in poses:
        others = TruthByPose(poses.get, [j for j in poses if j != i], None)
        assert judge.possible(i)
        assert others.possible(i) == any(judge.near(i, j) for j in poses if j != i)


def test_what_has_no_pose_is_unknown():
    poses = {i * S: planar_pose(i, 0, 0) for i in range(5)}
    judge = TruthByPose(poses.get, range(0, 10 * S, S), None)
    assert judge.possible(7 * S) is None and judge.possible(0) is True
    assert judge.right(0, 7 * S) is None and judge.right(7 * S, 0) is None
    assert judge.right(0, 2 * S) is True and judge.right(0, 5 * S - 1) is None


def test_by_stamp():
    judge = TruthByStamp({10: {1, 4}, 20: set()}, {10})
    assert judge.possible(10) is True and judge.possible(20) is False
    assert judge.right(10, 1) and judge.right(10, 4) and judge.right(10, 2) is False
    assert judge.possible(30) is None and judge.right(30, 1) is None
