"""One self-contained HTML file for a run, an ablation or a suite of image sets."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.evaluation import plots
from hashvpr_ros.evaluation.ablation import Ablation, Way
from hashvpr_ros.evaluation.evaluate import KS
from hashvpr_ros.evaluation.run_result import Answer, RunResult
from hashvpr_ros.evaluation.suite import SUITE_NOTE, SetResult, means, table_of
from hashvpr_ros.file_io import replacing

_GALLERY = 9
_IMAGE_WIDTH = 240
_OVERALL = "published to answered, median"


def write_report(run: RunResult, path: Path, machine: str) -> None:
    """Write the report of a run, live or replayed.

    Raises:
        ConfigError: the file cannot be written.
    """
    summary = run.summary()
    latency = summary["latency_ms"]
    live = "end_to_end" in latency
    overall = latency["end_to_end" if live else "engine"]
    drawn = [("Precision and recall", plots.precision_recall_curve(run))]
    if run.query_position:
        drawn.insert(0, ("The course from above", plots.trajectory(run)))
    drawn.insert(1, ("Best match of every image", plots.matches(run)))
    drawn.append(("Latency", plots.latency(run)))
    cards = [
        ("recall@1, single images", _percent(summary["recall_at_1"])),
        ("precision of accepted closures", _percent(summary["closure_precision"])),
        ("revisits closed", _percent(summary["closure_recall"])),
        ("closures accepted", summary["closures_accepted"]),
        ("images lost", summary["images_lost"]),
        ("images without ground truth", summary["images_without_ground_truth"]),
        (_OVERALL if live else "engine, median", f"{overall['median']:.1f} ms"),
    ]
    tables = [
        {
            "title": "Where the time went",
            "head": ("stage (ms)", "median", "p95"),
            "rows": [
                (k.replace("_", " "), f"{v['median']:.2f}", f"{v['p95']:.2f}")
                for k, v in latency.items()
            ],
        },
        {
            "title": "Why images were not closures",
            "head": ("reason", "images"),
            "rows": Counter(a.reason.replace("_", " ") for a in run.answers).most_common(),
        },
    ]
    _write(
        path,
        title=run.title,
        subtitle=f"{summary['images_answered']} of {summary['images_played']} images answered, "
        f"{summary['revisits']} of them show a place of the map. {machine}.",
        cards=cards,
        plots=drawn,
        galleries=_galleries(run),
        tables=tables,
        settings={**run.settings, "machine": machine},
    )


def write_ablation(ablation: Ablation, path: Path, machine: str, info: EngineInfo) -> None:
    """Write the report of an ablation; its headline and gallery are of the node's default.

    Raises:
        ConfigError: the file cannot be written. DatasetError: an image of the gallery has gone.
    """
    summary = ablation.summary()
    shown = ablation.default_way
    main = summary["ways"][shown.key]
    drawn = [
        ("Recall at K", plots.recall_curves(summary["ways"])),
        ("Precision and recall", plots.precision_recall_curves(ablation)),
        ("Similarity of all images, and accepted closures", plots.similarity(ablation, shown)),
        (
            "Is a probability what it says? (" + shown.label + ")",
            plots.reliability(ablation, shown),
        ),
        ("Latency without the network", plots.way_latency(ablation.ways)),
    ]
    closures = main["closures"]
    cards = [
        (f"recall@1, {shown.label} (the node's default)", _percent(main["recall"]["1"])),
        ("precision of its closures", _percent(_finite(closures["precision"]))),
        ("queries closed", _percent(closures["recall"])),
        ("its calibration error", f"{main['calibration_error']:.3f}"),
        ("network, median", f"{summary['network_ms']['median']:.1f} ms"),
    ]
    table = {
        "title": "Every way",
        "head": ("", *(f"R@{k}" for k in KS), "R@1, 95 %", "AP", "R@P100", "R@P99", "ms", "p95",
                 "bytes in memory", "on disk"),
        "rows": [_row(way) for way in summary["ways"].values()],
        "note": "Percent; intervals by bootstrap over blocks of consecutive queries. ms: "
        "without the network; bytes are for a place. R@P100: recall at 100 % precision.",
    }  # fmt: skip
    _write(
        path,
        title=f"{summary['queries']} queries against {summary['references']} references",
        subtitle=f"{info.name}, fingerprint {info.fingerprint[:12]}. {machine}.",
        cards=cards,
        plots=drawn,
        galleries=_mistakes(ablation, shown),
        tables=[table],
        settings={"engine": dataclasses.asdict(info), "machine": machine},
    )


def _row(way: dict[str, Any]) -> tuple[str, ...]:
    low, high = way["recall_interval"]["1"]
    size, latency = way["bytes_per_place"], way["latency_ms"]
    return (
        way["label"],
        *(f"{way['recall'][str(k)]:.1f}" for k in KS),
        "none" if np.isnan(low) else f"{low:.1f} to {high:.1f}",
        f"{way['average_precision']:.1f}",
        f"{way['recall_at_100_precision']:.1f}",
        f"{way['recall_at_99_precision']:.1f}",
        f"{latency['median']:.2f}",
        f"{latency['p95']:.2f}",
        f"{size['resident']:.0f}",
        f"{size['stored']:.0f}",
    )


def write_suite(
    results: Sequence[SetResult],
    baselines: Sequence[str],
    compared: Sequence[str],
    path: Path,
    machine: str,
    info: EngineInfo,
    settings: dict[str, Any],
) -> None:
    """Write the report of a suite.

    Args:
        baselines, compared: see `suite.table_of`.
        settings: to print.

    Raises:
        ConfigError: the file cannot be written.
    """
    done = [r for r in results if not r.error]
    rows = [r.row() for r in done]
    mean = means(rows)
    names = [r.name for r in done]
    methods = {
        "re-ranked": "recall_at_1",
        "binary only": "recall_at_1_binary",
        **{key.upper(): key for key in baselines},
        **{name: name for name in compared},
    }
    decisions = {"precision": "precision_percent", "revisits closed": "closed_percent"}
    head, *table = table_of(results, baselines, compared)
    failed = "".join(f" {r.name} failed: {r.error}." for r in results if r.error)
    _write(
        path,
        title=f"{len(done)} image sets",
        subtitle=f"{info.name}, fingerprint {info.fingerprint[:12]}. {machine}.",
        cards=[
            ("mean R@1", _percent(mean.get("recall_at_1"))),
            ("mean precision of closures", _percent(mean.get("precision_percent"))),
            ("mean revisits closed", _percent(mean.get("closed_percent"))),
        ],
        plots=[
            (title, plots.bars(names, {k: [r[c] for r in rows] for k, c in chosen.items()}, label))
            for title, chosen, label in (
                ("R@1", methods, "R@1 (%)"),
                ("Loop closures at the defaults", decisions, "percent"),
            )
        ],
        galleries=[],
        tables=[
            {
                "title": "All sets",
                "head": head,
                "rows": table,
                "note": f"{SUITE_NOTE}{failed}",
            }
        ],
        settings={"engine": dataclasses.asdict(info), "machine": machine, **settings},
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mistakes(ablation: Ablation, way: Way) -> list[dict[str, Any]]:
    """The surest of its wrong matches, and what would have been right."""
    judged = way.right(ablation.positives)
    wrong = [i for i, right in enumerate(judged) if way.ranked[i] and not right]
    wrong.sort(key=lambda i: -way.scores[i])
    pairs = []
    for i in wrong[:_GALLERY]:
        right = ablation.positives[i]
        correct = max(right, key=lambda r: ablation.similarity[i, r]) if right else None
        images = [ablation.task.queries[i], ablation.task.references[way.ranked[i][0]]]
        if correct is not None:
            images.append(ablation.task.references[correct])
        what = "no reference shows it" if correct is None else f"right would be {correct}"
        pairs.append(
            {
                "images": [_jpeg(read_image(p)) for p in images],
                "kind": "wrong",
                "caption": f"query {i} matched reference {way.ranked[i][0]} with probability "
                f"{way.scores[i]:.3f}; {what}",
            }
        )
    return [
        {
            "title": f"The worst mistakes of {way.label}: query, match, right place",
            "none": "None was made.",
            "pairs": pairs,
        }
    ]


def _write(
    path: Path,
    *,
    cards: Sequence[tuple[str, Any]],
    plots: Sequence[tuple[str, str]],
    settings: dict[str, Any],
    **content: Any,
) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    html = environment.get_template("report.html.j2").render(
        cards=[{"label": label, "value": value} for label, value in cards],
        plots=[{"title": title, "svg": svg} for title, svg in plots],
        settings=json.dumps(settings, indent=2, default=str),
        **content,
    )
    with replacing(path) as temporary:
        temporary.write_text(html)


def _galleries(run: RunResult) -> list[dict[str, Any]]:
    wrong = [a for a in run.answers if a.accepted and a.right is False]
    near = [a for a in run.answers if not a.accepted and a.right is False and a.match_id]
    right = [a for a in run.answers if a.accepted and a.right]
    wrong.sort(key=lambda a: -a.probability)
    near.sort(key=lambda a: -a.probability)
    spread = [right[i] for i in np.linspace(0, len(right) - 1, 6).astype(int)] if right else []
    return [
        {"title": "Wrong closures", "none": "None was accepted.", "pairs": _pairs(run, wrong)},
        {
            "title": "The worst mistakes that were held back",
            "none": "None was made.",
            "pairs": _pairs(run, near),
        },
        {
            "title": "Some right closures",
            "none": "None was accepted.",
            "pairs": _pairs(run, spread),
        },
    ]


def _pairs(run: RunResult, answers: list[Answer]) -> list[dict[str, Any]]:
    pairs = []
    shown = answers[:_GALLERY]
    queries = run.query_images([a.stamp_ns for a in shown])
    matches = run.match_images([a.match_id for a in shown])
    for a in shown:
        query, match = queries.get(a.stamp_ns), matches.get(a.match_id)
        if query is None or match is None:
            continue
        pairs.append(
            {
                "images": [_jpeg(query), _jpeg(match)],
                "kind": "right" if a.right else "wrong",
                "caption": f"{a.stamp_ns / 1e9:.1f} s matched place {a.match_id}: similarity "
                f"{a.similarity:.2f}, probability {a.probability:.3f}, "
                f"{a.reason.replace('_', ' ')}",
            }
        )
    return pairs


def _jpeg(rgb: NDArray[np.uint8]) -> str:
    height, width = rgb.shape[:2]
    size = (_IMAGE_WIDTH, max(1, round(height * _IMAGE_WIDTH / width)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    return base64.b64encode(data.tobytes()).decode()


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"
