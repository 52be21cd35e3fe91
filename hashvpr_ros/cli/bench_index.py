"""`hashvpr bench index`: the index back ends beside one another."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from hashvpr_ros import __version__
from hashvpr_ros.cli.bench import Integers
from hashvpr_ros.cli.common import (
    engine_option,
    json_option,
    machine,
    open_engine,
    progress_bar,
    table,
    write_json,
)
from hashvpr_ros.errors import ConfigError

_KINDS = ("exact", "hnsw", "ivf", "gpu")


@click.command(name="index")
@click.option(
    "--sizes",
    type=Integers(),
    default="10000,100000,1000000",
    show_default=True,
    help="Codes. Ten million take 640 MB of the temporary folder, 3 GB of memory and long.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(_KINDS),
    multiple=True,
    default=("exact", "hnsw", "ivf"),
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--codes",
    type=click.Choice(["drives", "uniform", "both"]),
    default="both",
    show_default=True,
    help="drives: with the statistics of the engine's codes of rendered courses; uniform: all "
    "bits random, which no model gives.",
)
@click.option(
    "--images",
    type=click.IntRange(20),
    default=1800,
    show_default=True,
    help="Rendered to take the statistics from.",
)
@click.option("--top-k", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--queries", type=click.IntRange(10), default=500, show_default=True)
@engine_option
@json_option
def command(
    sizes: tuple[int, ...],
    kinds: tuple[str, ...],
    codes: str,
    images: int,
    top_k: int,
    queries: int,
    engine_path: Path | None,
    json_path: Path | None,
) -> None:
    """Recall against exact search, time, and memory of each back end of `map.index`."""
    from hashvpr_ros.evaluation.index_bench import CodeModel, measure_kinds, uniform_codes

    _check_room(max(sizes))
    makers: dict[str, Any] = {}
    if codes != "uniform":
        makers["drives"] = CodeModel.fit(_real_codes(engine_path, images)).drives
    if codes != "drives":
        makers["uniform"] = uniform_codes
    result: list[dict[str, Any]] = []
    click.echo(machine())
    with tempfile.TemporaryDirectory(prefix="hashvpr_bench") as folder:
        path = Path(folder) / "codes.npy"
        for name, make in makers.items():
            for size in sorted(set(sizes)):
                with progress_bar(size, f"making {name} codes", "code") as bar:
                    asked = make(size, queries, path, bar.update)
                rows = measure_kinds(path, asked, kinds, top_k)
                result += [{"codes": name, "size": size, **row} for row in rows]
                click.echo(_table(name, size, top_k, rows))
    write_json(
        json_path,
        {"index": result, "top_k": top_k, "machine": machine(), "version": __version__},
    )


def _table(name: str, size: int, top_k: int, rows: list[dict[str, Any]]) -> str:
    head = (
        f"{size:,} {name} codes",
        "R@10",
        f"R@{top_k}",
        "ms",
        "p95",
        "add ms",
        "worst",
        "build s",
        "bytes",
    )
    return "\n" + table(
        [
            head,
            *(
                (
                    row["kind"]
                    if row["kind"] == row["index"]
                    else f"{row['kind']}: {row['index']}",
                    f"{row['recall_10']:.1f} %",
                    f"{row['recall']:.1f} %",
                    f"{row['search_ms']['median']:.2f}",
                    f"{row['search_ms']['p95']:.2f}",
                    f"{row['add_ms']:.2f}",
                    f"{row['add_worst_ms']:.1f}",
                    f"{row['build_s']:.1f}",
                    f"{row['bytes_per_code']:.0f}",
                )
                for row in rows
            ),
        ]
    )


def _check_room(size: int) -> None:
    folder = tempfile.gettempdir()
    needed, free = 64 * size, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB are free, {size} codes take {needed / 1e9:.1f} GB; "
            "set TMPDIR to another folder or give smaller --sizes"
        )


def _real_codes(engine_path: Path | None, images: int) -> Any:
    """The engine's codes of rendered images, uint8 [n, 64]."""
    from hashvpr_ros.engine.preprocess import resize

    engine = open_engine(engine_path)
    found = []
    with progress_bar(images, "describing rendered images") as bar:
        for rgb in _rendered(images):
            image = resize(rgb, engine.info.height, engine.info.width)
            found.append(engine.describe(image[np.newaxis])[0])
            bar.update(1)
    engine.close()
    return np.concatenate(found)


def _rendered(images: int) -> Iterator[Any]:
    """Images half a metre apart, of courses in several lights."""
    from itertools import chain, islice

    from hashvpr_ros.simulation.course import Course, some_light

    def shots(seed: int) -> Iterator[Any]:
        light = some_light(np.random.default_rng(seed))
        drive = Course(150.0, seed).drive([(light, 0.0, 0.0)], speed_mps=2.0, rate_hz=4.0)
        return islice(drive, max(1, images // 6))

    everything = chain.from_iterable(shots(seed) for seed in range(40, 400))
    return (shot.rgb for shot in islice(everything, images))
