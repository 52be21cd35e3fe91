"""`hashvpr evaluate`: recall and latency on a folder with ground truth."""

from __future__ import annotations

import math
from pathlib import Path

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    engine_option,
    json_option,
    machine,
    open_engine,
    progress_bar,
    table,
    ticker,
    write_json,
)


@click.command(name="evaluate")
@click.argument("folder", type=click.Path(path_type=Path))
@engine_option
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=None,
    help="Candidates to re-rank. Default: 100, or 20 for fewer than 1,000 references.",
)
@click.option(
    "--tolerance",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also accept references within so many indices of a correct one.",
)
@json_option
def command(
    folder: Path,
    engine_path: Path | None,
    top_k: int | None,
    tolerance: int,
    json_path: Path | None,
) -> None:
    """Recall of hash, float and re-ranked search on FOLDER, and the time they take.

    FOLDER is in the layout of VPR-Bench: query/, ref/ and ground_truth_new.npy.
    """
    from hashvpr_ros.datasets.vpr_bench import VprBench
    from hashvpr_ros.evaluation.evaluate import evaluate

    dataset = VprBench(folder)
    engine = open_engine(engine_path)
    total = len(dataset.queries) + len(dataset.references)
    with progress_bar(total, "describing") as bar:
        result = evaluate(
            dataset, engine, top_k=top_k, tolerance=tolerance, progress=ticker(bar)
        ).summary()
    result |= {
        "tolerance": tolerance,
        "engine": {"name": engine.info.name, "fingerprint": engine.info.fingerprint},
        "version": __version__,
        "machine": machine(),
    }
    recall, latency, size = result["recall"], result["latency_ms"], result["bytes_per_place"]
    assert isinstance(recall, dict) and isinstance(latency, dict) and isinstance(size, dict)
    click.echo(
        f"{engine.info.name} on {folder}: {result['queries']} queries, {result['references']} "
        f"references, {result['top_k']} candidates re-ranked"
    )
    rows: list[tuple[str, ...]] = [("recall (%)", "R@1", "R@5", "R@10")]
    names = {"hash": "code alone", "float": "float alone", "rerank": "code, re-ranked"}
    rows += [
        (label, *(_percent(recall[key][k]) for k in ("1", "5", "10")))
        for key, label in names.items()
    ]
    click.echo(table(rows))
    rows = [("latency (ms)", "median", "p95")]
    rows += [(k, f"{v['median']:.2f}", f"{v['p95']:.2f}") for k, v in latency.items()]
    click.echo(table(rows))
    click.echo(f"bytes a place: {size['resident']:.0f} in memory, {size['stored']:.0f} on disk")
    write_json(json_path, result)


def _percent(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.1f}"
