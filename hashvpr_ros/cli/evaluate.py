"""`hashvpr evaluate`: recall, loop closures and latency on a folder with ground truth."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli import evaluate_suite
from hashvpr_ros.cli.common import (
    DEFAULT_ANGLE_DEG,
    DEFAULT_RADIUS_M,
    FiniteRange,
    allow_partial_option,
    end_with_losses,
    engine_option,
    json_option,
    machine,
    near_options,
    only_image_topic,
    open_engine,
    progress_bar,
    refuse_options,
    said_of,
    say_losses,
    table,
    ticker,
    write_json,
)
from hashvpr_ros.cli.outputs import HTML_FILE, PATH
from hashvpr_ros.errors import ConfigError

if TYPE_CHECKING:
    from hashvpr_ros.datasets.bag import BagFrames
    from hashvpr_ros.datasets.truth import TruePoses

_BAG_OPTIONS = (
    "--truth", "--map-truth", "--image-topic", "--spacing", "--angle", "--allow-partial",
)  # fmt: skip


@click.command(name="evaluate")
@click.argument("folder", metavar="[FOLDER|BAG]", required=False, type=PATH)
@click.option(
    "--suite",
    type=PATH,
    help="Evaluate all image sets in this folder, at most two folders deep, into one table.",
)
@click.option(
    "--layout",
    default="auto",
    show_default=True,
    help="vpr-bench; utm: names with UTM coordinates, 25 m; nordland: two folders frame by frame; "
    "drive: one drive, images/ with loops.npy or places.npy.",
)
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
    help="Also accept references within this many indices of a correct one.",
)
@click.option(
    "--ablate",
    is_flag=True,
    help="Compare all methods: binary, float, re-ranked, with temporal filtering, and baselines.",
)
@click.option(
    "--report",
    type=HTML_FILE,
    default=None,
    help="With --ablate: an HTML file with curves, the similarity matrix and the mistakes. With "
    "--suite: one with the table and bars.",
)
@click.option(
    "--queries",
    "ranges",
    multiple=True,
    metavar="SET=FIRST:LAST",
    help="With --suite: take only the queries FIRST to LAST - 1 of a set, counted from 0. Only "
    "these references stay: those that are correct for one of the queries, and those with an "
    "index in the same range. Use it to leave out places that a model was trained on: "
    "sped=439:589 takes the last 150 places of sped. Repeatable.",
)
@click.option(
    "--compare-to",
    multiple=True,
    type=PATH,
    metavar="MODEL",
    help="With --suite: also evaluate this model; its R@1 is a column of the table. Repeatable.",
)
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="With --suite or --ablate: also ORB bag of words, HOG and VLAD, which need no network.",
)
@click.option(
    "--map-bag",
    type=PATH,
    help="Bag with the reference images; BAG has the queries. Needs --truth.",
)
@click.option("--image-topic", help="Image topic of both bags. Default: their only one.")
@click.option("--truth", help="With --map-bag: pose topic of BAG, or a TUM trajectory of it.")
@click.option("--map-truth", help="Ground truth of --map-bag. Default: the topic of --truth.")
@click.option(
    "--spacing",
    "spacing_m",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="With --map-bag: distance between two images that are used, metres.",
)
@near_options("--map-bag", utm=True)
@allow_partial_option
@json_option
def command(
    folder: Path | None,
    suite: Path | None,
    layout: str,
    engine_path: Path | None,
    top_k: int | None,
    tolerance: int,
    ablate: bool,
    report: Path | None,
    ranges: tuple[str, ...],
    compare_to: tuple[Path, ...],
    baselines: bool,
    map_bag: Path | None,
    image_topic: str | None,
    truth: str | None,
    map_truth: str | None,
    spacing_m: float,
    radius_m: float | None,
    angle_deg: float | None,
    allow_partial: bool,
    json_path: Path | None,
) -> None:
    """Measure recall, loop closures and latency.

    FOLDER has query/, ref/ and ground_truth_new.npy, or another layout: see --layout. With two
    traverses, ref/ becomes the map and query/ is played to the node's recognizer at its defaults.
    A drive is played to it in mode slam. With bags, BAG has the queries and --map-bag the
    references; the poses of both are in one frame. Images that cannot be read are left out: the
    exit code is then 3.

    \b
    hashvpr evaluate corridor/
    hashvpr evaluate corridor/ --ablate --report all.html
    hashvpr evaluate evening --map-bag morning --truth /ground_truth --ablate
    hashvpr evaluate --suite data/ --queries sped=439:589 --report suite.html
    """
    from hashvpr_ros.datasets.registry import open_dataset, open_traverses
    from hashvpr_ros.evaluation.bag_traverses import BagTraverses

    if suite is not None:
        if folder is not None or ablate or map_bag or top_k is not None or layout != "auto":
            raise ConfigError(
                "--suite takes no FOLDER, --ablate, --map-bag, --top-k or --layout; leave them out"
            )
        refuse_options("does not go with --suite; leave it out", *_BAG_OPTIONS, "--radius")
        evaluate_suite.run(
            suite, engine_path, queries=ranges, compare_to=compare_to, with_baselines=baselines,
            tolerance=tolerance, report=report, json_path=json_path,
        )  # fmt: skip
        return
    if folder is None:
        raise ConfigError("there is nothing to evaluate; give FOLDER, BAG or --suite FOLDER")
    if ranges or compare_to:
        raise ConfigError("--queries and --compare-to belong to --suite; give it")
    if report is not None and not ablate:
        raise ConfigError("--report belongs to --ablate or --suite; give one of them")
    if ablate:
        refuse_options(
            "does not go with --ablate, which compares several; leave it out", "--top-k"
        )
    else:
        refuse_options("belongs to --ablate or --suite; give one of them", "--baselines")
    if map_bag is None:
        refuse_options("belongs to --map-bag; give it", *_BAG_OPTIONS)
    else:
        refuse_options("is for folders, not for bags; leave it out", "--layout")
    lost = 0
    with tempfile.TemporaryDirectory(prefix="hashvpr_evaluate") as images:
        if map_bag is None:
            dataset: Any = (open_traverses if ablate else open_dataset)(folder, layout, radius_m)
        else:
            queries, references = _drives(
                (folder, map_bag), (truth, map_truth), image_topic, allow_partial
            )
            with progress_bar(len(queries[0]) + len(references[0]), "reading the bags") as bar:
                dataset = BagTraverses(
                    queries, references, Path(images), spacing_m=spacing_m,
                    radius_m=DEFAULT_RADIUS_M if radius_m is None else radius_m,
                    angle_rad=math.radians(DEFAULT_ANGLE_DEG if angle_deg is None else angle_deg),
                    progress=ticker(bar),
                )  # fmt: skip
            for frames in (queries[0], references[0]):
                say_losses(frames)
                lost += frames.lost
        for note in dataset.notes:
            click.echo(note, err=True)
        result = _run(folder, dataset, engine_path, ablate, top_k, tolerance, report, baselines)
    write_json(json_path, result)
    lost += result["images_left_out"]
    end_with_losses(lost, lost + result["images"])


def _run(
    folder: Path,
    dataset: Any,
    engine_path: Path | None,
    ablate: bool,
    top_k: int | None,
    tolerance: int,
    report: Path | None,
    baselines: bool,
) -> dict[str, Any]:
    engine = open_engine(engine_path)
    click.echo(f"{engine.info.name} on {folder}: {_size(dataset)}")
    if ablate:
        result = _ablate(dataset, engine, tolerance, report, baselines)
    else:
        result = _evaluate(dataset, engine, top_k, tolerance)
    return result | {
        "tolerance": tolerance,
        "engine": {"name": engine.info.name, "fingerprint": engine.info.fingerprint},
        "version": __version__,
        "machine": machine(),
    }


def _size(dataset: Any) -> str:
    from hashvpr_ros.datasets.drive import DriveFolder

    if isinstance(dataset, DriveFolder):
        return f"a drive of {len(dataset.images)} images"
    return f"{len(dataset.queries)} queries, {len(dataset.references)} references"


def _drives(
    bags: tuple[Path, Path],
    truths: tuple[str | None, str | None],
    image_topic: str | None,
    allow_partial: bool,
) -> list[tuple[BagFrames, TruePoses]]:
    """The images of two bags, and where they were taken."""
    from hashvpr_ros.datasets.bag import BagFrames, Losses
    from hashvpr_ros.datasets.truth import read_truth

    truth, map_truth = truths
    if truth is None:
        raise ConfigError("--map-bag needs --truth: where the images were taken")
    if map_truth is None and Path(os.path.expanduser(truth)).is_file():
        raise ConfigError(f"{truth}: is of {bags[0]} alone; give --map-truth for {bags[1]}, too")
    drives = []
    losses = Losses(allow_partial)
    for bag, said in zip(bags, (truth, map_truth or truth), strict=True):
        topic = image_topic or only_image_topic(bag)
        frames = BagFrames(bag, topic, allow_partial=allow_partial)
        drives.append((frames, read_truth(bag, said, losses)))
    say_losses(losses)
    return drives


def _evaluate(dataset: Any, engine: Any, top_k: int | None, tolerance: int) -> dict[str, Any]:
    from hashvpr_ros.evaluation.evaluate import evaluate, images_of

    with progress_bar(images_of(dataset), "describing") as bar:
        done = evaluate(dataset, engine, top_k=top_k, tolerance=tolerance, progress=ticker(bar))
    result: dict[str, Any] = done.summary()
    ks = ("1", "5", "10", "20", "100")
    rows: list[tuple[str, ...]] = [
        (f"recall (%), {result['top_k']} re-ranked", *(f"R@{k}" for k in ks))
    ]
    names = {"hash": "code alone", "float": "float alone", "rerank": "code, re-ranked"}
    rows += [
        (label, *(_percent(result["recall"][key][k]) for k in ks)) for key, label in names.items()
    ]
    truth = result["ground_truth"]
    if truth["left_out"]:
        everything = result["recall_of_all_queries"]["rerank"]
        label = f"re-ranked, of all {truth['queries']} queries"
        rows.append((label, *(_percent(everything[k]) for k in ks)))
    for line in done.skipped:
        click.echo(f"left out: {line}", err=True)
    click.echo(table(rows))
    click.echo(said_of(truth))
    _say_closures(result["closures"])
    _say_calibration(result["calibration"])
    rows = [("latency (ms)", "median", "p95")]
    rows += [(k, f"{v['median']:.2f}", f"{v['p95']:.2f}") for k, v in result["latency_ms"].items()]
    click.echo(table(rows))
    size = result["bytes_per_place"]
    click.echo(f"bytes a place: {size['resident']:.0f} in memory, {size['stored']:.0f} on disk")
    return result


def _say_closures(found: dict[str, Any]) -> None:
    error = found["position_error_frames"]
    frames = _number(error["median"])
    if error["median"] is not None:
        frames += f" frames (p95 {_number(error['p95'])})"
    click.echo(
        f"closures at the defaults: {found['accepted']} accepted, {found['correct']} correct, "
        + (f"{found['unknown']} without ground truth, " if found["unknown"] else "")
        + f"precision {_share(found['precision_percent'])}, "
        f"{_share(found['closed_percent'])} of {found['revisits']} revisits closed, "
        f"position error {frames}"
    )


def _say_calibration(found: dict[str, Any]) -> None:
    high = found["at_least_0_99"]
    click.echo(
        f"calibration error: {_number(found['expected_calibration_error'], 3)}; probability 0.99 "
        f"or more: {high['count']} matches, {high['correct']} correct, "
        f"precision {_share(high['precision_percent'])}"
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"


def _ablate(
    dataset: Any, engine: Any, tolerance: int, report: Path | None, with_baselines: bool
) -> dict[str, Any]:
    from hashvpr_ros.evaluation.ablation import ablate
    from hashvpr_ros.evaluation.baselines import BASELINES
    from hashvpr_ros.evaluation.evaluate import images_of

    baselines = tuple(BASELINES) if with_baselines else ()
    with progress_bar((1 + len(baselines)) * images_of(dataset), "describing") as bar:
        done = ablate(
            dataset, engine, tolerance=tolerance, baselines=baselines, progress=ticker(bar)
        )
    result = done.summary()
    rows: list[tuple[str, ...]] = [
        ("percent, [95 % interval]", "R@1", "", "R@5", "R@20", "AP", "R@P100", "R@P99",
         "ms", "p95", "B in RAM", "on disk"),
    ]  # fmt: skip
    for way in result["ways"].values():
        low, high = way["recall_interval"]["1"]
        recall, size, latency = way["recall"], way["bytes_per_place"], way["latency_ms"]
        rows.append(
            (
                way["label"],
                _percent(recall["1"]),
                f"[{_percent(low)}, {_percent(high)}]",
                *(_percent(recall[k]) for k in ("5", "20")),
                _percent(way["average_precision"]),
                _percent(way["recall_at_100_precision"]),
                _percent(way["recall_at_99_precision"]),
                f"{latency['median']:.2f}",
                f"{latency['p95']:.2f}",
                f"{size['resident']:.0f}",
                f"{size['stored']:.0f}",
            )
        )
    for line in done.skipped:
        click.echo(f"left out: {line}", err=True)
    click.echo(table(rows))
    click.echo(said_of(result["ground_truth"]))
    block = result["interval_block_queries"]
    click.echo(
        "intervals: none, since the queries show too few places"
        if block is None
        else f"intervals: bootstrap over blocks of {block} consecutive queries"
        if block > 1
        else "intervals: bootstrap over single queries"
    )
    network = result["network_ms"]
    click.echo(
        f"ms is without the network: that takes {network['median']:.1f} (p95 {network['p95']:.1f})"
    )
    for key, way in result["ways"].items():
        if closures := way.get("closures"):
            is_default = " (the node's default)" if key == result["default_way"] else ""
            click.echo(
                f"{way['label']}{is_default}: {closures['accepted']} closures accepted, "
                f"{_percent(closures['precision'])} % right, {_percent(closures['recall'])} % of "
                "the queries closed"
            )
    if report is not None:
        from hashvpr_ros.evaluation.report import write_ablation

        write_ablation(done, report, machine(), engine.info)
        click.echo(f"report: {report.resolve()}")
    return result


def _percent(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.1f}"
