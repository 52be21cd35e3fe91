"""One self-contained HTML file for a run."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.evaluation import plots
from hashvpr_ros.evaluation.run_result import Answer, RunResult

_GALLERY = 9
_IMAGE_WIDTH = 240
_OVERALL = "published to answered, median"


def write_report(run: RunResult, path: Path, machine: str) -> None:
    """Write the report of a run.

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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    html = environment.get_template("report.html.j2").render(
        title=run.title,
        subtitle=f"{summary['images_answered']} of {summary['images_played']} images answered, "
        f"{summary['revisits']} of them show a place of the map. {machine}.",
        cards=[
            {"label": label, "value": value}
            for label, value in (
                ("recall@1, single images", _percent(summary["recall_at_1"])),
                ("precision of accepted closures", _percent(summary["closure_precision"])),
                ("revisits closed", _percent(summary["closure_recall"])),
                ("closures accepted", summary["closures_accepted"]),
                ("images lost", summary["images_lost"]),
                (_OVERALL if live else "engine, median", f"{overall['median']:.1f} ms"),
            )
        ],
        plots=[{"title": title, "svg": svg} for title, svg in drawn],
        galleries=_galleries(run),
        latency=[{"name": k.replace("_", " "), **v} for k, v in latency.items()],
        reasons=Counter(a.reason.replace("_", " ") for a in run.answers).most_common(),
        settings=json.dumps({**run.settings, "machine": machine}, indent=2),
    )
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(html)
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written: {e.strerror}; check the folder") from e


def _galleries(run: RunResult) -> list[dict[str, Any]]:
    wrong = [a for a in run.answers if a.accepted and not a.right]
    near = [a for a in run.answers if not a.accepted and not a.right and a.match_id]
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


def _pairs(run: RunResult, answers: list[Answer]) -> list[dict[str, str]]:
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
                "query": _jpeg(query),
                "match": _jpeg(match),
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
