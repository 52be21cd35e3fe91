#!/usr/bin/env python3
"""Measures what loop closures are worth to a back end, on a rendered course.

python3 examples/close_the_loop.py --out /tmp/close_the_loop --plot back_end.png

Renders a drive of several laps, makes odometry that drifts, finds loop closures by the node's own
code, and gives odometry and closures to the pose graph. Prints the absolute trajectory error that
`evo_ape` measures, before and after, and with wrong closures among the right ones. Ends with 1
where the robust error does not fall by 5 times.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pose_graph import Closure, PoseGraph, write_tum

from hashvpr_ros.cli.common import machine, open_engine, progress_bar, table
from hashvpr_ros.config import Config
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.evaluation.replay import replay
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.simulation.course import DAY, EVENING, Course
from hashvpr_ros.simulation.odometry import Drift, drifting
from hashvpr_ros.types import Mode, Pose

_WANTED = 5.0  # times by which the error must fall
_NEAR_M = 4.0  # a closure is right where its images lie so near to each other
_TOPIC = "/camera/image"
# The first lap, then these in turn: light, metres to the left, turn. Nobody drives a line twice.
_FIRST_LAP = (DAY, 0.0, 0.0)
_LATER_LAPS = [(EVENING, 0.5, 0.05), (DAY, -0.5, -0.05)]

Trajectory = list[tuple[int, Pose]]


@dataclass(frozen=True)
class Drive:
    """A drive: where the robot was, where odometry has it, and what was recognised."""

    truth: Trajectory
    odometry: Trajectory
    closures: list[Closure]


@dataclass(frozen=True)
class Row:
    """What the pose graph made of the drive, with some closures or none."""

    name: str
    trajectory: Trajectory
    rmse_m: float
    used: int
    rejected: int


def drive(length_m: float, laps: int, seed: int) -> Drive:
    """Render a drive and recognise its places, by `vpr_node`'s code and default parameters."""
    course = Course(length_m, seed)
    laps_of = [_FIRST_LAP, *(_LATER_LAPS[i % len(_LATER_LAPS)] for i in range(laps - 1))]
    truth: Trajectory = []
    odometry: Trajectory = []

    def frames() -> Iterator[Frame]:
        shots, again = itertools.tee(course.drive(laps_of))
        exact = ((shot.x_m, shot.y_m, shot.yaw_rad) for shot in again)
        for shot, drifted in zip(shots, drifting(exact, Drift(seed=seed)), strict=True):
            truth.append((shot.stamp_ns, planar_pose(shot.x_m, shot.y_m, shot.yaw_rad)))
            odometry.append((shot.stamp_ns, planar_pose(*drifted)))
            yield Frame(shot.rgb, *odometry[-1], name=_TOPIC)

    engine = open_engine(None)
    closures = []
    with (
        PlaceMap.open("", engine.info.fingerprint, engine.info.feature_dim) as place_map,
        progress_bar(course.count(laps), "driving") as bar,
    ):
        recognizer = Recognizer(engine, place_map, Config(), mode=Mode.SLAM)
        for decision in replay(frames(), recognizer, place_map, {_TOPIC: "camera"}):
            if decision.accepted:
                best = decision.hypotheses[0]
                closures.append(
                    Closure(
                        decision.stamp_ns,
                        best.keyframe.stamp_ns,
                        best.relative_heading_rad or 0.0,
                        best.probability,
                    )
                )
            bar.update(1)
    engine.close()
    return Drive(truth, odometry, closures)


