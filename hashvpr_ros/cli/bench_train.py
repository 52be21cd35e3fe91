"""`hashvpr bench train`: what a training step costs, in three ways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import json_option, machine, progress_bar, table, write_json
from hashvpr_ros.cli.outputs import PLOT_FILE
from hashvpr_ros.cli.train import MISSING
from hashvpr_ros.errors import ConfigError, HashVprError


@click.command(name="train")
@click.option(
    "--size", type=click.Choice(["small", "base", "large"]), default="small", show_default=True
)
@click.option("--batch", type=click.IntRange(4), default=32, show_default=True)
@click.option("--image", type=click.IntRange(14), default=224, show_default=True, help="Side, px.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="A round.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@json_option
@click.option("--plot", type=PLOT_FILE, help="A .png or .svg.")
def command(
    size: str,
    batch: int,
    image: int,
    rounds: int,
    steps: int,
    threads: int,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Time and peak memory of a training step of DINOv2 in several ways, taking turns.

    The side network of SelaVPR++, from images and from cached features; adapters of the same size
    inside the backbone; and the last four blocks. Same batch, image size and loss. Each round
    of each way is a process of its own, whose peak is that way's.
    """
    try:
        from hashvpr_ros.evaluation.metrics import median_p95
        from hashvpr_ros.training.efficiency import WAYS
    except ImportError as e:
        raise ConfigError(f"{e.name} {MISSING}") from e
    if image % 14:
        raise ConfigError(f"--image must be a multiple of 14, not {image}")
    if size == "large":
        raise ConfigError("--size large adapts 16 of 24 blocks, so the ways differ; take base")
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    options = [f"--size={size}", f"--side={image}", f"--batch={batch}", f"--steps={steps}"]
    with progress_bar(rounds * len(WAYS), "training", "run") as bar:
        for _ in range(rounds):
            for way in WAYS:
                runs[way].append(_run(way, [*options, f"--threads={threads}"]))
                bar.update(1)
    rows = [
        {
            "way": way,
            "label": WAYS[way],
            "step_s": median_p95([t for r in results for t in r["step_s"]]),
            "peak_mb": max(r["peak_mb"] for r in results),
            "parameters": results[0]["parameters"],
        }
        for way, results in runs.items()
    ]
    base = rows[0]
    lines: list[tuple[str, ...]] = [
        ("way", "trained (M)", "step (s), median", "p95", "to ours", "peak (MB)", "to ours")
    ]
    for row in rows:
        step = row["step_s"]
        lines.append(
            (
                row["label"],
                f"{row['parameters'] / 1e6:.1f}",
                f"{step['median']:.2f}",
                f"{step['p95']:.2f}",
                _ratio(step["median"], base["step_s"]["median"]),
                f"{row['peak_mb']:.0f}",
                _ratio(row["peak_mb"], base["peak_mb"]),
            )
        )
    click.echo(f"DINOv2 {size}, {image}x{image}, batch {batch}, fp32, {threads} threads")
    click.echo(table(lines))
    result = {"size": size, "image": image, "batch": batch, "threads": threads, "rows": rows}
    write_json(json_path, {**result, "machine": machine()})
    if plot:
        from hashvpr_ros.evaluation import plots

        plots.training_cost(plot, rows)
    click.echo(machine())


def _ratio(value: float, base: float) -> str:
    """A small step may need no more than the start did, and then nothing compares with it."""
    return f"{value / base:.2f}" if base else "none"


def _run(way: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "hashvpr_ros.training.efficiency", way, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HashVprError(f"the run of {way} failed ({last}); take a smaller --batch")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
