"""`hashvpr bench`: search, engine and node beside the bare libraries."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    FiniteRange,
    engine_option,
    json_option,
    machine,
    open_engine,
    progress_bar,
    table,
    write_json,
)
from hashvpr_ros.cli.outputs import PLOT_FILE
from hashvpr_ros.errors import ConfigError

_NODE_PLACES, _NODE_SIZE, _NODE_IMAGES = 10_000, (480, 640), 200


class Integers(click.ParamType):
    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(v) for v in str(value).split(",") if v.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 1000,10000")
        if not numbers or min(numbers) < 1:
            self.fail(f"{value!r} must hold numbers of at least 1")
        return numbers


class _Bench(click.Group):
    """`bench` alone measures search and engine; with a word, something else."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["train", "export", "index", "loops", "temporal"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"hashvpr_ros.cli.bench_{name}")
        found: click.Command = module.command
        return found


@click.group(name="bench", cls=_Bench, invoke_without_command=True)
@click.option(
    "--sizes",
    type=Integers(),
    default="1000,10000,100000,1000000",
    show_default=True,
    help="Places in the map. A million take 1.3 GB of the temporary folder, and minutes.",
)
@click.option(
    "--batches", type=Integers(), default="1,2,4,8", show_default=True, help="Images a batch."
)
@click.option("--top-k", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--queries", type=click.IntRange(10), default=200, show_default=True)
@click.option(
    "--scattered",
    is_flag=True,
    help="Fill the map with unrelated places instead of drives: the worst case for re-ranking.",
)
@click.option(
    "--node",
    is_flag=True,
    help=f"Instead, play {_NODE_IMAGES} images of {_NODE_SIZE[1]}x{_NODE_SIZE[0]} at --hz to a "
    f"real node with {_NODE_PLACES:,} places, over DDS (needs ROS 2 and the built messages).",
)
@click.option("--hz", type=FiniteRange(0.5, 100), default=10.0, show_default=True)
@engine_option
@json_option
@click.option(
    "--plot",
    type=PLOT_FILE,
    default=None,
    help="Also draw the numbers (.png or .svg).",
)
@click.pass_context
def command(
    context: click.Context,
    sizes: tuple[int, ...],
    batches: tuple[int, ...],
    top_k: int,
    queries: int,
    scattered: bool,
    node: bool,
    hz: float,
    engine_path: Path | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Time search, re-ranking and engine beside the bare library calls, in one process.

    Both sides take turns, so that what else the machine does meets both.
    """
    if context.invoked_subcommand:
        return
    if node and plot:
        raise ConfigError("--plot draws search and engine: leave out --node")
    result: dict[str, Any] = {"version": __version__, "machine": machine()}
    if node:
        result["node"] = _node(engine_path, hz)
    else:
        engine = open_engine(engine_path)
        result["search"] = _search(sizes, engine.info.feature_dim, top_k, queries, scattered)
        result["engine"] = _engine(engine, batches)
    write_json(json_path, result)
    if plot:
        from hashvpr_ros.evaluation import plots

        plots.bench(plot, result["search"], result["engine"])
    click.echo(result["machine"])


def _cells(*values: dict[str, float]) -> list[str]:
    return [f"{v['median']:.2f} (p95 {v['p95']:.2f})" for v in values]


def _search(
    sizes: tuple[int, ...], feature_dim: int, top_k: int, queries: int, scattered: bool
) -> list[dict[str, Any]]:
    from hashvpr_ros.evaluation.bench import bench_search, check_room

    check_room(max(sizes), feature_dim)
    with progress_bar(max(sizes), "filling the map", "place") as bar:
        rows = bench_search(
            sizes,
            feature_dim=feature_dim,
            top_k=top_k,
            queries=queries,
            scattered=scattered,
            progress=bar.update,
        )
    lines: list[tuple[str, ...]] = [
        ("search (ms), places", "FAISS alone", "search", "re-ranking", "both / FAISS")
    ]
    for row in rows:
        cells = _cells(row["bare_search_ms"], row["search_ms"], row["rerank_ms"])
        lines.append((f"{row['places']:,}", *cells, f"{row['ratio']:.2f}"))
    click.echo(table(lines))
    return rows


def _engine(engine: Any, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    from hashvpr_ros.engine.onnx_engine import OnnxEngine, raw_onnx_run
    from hashvpr_ros.evaluation.bench import bench_engine

    if not isinstance(engine, OnnxEngine):
        raise ConfigError(f"{engine.info.name}: only .onnx files have a bare runtime to compare")
    with progress_bar(len(batches), "engine", "batch") as bar:
        rows = bench_engine(engine, raw_onnx_run(engine), batches, progress=lambda: bar.update(1))
    lines: list[tuple[str, ...]] = [
        ("engine (ms), batch", "runtime alone", "engine", "ms an image", "engine / runtime")
    ]
    for row in rows:
        cells = _cells(row["bare_ms"], row["engine_ms"])
        per_image, ratio = f"{row['engine_ms_per_image']:.2f}", f"{row['ratio']:.2f}"
        lines.append((str(row["batch"]), *cells, per_image, ratio))
    click.echo(table(lines))
    return rows


def _node(engine_path: Path | None, hz: float) -> dict[str, Any]:
    from hashvpr_ros.cli.node_run import check_ros, run_node

    check_ros()
    folder = Path(tempfile.mkdtemp(prefix="hashvpr_bench_node"))
    try:
        map_path = _node_map(folder, engine_path)
        run = run_node(
            {
                "mode": "slam",
                "engine.path": str(engine_path.resolve()) if engine_path else "",
                "map.path": str(map_path),
                "input.image_topics": ["/camera/image"],
                "pose.source": "odometry",
                "pose.odometry_topic": "/odom",
            },
            _node_bag(folder, hz),
            folder / "run",
        )
        return _node_result(run, hz)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _node_map(folder: Path, engine_path: Path | None) -> Path:
    """A map of the engine's model that holds random places."""
    import numpy as np

    from hashvpr_ros.evaluation.bench import PlaceMaker, fill
    from hashvpr_ros.map.place_map import PlaceMap

    engine = open_engine(engine_path)
    path = folder / "places.vprmap"
    with PlaceMap.open(
        path, engine.info.fingerprint, engine.info.feature_dim, session="random"
    ) as place_map:
        maker = PlaceMaker(engine.info.feature_dim, np.random.default_rng(0))
        fill(place_map, _NODE_PLACES, maker)
    engine.close()
    return path


def _node_bag(folder: Path, hz: float) -> Path:
    """A bag of rendered images, whose own speed is `hz`."""
    from itertools import islice

    from hashvpr_ros.datasets.bag_writer import planar_pose, write_bag
    from hashvpr_ros.datasets.base import Frame
    from hashvpr_ros.simulation.course import DAY, Course

    street = Course(120.0, 0, size=_NODE_SIZE)
    with progress_bar(_NODE_IMAGES, "rendering") as bar:

        def frames() -> Any:
            shots = street.drive([(DAY, 0.0, 0.0)], speed_mps=0.5 * hz / 5, rate_hz=hz)
            for shot in islice(shots, _NODE_IMAGES):
                yield Frame(shot.rgb, shot.stamp_ns, planar_pose(shot.x_m, shot.y_m, shot.yaw_rad))
                bar.update(1)

        write_bag(folder / "images", frames())
    return folder / "images"


def _node_result(run: Any, hz: float) -> dict[str, Any]:
    from hashvpr_ros.datasets.bag import Losses, read_own
    from hashvpr_ros.evaluation.metrics import median_p95

    end_to_end = run.end_to_end_ms()
    times = {stamp: m.times for stamp, m in read_own(run.answers, "PlaceHypotheses", Losses())}
    # The first images find caches cold and the processes' discovery still at work.
    counted = sorted(set(end_to_end) & set(times))[20:]
    stages = ("decode", "preprocess", "engine", "search", "rerank", "store", "total")
    latency = {s: median_p95([float(getattr(times[t], s)) for t in counted]) for s in stages}
    latency["outside_engine"] = median_p95(
        [float(times[t].total - times[t].engine) for t in counted]
    )
    latency["end_to_end"] = median_p95([end_to_end[t] for t in counted])
    latency["end_to_end_less_engine"] = median_p95(
        [end_to_end[t] - float(times[t].engine) for t in counted]
    )
    result = {
        "places": _NODE_PLACES,
        "image": f"{_NODE_SIZE[1]}x{_NODE_SIZE[0]} rgb8",
        "hz": hz,
        "images_played": len(run.published_ns),
        "images_lost": len(run.lost),
        "latency_ms": latency,
        "node_cpu_cores": round(run.node_cpu, 2),
    }
    lines: list[tuple[str, ...]] = [("node (ms)", "median", "p95")]
    lines += [
        (name.replace("_", " "), f"{v['median']:.2f}", f"{v['p95']:.2f}")
        for name, v in latency.items()
    ]
    click.echo(
        f"{result['images_played']} images of {result['image']} at {hz:g} Hz, {_NODE_PLACES:,} "
        f"places: {result['images_lost']} lost"
    )
    click.echo(table(lines))
    return result