def wrong_closures(truth: Trajectory, laps: int, count: int) -> list[Closure]:
    """From the middle of the later laps to those places of the first that are furthest away.

    Several of them are spread over the later laps.
    """
    first_lap = truth[: len(truth) // laps]
    wrong = []
    for i in range(count):
        query_ns, query = truth[
            len(first_lap) + (2 * i + 1) * len(first_lap) * (laps - 1) // (2 * count)
        ]
        match_ns, _ = max(
            first_lap, key=lambda item: math.dist(item[1].position_m, query.position_m)
        )
        wrong.append(Closure(query_ns, match_ns))
    return wrong


def evo_ape_m(truth: Path, estimate: Path) -> float:
    """Root mean square of the absolute trajectory error, as evo has it after aligning, in metres.

    The program, not the library: anybody can repeat it.
    """
    program = shutil.which("evo_ape")
    if program is None:
        sys.exit("close_the_loop: needs evo: pip install -r requirements/examples.txt")
    done = subprocess.run(
        [program, "tum", str(truth), str(estimate), "--align"], capture_output=True, text=True
    )
    found = re.search(r"^\s*rmse\s+(\S+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        sys.exit(f"close_the_loop: evo_ape failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


def solve(name: str, given: Drive, closures: list[Closure], out: Path, *, robust: bool) -> Row:
    """Optimise and measure; trajectories are left in a folder."""
    graph = PoseGraph(robust=robust)
    for stamp_ns, pose in given.odometry:
        graph.add_odometry(stamp_ns, pose)
    for closure in closures:
        graph.add_closure(closure)
    used = graph.optimise()
    file = out / f"{name.replace(',', '').replace(' ', '_')}.tum"
    write_tum(file, graph.trajectory())
    error_m = evo_ape_m(out / "truth.tum", file)
    return Row(name, graph.trajectory(), error_m, used.count(True), used.count(False))


def compare(given: Drive, wrong: list[Closure], out: Path) -> list[Row]:
    """Odometry alone, then with closures and with wrong ones too, robust and not."""
    write_tum(out / "truth.tum", given.truth)
    right, both = given.closures, [*given.closures, *wrong]
    more = f"closures and {len(wrong)} wrong"
    return [
        solve("odometry", given, [], out, robust=True),
        solve("closures, robust", given, right, out, robust=True),
        solve("closures, least squares", given, right, out, robust=False),
        solve(f"{more}, robust", given, both, out, robust=True),
        solve(f"{more}, least squares", given, both, out, robust=False),
    ]


def plot(path: Path, truth: Trajectory, rows: list[Row]) -> None:
    """Draw truth, odometry, and what closures made of it, from above."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [rows[0], rows[3], rows[4]]
    figure, all_axes = plt.subplots(1, 3, figsize=(12, 4.2), sharex=True, sharey=True)
    for axes, row, colour in zip(all_axes, shown, ("#d1495b", "#2a9d5c", "#d1495b"), strict=True):
        for trajectory, style in (
            (truth, {"color": "#b9c0c9", "lw": 4.0, "label": "truth"}),
            (row.trajectory, {"color": colour, "lw": 1.2, "label": row.name}),
        ):
            points = np.array([pose.position_m[:2] for _, pose in trajectory])
            axes.plot(points[:, 0], points[:, 1], **style)
        axes.set(xlabel="x (m)", aspect="equal")
        axes.set_title(f"{row.name}\nAPE rmse {row.rmse_m:.2f} m", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("y (m)")
    all_axes[0].legend(loc="center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")


def report(given: Drive, rows: list[Row], laps: int, length_m: float) -> None:
    """Print what was measured."""
    at = dict(given.truth)
    apart_m = [
        math.dist(at[c.query_ns].position_m, at[c.match_ns].position_m) for c in given.closures
    ]
    right = sum(d <= _NEAR_M for d in apart_m)
    print(
        f"{laps} laps of {length_m:.0f} m, {len(given.truth)} images; {len(apart_m)} closures, of "
        f"which {right} join\nimages within {_NEAR_M:g} m of each other; the furthest are "
        f"{max(apart_m, default=0):.1f} m apart"
    )
    cells: list[tuple[str, ...]] = [("", "APE rmse, m", "falls by", "used", "rejected")]
    for row in rows:
        falls = f"{rows[0].rmse_m / row.rmse_m:.1f} times" if row is not rows[0] else ""
        cells.append((row.name, f"{row.rmse_m:.2f}", falls, str(row.used), str(row.rejected)))
    print(table(cells))
    print(f"on {machine()}")


def main() -> int:
    """Drive, recognise, optimise, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=float, default=700.0, help="of a lap, m")
    parser.add_argument("--laps", type=int, default=3, help="at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of course and drift")
    parser.add_argument("--wrong", type=int, default=1, help="closures to inject, at least 1")
    parser.add_argument("--out", type=Path, default=Path("close_the_loop"), help="folder")
    parser.add_argument("--plot", type=Path, help="picture to draw, PNG or SVG")
    arguments = parser.parse_args()
    if arguments.laps < 2 or arguments.wrong < 1:
        parser.error("needs at least 2 laps and 1 wrong closure")
    given = drive(arguments.length, arguments.laps, arguments.seed)
    wrong = wrong_closures(given.truth, arguments.laps, arguments.wrong)
    rows = compare(given, wrong, arguments.out)
    report(given, rows, arguments.laps, arguments.length)
    if arguments.plot:
        plot(arguments.plot, given.truth, rows)
    if all(rows[0].rmse_m >= _WANTED * row.rmse_m for row in (rows[1], rows[3])):
        return 0
    print(f"the error did not fall by {_WANTED:g} times", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
