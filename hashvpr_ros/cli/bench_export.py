"""`hashvpr bench export`: PyTorch beside the exported graphs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import json_option, machine, progress_bar, table, write_json
from hashvpr_ros.cli.export import SIZE, calibration_images
from hashvpr_ros.cli.outputs import AnyPath
from hashvpr_ros.cli.train import MISSING
from hashvpr_ros.errors import ConfigError


@click.command(name="export")
@click.argument("checkpoint", type=AnyPath(dir_okay=False))
@click.option(
    "--calibration",
    type=AnyPath(file_okay=False),
    required=True,
    help="Folder of images, for int8 and to compare bits by.",
)
@click.option("--size", type=SIZE, default=None, help="As for `hashvpr export`.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 8))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(3), default=15, show_default=True)
@json_option
def command(
    checkpoint: Path,
    calibration: Path,
    size: tuple[int, int] | None,
    batches: tuple[int, ...],
    threads: int,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Time CHECKPOINT in PyTorch and as fp32 and int8 engine files, taking turns, on the CPU."""
    try:
        from hashvpr_ros.export.bench import bench_export
        from hashvpr_ros.model.checkpoints import open_checkpoint
    except ImportError as e:
        raise ConfigError(f"{e.name} {MISSING}") from e
    opened = open_checkpoint(checkpoint)
    size = size or opened.size
    opened.network.check_size(*size)
    images = calibration_images(calibration, size)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar(repeats * len(batches), "timing", "round") as bar,
    ):
        result = bench_export(
            opened.network,
            size,
            images,
            Path(folder),
            batches=batches,
            threads=threads,
            repeats=repeats,
            progress=bar.update,
        )
    heads = ["batch", "PyTorch (ms)", "fp32 (ms)", "int8 (ms)", "fp32 backbone (ms)"]
    heads += ["fp32 gains", "int8 gains on it", "fp32 to backbone"]
    with_lite0 = "lite0" in result["rows"][0]
    rows = [(*heads, "Lite0 (ms)", "fp32 to Lite0") if with_lite0 else tuple(heads)]
    for row in result["rows"]:
        times = [row.get(k) for k in _SIDES]
        cells = [f"{t['median']:.1f} (p95 {t['p95']:.1f})" if t else "none" for t in times]
        torch_ms, fp32, int8, backbone = (t["median"] if t else 0.0 for t in times)
        gains = [f"{torch_ms / fp32:.2f}x", f"{fp32 / int8:.2f}x" if int8 else "none"]
        gains.append(f"{fp32 / backbone:.2f}")
        if with_lite0:
            lite0 = row["lite0"]
            gains += [f"{lite0['median']:.1f} (p95 {lite0['p95']:.1f})"]
            gains += [f"{fp32 / lite0['median']:.2f}"]
        rows.append((str(row["batch"]), *cells, *gains))
    click.echo(f"{opened.network.name}, {size[0]}x{size[1]}, {threads} threads")
    click.echo(table(rows))
    for precision in ("fp32", "int8"):
        agreement = result[precision]
        if "refused" in agreement:
            click.echo(f"{precision}: {agreement['refused'].partition(': ')[2]}")
            continue
        click.echo(
            f"{precision}: {agreement['megabytes']:.1f} MB, largest difference "
            f"{agreement['largest_error']:.2g}, {100 * agreement['bits_equal']:.2f} % of bits "
            "equal"
        )
    full: dict[str, Any] = {"network": opened.network.name, "size": size, "threads": threads}
    write_json(json_path, {**full, **result, "machine": machine()})
    click.echo(machine())


_SIDES = ("torch", "fp32", "int8", "backbone")
