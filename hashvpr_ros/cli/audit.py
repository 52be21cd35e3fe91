"""`hashvpr audit`: which distant places of a map look alike."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import json_option, machine, progress_bar, table, write_json
from hashvpr_ros.cli.node_run import check_ros
from hashvpr_ros.cli.outputs import PATH, PLOT_FILE
from hashvpr_ros.errors import ConfigError, MapError

if TYPE_CHECKING:
    from hashvpr_ros.evaluation.audit import Audit
    from hashvpr_ros.types import Keyframe


@click.command(name="audit")
@click.argument("path", metavar="MAP", type=PATH)
@click.option(
    "--plot",
    type=PLOT_FILE,
    default=None,
    help="Also draw the pairs (PNG or SVG), on the map if it has poses.",
)
@click.option(
    "--show",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Number of pairs to print; --json has all.",
)
@click.option(
    "--rviz",
    is_flag=True,
    help="Then show the pairs in RViz, as a MarkerArray of /hashvpr_audit/alike, until Ctrl+C.",
)
@json_option
def command(path: Path, plot: Path | None, show: int, rviz: bool, json_path: Path | None) -> None:
    """List distant places of MAP that are as similar as neighbouring ones (perceptual aliasing).

    At these places a single image is not reliable: keep `matching.temporal` at both, and give the
    node odometry.
    """
    from hashvpr_ros.evaluation.audit import audit
    from hashvpr_ros.map.place_map import PlaceMap

    if rviz:
        check_ros("visualization_msgs")
    with PlaceMap.open(path, read_only=True, create=False, verify=True) as place_map:
        keyframes = place_map.keyframes(place_map.ids()) if plot is not None or rviz else []
        if rviz and all(k.pose is None for k in keyframes):
            raise MapError(
                f"{path}: has no keyframe with a pose, and RViz shows positions; `--plot FILE` "
                "draws pairs without"
            )
        with progress_bar(len(place_map), "comparing", "keyframe") as bar:
            found = audit(place_map, bar.update)
        if plot is not None:
            from hashvpr_ros.evaluation import plots

            plots.alike(plot, found, keyframes)
    click.echo(
        f"{path}: {found.alike} of {found.keyframes} keyframes have a double elsewhere, in "
        f"{len(found.pairs)} pairs of stretches (cosine of at least {found.threshold:.3f}, as of "
        "neighbours)"
    )
    if found.without_pose:
        click.echo(
            f"{found.without_pose} of {found.keyframes} keyframes have no pose: they are compared "
            "with keyframes of their own session only"
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
            "without_pose": found.without_pose,
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
    if rviz:
        frames = _by_frame(found, keyframes, show)
        shown = sum(len(of_frame["pairs"]) for of_frame in frames.values())
        left_out = len(found.pairs) - shown
        click.echo(
            f"in RViz: {shown} pairs as a MarkerArray of /hashvpr_audit/alike, in frame "
            f"{', '.join(frames)}"
            + (f"; {left_out} left out, without two poses of one frame" if left_out else "")
            + "; Ctrl+C ends"
        )
        _show_in_rviz(frames)


def _by_frame(found: Audit, keyframes: list[Keyframe], show: int) -> dict[str, Any]:
    """Positions of keyframes and pairs in each frame that poses have; see `ros.show_alike`."""
    frames: dict[str, Any] = {}
    for keyframe in keyframes:
        if keyframe.pose is not None:
            shown = frames.setdefault(keyframe.pose.frame_id, {"keyframes": [], "pairs": []})
            shown["keyframes"].append(keyframe.pose.position_m)
    for rank, pair in enumerate(found.pairs):
        a, b = pair.first.pose, pair.second.pose
        if a is not None and b is not None and a.frame_id == b.frame_id:
            text = f"{pair.first.id} like {pair.second.id}: {pair.similarity:.3f}"
            frames[a.frame_id]["pairs"].append(
                {
                    "first": a.position_m,
                    "second": b.position_m,
                    "text": text if rank < show else None,
                }
            )
    return frames


def _show_in_rviz(frames: dict[str, Any]) -> None:
    """Show what `_by_frame` gives until interrupted."""
    # In a session of its own: its input ends it, and Ctrl+C would find it while it starts.
    command = [sys.executable, "-m", "hashvpr_ros.ros.show_alike"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        with suppress(KeyboardInterrupt):
            with suppress(BrokenPipeError):  # it ended before it had read all
                print(json.dumps({"frames": frames}), file=process.stdin, flush=True)
            process.wait()
            raise ConfigError(f"what shows the pairs ended by itself, with {process.returncode}")
