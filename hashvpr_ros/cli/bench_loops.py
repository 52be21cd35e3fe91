"""`hashvpr bench loops`: loop closures on a long course of look-alike stretches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    FiniteRange,
    engine_option,
    json_option,
    machine,
    open_engine,
    progress_bar,
    table,
    ticker,
    write_json,
)
from hashvpr_ros.cli.settings import change_of, set_option
from hashvpr_ros.errors import ConfigError

_WAYS = {
    "none": "single images",
    "sequence": "sequence",
    "filter": "filter",
    "both": "sequence and filter",
}


@click.command(name="loops")
@click.option(
    "--length", type=FiniteRange(40), default=2000.0, show_default=True, help="m of one lap."
)
@click.option("--laps", type=click.IntRange(2), default=21, show_default=True)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Stretches of a lap that look the same.",
)
@click.option(
    "--step", type=FiniteRange(0.1), default=2.0, show_default=True, help="m between images."
)
@click.option(
    "--seed", type=int, default=31, show_default=True, help="Of course, light and drift."
)
@set_option("matching.max_drift=0.1")
@engine_option
@json_option
def command(
    length: float,
    laps: int,
    repeats: int,
    step: float,
    seed: int,
    changes: tuple[str, ...],
    engine_path: Path | None,
    json_path: Path | None,
) -> None:
    """Drive laps of a rendered course, each in another light, with drifting odometry.

    Shows for each way of matching over time how many revisits are closed and how many closures are
    wrong, with odometry and without. Nothing is set by hand.
    """
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.evaluation.loops import close_loops, describe_drive, summary

    flat = dict(change_of(c) for c in changes)
    if "matching.temporal" in flat:
        raise ConfigError("all ways of matching.temporal are compared here: leave it out of --set")
    configs = {temporal: from_flat({"matching.temporal": temporal, **flat}) for temporal in _WAYS}
    engine = open_engine(engine_path)
    speed_mps = 2.0
    count = laps * int(length / step)
    with progress_bar(count, "rendering and describing") as bar:
        drive = describe_drive(
            _shots(length, laps, repeats, step / speed_mps, seed), engine, ticker(bar)
        )
    off_m = np.hypot(
        *(np.array(drive.exact[-1].position_m) - np.array(drive.odometry[-1].position_m))[:2]
    )
    click.echo(
        f"{len(drive.codes)} images, {laps} laps of {length:.0f} m in {repeats} stretches that "
        f"look the same; odometry ends {off_m:.0f} m off"
    )
    rows: list[tuple[str, ...]] = [
        ("", "R@1", "closed", "wrong", "precision", "ms", "p95"),
    ]
    result: dict[str, Any] = {}
    for odometry in (True, False):
        for temporal, label in _WAYS.items():
            with progress_bar(count, label) as bar:
                done = summary(
                    *close_loops(drive, configs[temporal], odometry=odometry, progress=ticker(bar))
                )
            key = f"{temporal}_{'odometry' if odometry else 'images'}"
            result[key] = done
            rows.append(
                (
                    f"{label}, {'with odometry' if odometry else 'images alone'}",
                    f"{done['recall_at_1']:.1f} %",
                    f"{done['closed']:.1f} %",
                    f"{done['wrong']} of {done['accepted']}",
                    "none" if done["precision"] is None else f"{done['precision']:.1f} %",
                    f"{done['ms']['median']:.2f}",
                    f"{done['ms']['p95']:.2f}",
                )
            )
    click.echo(table(rows))
    click.echo("ms: all but the network, writing the map to memory included")
    write_json(
        json_path,
        {
            "course": {"length_m": length, "laps": laps, "repeats": repeats, "step_m": step},
            "seed": seed,
            "odometry_off_m": float(off_m),
            "ways": result,
            "machine": machine(),
            "version": __version__,
        },
    )


def _shots(
    length_m: float, laps: int, repeats: int, period_s: float, seed: int
) -> Iterator[tuple[Any, int, Any, Any]]:
    from hashvpr_ros.datasets.bag_writer import planar_pose
    from hashvpr_ros.simulation.course import DAY, Course, some_light
    from hashvpr_ros.simulation.odometry import Drift, drifting

    rng = np.random.default_rng(seed)
    course = Course(length_m, seed, repeats=repeats)
    drives = [(DAY, 0.0, 0.0)]
    for _ in range(laps - 1):
        drives.append((some_light(rng), rng.uniform(-0.6, 0.6), rng.uniform(-0.05, 0.05)))
    shots, again = itertools.tee(course.drive(drives, rate_hz=1.0 / period_s, seed=seed))
    odometry = drifting(((s.x_m, s.y_m, s.yaw_rad) for s in again), Drift(seed=seed))
    for shot, drifted in zip(shots, odometry, strict=True):
        exact = planar_pose(shot.x_m, shot.y_m, shot.yaw_rad)
        yield shot.rgb, shot.stamp_ns, exact, planar_pose(*drifted)
