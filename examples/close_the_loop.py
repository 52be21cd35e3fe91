#!/usr/bin/env python3
"""Measures what loop closures are worth to a back end, on a rendered course.

python3 examples/close_the_loop.py --out /tmp/close_the_loop

Renders a drive of several laps, makes odometry that drifts, writes both as a bag, replays the bag
by the node's own code, and gives odometry and closures to the pose graph. Prints the absolute
trajectory error that evo measures, before and after, and with a wrong closure among the right
ones. Ends with 1 where the error does not fall by 5 times, the wrong closure or not.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from evo.core import metrics, sync
from evo.tools import file_interface
from pose_graph import PoseGraph, write_tum

from hashvpr_ros.cli.common import machine, open_engine, progress_bar, table
from hashvpr_ros.config import Config
from hashvpr_ros.datasets.bag import BagFrames
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.evaluation.replay import replay
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.simulation.course import DAY, EVENING, Course
from hashvpr_ros.types import Mode, Pose

_WANTED = 5.0  # times by which the error must fall
_NEAR_M = 4.0  # a closure is right where its images lie so near to each other
# Each lap in its light, a little to the side and turned, as nobody drives the same line twice.
_LAPS = [(DAY, 0.0, 0.0), (EVENING, 0.5, 0.05), (DAY, -0.5, -0.05)]

Trajectory = list[tuple[int, Pose]]
Closures = list[tuple[int, int]]  # stamps of query and match, ns


@dataclass(frozen=True)
class Wheels:
    """Odometry of wheels and a cheap gyroscope, of which nobody has calibrated either."""

    yaw_bias_radps: float = 0.004
    yaw_noise: float = 0.01  # rad per root of a second
    scale: float = 1.02
    scale_noise: float = 0.05  # of each step


class Odometer:
    """Adds up the motions between true poses, each measured with errors."""

    def __init__(self, wheels: Wheels, seed: int) -> None:
        self._wheels = wheels
        self._rng = np.random.default_rng(seed)
        self._true: tuple[int, float, float, float] | None = None
        self._x_m = self._y_m = self._yaw_rad = 0.0

    def move(self, stamp_ns: int, x_m: float, y_m: float, yaw_rad: float) -> Pose:
        """The pose that odometry believes in when the robot is in truth at another."""
        if self._true is None:
            self._x_m, self._y_m, self._yaw_rad = x_m, y_m, yaw_rad
        else:
            self._add(stamp_ns, x_m, y_m, yaw_rad)
        self._true = stamp_ns, x_m, y_m, yaw_rad
        return planar_pose(self._x_m, self._y_m, self._yaw_rad)

    def _add(self, stamp_ns: int, x_m: float, y_m: float, yaw_rad: float) -> None:
        assert self._true is not None
        last_ns, last_x_m, last_y_m, last_yaw_rad = self._true
        period_s = (stamp_ns - last_ns) / 1e9
        turn = math.remainder(yaw_rad - last_yaw_rad, 2 * math.pi)
        turn += self._wheels.yaw_bias_radps * period_s
        turn += self._rng.normal(0, self._wheels.yaw_noise) * math.sqrt(period_s)
        # The step as the robot sees it, laid on where odometry believes that it looks.
        step = complex(x_m - last_x_m, y_m - last_y_m)
        step *= np.exp(1j * (self._yaw_rad - last_yaw_rad))
        step *= self._wheels.scale + self._rng.normal(0, self._wheels.scale_noise)
        self._x_m += step.real
        self._y_m += step.imag
        self._yaw_rad += turn


def drive(length_m: float, seed: int, bag: Path) -> tuple[Trajectory, Trajectory]:
    """Render the drive into a bag; the true poses of its images, and those of odometry."""
    course = Course(length_m, seed)
    odometer = Odometer(Wheels(), seed)
    truth: Trajectory = []
    believed: Trajectory = []

    def frames() -> Iterator[Frame]:
        with progress_bar(course.count(len(_LAPS)), "rendering") as bar:
            for shot in course.drive(_LAPS):
                at = shot.x_m, shot.y_m, shot.yaw_rad
                pose = odometer.move(shot.stamp_ns, *at)
                truth.append((shot.stamp_ns, planar_pose(*at)))
                believed.append((shot.stamp_ns, pose))
                yield Frame(shot.rgb, shot.stamp_ns, pose)
                bar.update(1)

    write_bag(bag, frames())
    return truth, believed


def find_closures(bag: Path) -> Closures:
    """The loop closures that vpr_node with its default parameters finds in a bag."""
    frames = BagFrames(bag, IMAGE_TOPIC, ODOMETRY_TOPIC)
    engine = open_engine(None)
    closures = []
    info = engine.info
    with (
        PlaceMap.open("", info.fingerprint, info.feature_dim) as place_map,
        progress_bar(len(frames), "recognising") as bar,
    ):
        recognizer = Recognizer(engine, place_map, Config(), mode=Mode.SLAM)
        for decision in replay(frames, recognizer, place_map, {IMAGE_TOPIC: "camera"}):
            if decision.accepted:
                closures.append((decision.stamp_ns, decision.hypotheses[0].keyframe.stamp_ns))
            bar.update(1)
    engine.close()
    return closures


def wrong_closure(truth: Trajectory) -> tuple[int, int]:
    """From the middle of the second lap to that place of the first which is furthest from it."""
    per_lap = len(truth) // len(_LAPS)
    query_ns, query = truth[per_lap * 3 // 2]
    match_ns, _ = max(
        truth[:per_lap], key=lambda item: math.dist(item[1].position_m, query.position_m)
    )
    return query_ns, match_ns


def ape_rmse_m(truth: Path, estimate: Path) -> float:
    """As `evo_ape tum TRUTH ESTIMATE --align` has it: after Umeyama's alignment, in metres."""
    reference, estimated = sync.associate_trajectories(
        file_interface.read_tum_trajectory_file(truth),
        file_interface.read_tum_trajectory_file(estimate),
    )
    estimated.align(reference)
    error = metrics.APE(metrics.PoseRelation.translation_part)
    error.process_data((reference, estimated))
    return float(error.get_statistic(metrics.StatisticsType.rmse))


