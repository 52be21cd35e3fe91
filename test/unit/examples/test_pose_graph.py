"""The example's pose graph: drift falls, wrong closures do not count, bad input is refused."""

import importlib.util
import math

import numpy as np
import pytest

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.simulation.odometry import Drift, drifting
from hashvpr_ros.types import Pose

THERE = importlib.util.find_spec("gtsam")
# A mark, not importorskip: see test_packaging.py.
pytestmark = pytest.mark.skipif(
    not THERE, reason="needs GTSAM: pip install -r requirements/examples.txt"
)
if THERE:
    from pose_graph import Closure, Noise, PoseGraph, write_tum

PER_LAP, RADIUS_M = 100, 16.0
# Heading errs by 0.2 rad a lap, as a root of the way 0.02 rad after a metre.
DRIFT, NOISE = Drift(scale=1.02, yaw_bias_rad_per_m=0.002), Noise(0.02, 0.2)


def stamp(i):
    return (1000 + i) * 10**9


def circle(laps):
    """Exact poses, some 1 m apart."""
    for i in range(PER_LAP * laps):
        angle = 2 * math.pi * i / PER_LAP
        yield RADIUS_M * math.cos(angle), RADIUS_M * math.sin(angle), angle + math.pi / 2


def fill(graph, poses, first=0):
    for i, pose in enumerate(poses, first):
        graph.add_odometry(stamp(i), planar_pose(*pose))


def lap_later(i):
    return Closure(stamp(i), stamp(i - PER_LAP))


def error_m(graph, truth):
    found = np.array([pose.position_m[:2] for _, pose in graph.trajectory()])
    wanted = np.array([pose[:2] for pose in truth])
    assert len(found) == len(wanted)
    return math.sqrt(((found - wanted) ** 2).sum(1).mean())


def test_closures_take_the_drift_out():
    truth = list(circle(3))
    graph = PoseGraph(NOISE)
    fill(graph, drifting(truth, DRIFT))
    before_m = error_m(graph, truth)
    assert before_m > 3.0
    for i in range(PER_LAP, 3 * PER_LAP):
        graph.add_closure(lap_later(i))
    assert graph.optimise() == [True] * (2 * PER_LAP)
    assert error_m(graph, truth) < before_m / 5


@pytest.mark.parametrize("wrong", [1, 20])
def test_wrong_closures_are_rejected_and_least_squares_believes_them(wrong):
    truth = list(circle(2))
    errors_m = {}
    for robust in (True, False):
        graph = PoseGraph(NOISE, robust=robust)
        fill(graph, drifting(truth, DRIFT))
        for i in range(PER_LAP, 2 * PER_LAP):
            graph.add_closure(lap_later(i))
        graph.optimise()
        right_m = error_m(graph, truth)
        for k in range(wrong):  # from one place to the others all around
            graph.add_closure(Closure(stamp(150 + k), stamp((90 + 3 * k) % PER_LAP)))
        used = graph.optimise()
        assert used == [True] * PER_LAP + [not robust] * wrong
        errors_m[robust] = error_m(graph, truth)
        assert robust == (errors_m[robust] < right_m + 0.1)
    assert errors_m[False] > 2 * errors_m[True]


def test_a_closure_waits_for_its_odometry():
    truth = list(circle(2))
    graph = PoseGraph(NOISE)
    fill(graph, truth[:PER_LAP])
    graph.add_closure(lap_later(PER_LAP + 5))
    graph.add_closure(Closure(stamp(50), stamp(-3)))  # before odometry began
    graph.add_closure(Closure(stamp(50), stamp(50)))  # of one node
    assert not graph.is_behind
    assert graph.optimise() == [None, None, None]
    fill(graph, truth[PER_LAP:], PER_LAP)
    assert graph.is_behind
    assert graph.optimise() == [True, None, None]
    assert not graph.is_behind


def test_a_standing_robot_is_at_its_last_node():
    graph = PoseGraph(NOISE)
    fill(graph, [*circle(1), next(circle(1))])
    at = next(circle(1))
    graph.add_closure(Closure(stamp(PER_LAP) + 500_000_000, stamp(0)))
    assert not graph.is_behind
    assert not graph.add_odometry(stamp(PER_LAP + 1), planar_pose(*at))
    assert graph.is_behind
    assert graph.optimise() == [True]


def there_and_back(count=40):
    """Along x and, turned round, back over the same places."""
    yield from ((float(i), 0.0, 0.0) for i in range(count))
    yield from ((float(count - 1 - i), 0.0, math.pi) for i in range(count))


