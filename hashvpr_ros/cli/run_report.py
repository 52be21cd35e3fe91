"""What the demo and the replay print of a run, and the report that they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.cli.common import machine, table, write_json

if TYPE_CHECKING:
    from hashvpr_ros.cli.node_run import NodeRun
    from hashvpr_ros.evaluation.run_result import Answer, RunResult

Images = Mapping[int, NDArray[np.uint8]]


def make_run(
    title: str,
    answers: list[Answer],
    map_path: Path,
    *,
    played: int,
    images: Callable[[Sequence[int]], Images],
    positions: dict[int, tuple[float, float]],
    settings: dict[str, Any],
    live: NodeRun | None = None,
) -> RunResult:
    """A run for the report.

    Args:
        answers: judged.
        map_path: of the map after the run.
        played: images, those without an answer included.
        images: of stamps, see `RunResult.query_images`.
        positions: by stamp, where they are known.
        settings: to print.
        live: of the node, where it was not a replay.
    """
    from hashvpr_ros.evaluation.run_result import RunResult
    from hashvpr_ros.imaging import decode_compressed
    from hashvpr_ros.map.place_map import PlaceMap

    info = PlaceMap.read_info(map_path)

    def thumbnails(ids: Sequence[int]) -> Images:
        with PlaceMap.open(map_path, read_only=True, create=False) as place_map:
            found = {i: place_map.thumbnail(i) for i in ids}
        return {i: decode_compressed(jpeg) for i, jpeg in found.items() if jpeg is not None}

    more: dict[str, Any] = {}
    if live is not None:
        more = {
            "end_to_end_ms": list(live.end_to_end_ms().values()),
            "node_cpu": live.node_cpu,
        }
    return RunResult(
        title=title,
        answers=answers,
        played=played,
        settings={
            **settings,
            "model": info.model_name,
            "model_fingerprint": info.fingerprint,
            "keyframes": info.keyframes,
        },
        query_images=images,
        match_images=thumbnails,
        query_position=positions,
        match_position=lambda a: positions.get(a.match_stamp_ns),
        **more,
    )


def show_run(run: RunResult, out: Path) -> dict[str, Any]:
    """Write report.html and summary.json into a folder, and print the numbers; returns them."""
    from hashvpr_ros.evaluation.report import write_report

    summary = run.summary()
    report = out / "report.html"
    write_report(run, report, machine())
    write_json(out / "summary.json", summary)
    latency = summary["latency_ms"]
    click.echo(f"\n{run.title}")
    rows = [
        (
            "images played, answered, lost",
            f"{summary['images_played']}, {summary['images_answered']}, {summary['images_lost']}",
        ),
        ("images without ground truth", str(summary["images_without_ground_truth"])),
        ("images that show a known place", str(summary["revisits"])),
        ("  recall@1 of single images", _percent(summary["recall_at_1"])),
        ("  closed by an accepted closure", _percent(summary["closure_recall"])),
        ("loop closures accepted", str(summary["closures_accepted"])),
        (
            "  right, wrong, without ground truth",
            f"{summary['closures_right']}, {summary['closures_wrong']}, "
            f"{summary['closures_unknown']}",
        ),
        ("  precision of those with ground truth", _percent(summary["closure_precision"])),
    ]
    if "end_to_end" in latency:
        rows.append(("latency, image published to answer", _ms(latency["end_to_end"])))
    if latency:
        rows += [
            ("  in the network", _ms(latency["engine"])),
            ("  search and re-ranking", f"{_ms(latency['search'])} and {_ms(latency['rerank'])}"),
        ]
    click.echo(table(rows))
    click.echo(f"report: {report.resolve()}")
    return summary


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"


def _ms(value: dict[str, float]) -> str:
    return f"{value['median']:.1f} ms (p95 {value['p95']:.1f})"
