"""`hashvpr bench temporal`: what weighing matches over time costs in a large map."""

from __future__ import annotations

from pathlib import Path

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    json_option,
    machine,
    progress_bar,
    table,
    ticker,
    write_json,
)


@click.command(name="temporal")
@click.option("--places", type=click.IntRange(2000), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@json_option
def command(places: int, rounds: int, json_path: Path | None) -> None:
    """Time search, re-ranking and what comes after, for each way of matching over time."""
    from hashvpr_ros.evaluation.temporal_bench import WAYS, measure, summary

    with progress_bar(rounds * len(WAYS), "measuring", "round") as bar:
        measured = measure(places, rounds=rounds, progress=ticker(bar))
    added = summary(measured)
    rows: list[tuple[str, ...]] = [
        (f"ms, {places} places", "search", "re-ranking", "evidence", "p95", "adds")
    ]
    for way, stages in measured.items():
        rows.append(
            (
                way,
                *(f"{stages[s]['median']:.2f}" for s in ("search", "rerank", "temporal")),
                f"{stages['temporal']['p95']:.2f}",
                f"{added[way]:.2f}" if way in added else "",
            )
        )
    click.echo(table(rows))
    write_json(
        json_path,
        {"places": places, "ways": measured, "added_ms": added, "machine": machine(),
         "version": __version__},
    )  # fmt: skip