@pytest.mark.parametrize("heading_rad, used", [(math.pi, True), (0.0, False)])
def test_a_place_seen_in_reverse_counts_by_its_relative_heading(heading_rad, used):
    graph = PoseGraph(NOISE)
    fill(graph, there_and_back())
    for i in range(45, 75):
        graph.add_closure(Closure(stamp(i), stamp(79 - i), heading_rad))
    assert graph.optimise() == [used] * 30
    assert error_m(graph, there_and_back()) < 0.5


def test_of_closures_of_the_same_nodes_the_likeliest_counts():
    graph = PoseGraph(NOISE)
    fill(graph, there_and_back())
    for i in range(45, 75):
        graph.add_closure(Closure(stamp(i), stamp(79 - i), math.pi, probability=0.995))
        graph.add_closure(Closure(stamp(i), stamp(79 - i), 0.0, probability=0.991))
    assert graph.optimise() == [True] * 60


def test_odometry_that_begins_anew_is_put_where_closures_say():
    truth = list(circle(3))
    graph = PoseGraph(NOISE)
    fill(graph, drifting(truth[:150], DRIFT))
    # Somebody carried the robot on, and its odometry began elsewhere.
    x, y, yaw = truth[160]
    anew = []
    for tx, ty, tyaw in truth[160:]:
        way = complex(tx - x, ty - y) * complex(math.cos(yaw), -math.sin(yaw))
        anew.append((2000.0 + way.real, way.imag, tyaw - yaw))
    assert graph.add_odometry(stamp(160), planar_pose(*anew[0]), jumped=True)
    fill(graph, anew[1:], 161)
    there = truth[:150] + truth[160:]
    before_m = error_m(graph, there)
    assert before_m > 4.0
    for i in range(PER_LAP, 3 * PER_LAP):
        if not 150 <= i < 160 and not 150 <= i - PER_LAP < 160:
            graph.add_closure(lap_later(i))
    assert set(graph.optimise()) == {True}
    assert error_m(graph, there) < before_m / 5


@pytest.mark.parametrize("noise, used", [(Noise(), False), (Noise(0.3, 3.0), True)])
def test_a_lone_wrong_closure_is_rejected_where_odometry_is_known_to_be_better(noise, used):
    graph = PoseGraph(noise)
    fill(graph, circle(2))
    graph.add_closure(Closure(stamp(150), stamp(0)))
    assert graph.optimise() == [used]


def test_what_comes_after_optimising_goes_on_from_there():
    truth = list(circle(2))
    drifted = list(drifting(truth, DRIFT))
    graph = PoseGraph(NOISE)
    fill(graph, drifted[:-1])
    for i in range(PER_LAP, 2 * PER_LAP - 1):
        graph.add_closure(lap_later(i))
    graph.optimise()
    fill(graph, drifted[-1:], 2 * PER_LAP - 1)
    (_, last), (_, new) = graph.trajectory()[-2:]
    step_m = math.dist(drifted[-2][:2], drifted[-1][:2])
    assert math.dist(last.position_m, new.position_m) == pytest.approx(step_m)
    assert math.dist(new.position_m[:2], truth[-1][:2]) < math.dist(drifted[-1][:2], truth[-1][:2])


def test_nodes_are_made_by_way_and_by_turn():
    graph = PoseGraph(NOISE)
    made = [
        graph.add_odometry(stamp(i), planar_pose(x, 0.0, yaw))
        for i, (x, yaw) in enumerate([(0, 0), (0.3, 0), (0.6, 0), (0.6, 0.3), (0.6, 0.4)])
    ]
    assert made == [True, False, True, False, True]


@pytest.mark.parametrize(
    "at, pose",
    [(5, planar_pose(1, 0, 0)), (4, planar_pose(1, 0, 0)), (6, Pose((float("nan"), 0.0, 0.0)))],
)
def test_odometry_that_is_not_later_or_invalid_is_refused(at, pose):
    graph = PoseGraph(NOISE)
    graph.add_odometry(stamp(5), planar_pose(0, 0, 0))
    with pytest.raises(ValueError, match="not later, or invalid"):
        graph.add_odometry(stamp(at), pose)
    assert len(graph.trajectory()) == 1


def test_an_empty_graph_is_no_error():
    graph = PoseGraph(NOISE)
    graph.add_closure(Closure(1, 0))
    assert graph.optimise() == [None]
    assert graph.trajectory() == []


def test_trajectories_are_written_as_the_format_of_tum(tmp_path):
    graph = PoseGraph(NOISE)
    fill(graph, circle(1))
    write_tum(tmp_path / "a" / "t.tum", graph.trajectory())
    read = read_tum(tmp_path / "a" / "t.tum")
    assert [s for s, _ in read] == [s for s, _ in graph.trajectory()]
    for (_, a), (_, b) in zip(read, graph.trajectory(), strict=True):
        assert a.position_m == pytest.approx(b.position_m, abs=1e-6)
        assert a.orientation == pytest.approx(b.orientation, abs=1e-6)
