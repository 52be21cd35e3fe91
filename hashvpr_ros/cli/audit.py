"""`hashvpr audit`: which distant places of a map look alike."""

from __future__ import annotations

from pathlib import Path

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import json_option, machine, progress_bar, table, write_json
from hashvpr_ros.cli.outputs import PLOT_FILE


@click.command(name="audit")
@click.argument("path", metavar="MAP", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=PLOT_FILE,
    default=None,
    help="Also draw the pairs, on the map where it has poses: PNG or SVG.",
)
@click.option(
    "--show",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Pairs to print; --json has all.",
)
@json_option
def command(path: Path, plot: Path | None, show: int, json_path: Path | None) -> None:
    """Which distant places of MAP look as alike as neighbouring ones do?

    There a single image says little: keep `matching.temporal` at both, give the node odometry, or
    look at what a closure there leads to.
    """
    from hashvpr_ros.evaluation.audit import audit
    from hashvpr_ros.map.place_map import PlaceMap

    with PlaceMap.open(path, read_only=True, create=False) as place_map:
        with progress_bar(len(place_map), "comparing", "keyframe") as bar:
            found = audit(place_map, bar.update)
        if plot is not None:
            from hashvpr_ros.evaluation import plots

            plots.alike(plot, found, place_map.keyframes(place_map.ids()))
    click.echo(
        f"{path}: {found.alike} of {found.keyframes} keyframes have a double elsewhere, in "
        f"{len(found.pairs)} pairs of stretches (cosine of at least {found.threshold:.3f}, as of "
        "neighbours)"
    )
    rows: list[tuple[str, ...]] = [
        ("keyframe", "looks like", "cosine", "bits", "m apart", "pairs of keyframes"),
    ]
    for pair in found.pairs[:show]:
        rows.append(
            (
                str(pair.first.id),
                str(pair.second.id),
                f"{pair.similarity:.3f}",
                str(pair.distance_bits),
                "unknown" if pair.apart_m is None else f"{pair.apart_m:.0f}",
                str(pair.count),
            )
        )
    if len(rows) > 1:
        click.echo(table(rows))
    write_json(
        json_path,
        {
            "keyframes": found.keyframes,
            "alike": found.alike,
            "threshold": found.threshold,
            "pairs": [
                {
                    "first": p.first.id,
                    "second": p.second.id,
                    "first_stamp_ns": p.first.stamp_ns,
                    "second_stamp_ns": p.second.stamp_ns,
                    "similarity": p.similarity,
                    "distance_bits": p.distance_bits,
                    "apart_m": p.apart_m,
                    "count": p.count,
                }
                for p in found.pairs
            ],
            "machine": machine(),
            "version": __version__,
        },
    )