def report(out: Path, truth: Trajectory, odometry: Trajectory, closures: Closures) -> bool:
    """Optimise, measure and print; whether the error fell as is wanted."""
    write_tum(out / "truth.tum", truth)
    at = dict(truth)
    apart_m = [math.dist(at[q].position_m, at[m].position_m) for q, m in closures]
    right = sum(d <= _NEAR_M for d in apart_m)
    print(f"{len(truth)} images, {len(closures)} closures, of which {right} join images within")
    print(f"{_NEAR_M:g} m of each other; the furthest are {max(apart_m, default=0):.1f} m apart")
    wrong = [*closures, wrong_closure(truth)]
    rows = [("", "APE rmse, m", "better by", "used", "rejected")]
    before_m, improvements = 0.0, []
    for name, given, robust in (
        ("odometry", [], True),
        ("closures, robust", closures, True),
        ("closures, least squares", closures, False),
        ("and a wrong one, robust", wrong, True),
        ("and a wrong one, least squares", wrong, False),
    ):
        graph = PoseGraph(robust=robust)
        for stamp_ns, pose in odometry:
            graph.add_odometry(stamp_ns, pose)
        for query_ns, match_ns in given:
            graph.add_closure(query_ns, match_ns)
        result = graph.optimise()
        file = out / f"{name.replace(',', '').replace(' ', '_')}.tum"
        write_tum(file, graph.trajectory())
        error_m = ape_rmse_m(out / "truth.tum", file)
        before_m = before_m or error_m
        if given and robust:
            improvements.append(before_m / error_m)
        better = f"{before_m / error_m:.1f}"
        rows.append((name, f"{error_m:.2f}", better, str(result.used), str(result.rejected)))
    print(table(rows))
    print(f"on {machine()}")
    return min(improvements) >= _WANTED


def main() -> int:
    """Drive, recognise, optimise, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=float, default=300.0, help="of the course, m")
    parser.add_argument("--seed", type=int, default=0, help="of course and drift")
    parser.add_argument("--out", type=Path, default=Path("close_the_loop"), help="folder")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "bag" / "metadata.yaml").is_file():  # of an earlier run, and nothing that is no bag
        shutil.rmtree(out / "bag")
    truth, odometry = drive(arguments.length, arguments.seed, out / "bag")
    closures = find_closures(out / "bag")
    if report(out, truth, odometry, closures):
        return 0
    print(f"the error did not fall by {_WANTED:g} times", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
