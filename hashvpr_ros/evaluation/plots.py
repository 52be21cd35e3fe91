"""All plots: the only module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.evaluation.ablation import Ablation, Way
from hashvpr_ros.evaluation.audit import Audit
from hashvpr_ros.evaluation.evaluate import KS
from hashvpr_ros.evaluation.metrics import precision_recall
from hashvpr_ros.evaluation.metrics import reliability as reliability_bins
from hashvpr_ros.evaluation.run_result import Answer, RunResult
from hashvpr_ros.types import Keyframe

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RIGHT, WRONG, QUIET, INK = "#2a9d5c", "#d1495b", "#b9c0c9", "#26313f"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#5b6673",
    "ytick.color": "#5b6673",
    "axes.grid": True,
    "grid.color": "#e7eaee",
    "figure.dpi": 110,
    "svg.fonttype": "none",
}


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def trajectory(run: RunResult) -> str:
    """The course from above with accepted closures, right and wrong, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 5))
        points = np.array([run.query_position[s] for s in sorted(run.query_position)])
        axes.plot(points[:, 0], points[:, 1], color=QUIET, lw=1.2, zorder=1)
        for answer in run.answers:
            here, there = run.query_position.get(answer.stamp_ns), run.match_position(answer)
            if not answer.accepted or here is None or there is None:
                continue
            colour = {True: RIGHT, False: WRONG, None: QUIET}[answer.right]
            axes.plot(*zip(here, there, strict=True), color=colour, lw=1.0, zorder=2)
            axes.plot(*here, ".", color=colour, ms=5, zorder=3)
        _legend(axes)
        axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
        return _svg(figure)


def matches(run: RunResult) -> str:
    """Matched keyframe against query, in the order of time, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 5))
        for kind, colour, size in (
            ("rejected", QUIET, 8),
            ("unknown", INK, 14),
            ("right", RIGHT, 14),
            ("wrong", WRONG, 26),
        ):
            chosen = [
                (i, a.match_id)
                for i, a in enumerate(run.answers)
                if a.match_id and kind == _kind(a)
            ]
            if chosen:
                axes.scatter(*zip(*chosen, strict=True), s=size, color=colour, linewidths=0)
        _legend(axes, of_all=True)
        axes.set(xlabel="query image", ylabel="best keyframe of the map")
        return _svg(figure)


def _kind(answer: Answer) -> str:
    if not answer.accepted:
        return "rejected"
    return {True: "right", False: "wrong", None: "unknown"}[answer.right]


def _legend(axes: Any, of_all: bool = False) -> None:
    handles = [
        plt.Line2D([], [], marker="o", ls="", color=RIGHT, label="right closure"),
        plt.Line2D([], [], marker="o", ls="", color=WRONG, label="wrong closure"),
    ]
    if of_all:
        handles += [
            plt.Line2D([], [], marker="o", ls="", color=INK, label="closure without ground truth"),
            plt.Line2D([], [], marker="o", ls="", color=QUIET, label="not accepted"),
        ]
    axes.legend(handles=handles, frameon=False, loc="best")


def precision_recall_curve(run: RunResult) -> str:
    """Precision against recall as the probability falls, and the point of operation, as SVG."""
    matched = [a for a in run.answers if a.match_id and a.right is not None]
    summary = run.summary()
    _, precision, recall = precision_recall(
        [a.probability for a in matched],
        [bool(a.right) for a in matched],
        summary["revisits_judged"],
    )
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4))
        axes.plot(recall * 100, precision * 100, color=INK, lw=1.8, label="by probability")
        if summary["closure_precision"] is not None and summary["closure_recall"] is not None:
            axes.plot(
                summary["closure_recall"],
                summary["closure_precision"],
                "o",
                color=RIGHT,
                ms=9,
                label="accepted closures",
            )
        axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 102), ylim=(0, 104))
        axes.legend(frameon=False, loc="lower left")
        return _svg(figure)


def latency(run: RunResult) -> str:
    """Histogram of the time from publishing to answer, and of the engine alone, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4))
        engine = [a.times_ms["engine"] for a in run.answers]
        longest = float(np.percentile(run.end_to_end_ms or engine or [1.0], 99)) * 1.1
        bins = np.linspace(0, longest, 50)
        if run.end_to_end_ms:
            axes.hist(
                np.clip(run.end_to_end_ms, 0, longest),
                bins,
                color="#7aa6c2",
                label="image published to answer received",
            )
        axes.hist(
            np.clip(engine, 0, longest), bins, color="#e09f3e", alpha=0.8, label="network alone"
        )
        axes.set(xlabel="ms", ylabel="images")
        axes.legend(frameon=False)
        return _svg(figure)


def recall_curves(ways: dict[str, dict[str, Any]]) -> str:
    """Recall at K of every way of an ablation's summary, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.4))
        for way in ways.values():
            axes.plot(KS, [way["recall"][str(k)] for k in KS], "o-", ms=3, label=way["label"])
        axes.set(xlabel="K", ylabel="recall at K (%)", xscale="log", ylim=(None, 101))
        axes.set_xticks(KS, [str(k) for k in KS])
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        return _svg(figure)


def precision_recall_curves(ablation: Ablation) -> str:
    """Precision against recall of every way, as its scores fall, as SVG."""
    possible = sum(bool(p) for p in ablation.positives)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.4))
        for way in ablation.ways:
            right = way.right(ablation.positives)
            _, precision, recall = precision_recall(way.scores, right, possible)
            axes.plot(recall * 100, precision * 100, lw=1.4, label=way.label)
        axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 102), ylim=(0, 104))
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        return _svg(figure)


def similarity(ablation: Ablation, way: Way) -> str:
    """The float similarity of all images with the closures that a way accepted, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 5))
        axes.grid(False)
        shades = axes.imshow(ablation.similarity, cmap="Greys", aspect="auto", rasterized=True)
        figure.colorbar(shades, ax=axes, label="cosine", fraction=0.045)
        right = way.right(ablation.positives)
        for wanted, colour in ((True, RIGHT), (False, WRONG)):
            taken = [
                (way.ranked[i][0], i)
                for i, accepted in enumerate(way.accepted or ())
                if accepted and right[i] is wanted
            ]
            if taken:
                axes.scatter(*zip(*taken, strict=True), s=8, color=colour, linewidths=0)
        _legend(axes)
        axes.set(xlabel="reference", ylabel="query")
        return _svg(figure)


def reliability(ablation: Ablation, way: Way) -> str:
    """The share of right matches against the probability that was given, as SVG."""
    mean, share, count = reliability_bins(way.scores, way.right(ablation.positives))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.4))
        axes.plot([0, 1], [0, 1], "--", color=QUIET, lw=1)
        filled = count > 0
        axes.scatter(mean[filled], share[filled], s=8 + 3 * np.sqrt(count[filled]) * 4, color=INK)
        axes.set(xlabel="probability given", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.04))
        return _svg(figure)


def way_latency(ways: Sequence[Way]) -> str:
    """Median and 95th percentile of the time a query takes in each way, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.4))
        medians, late = np.array([np.percentile(w.times_ms, [50, 95]) for w in ways]).T
        rows = np.arange(len(ways))
        axes.hlines(rows, medians, late, color=QUIET)
        axes.plot(medians, rows, "o", color=INK, ms=5, label="median")
        axes.plot(late, rows, "|", color=INK, ms=9, label="p95")
        axes.set_yticks(rows, [w.label for w in ways], fontsize=8)
        axes.legend(frameon=False, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="ms a query", xscale="log")
        return _svg(figure)


def bars(groups: Sequence[str], series: dict[str, Sequence[float | None]], label: str) -> str:
    """Horizontal bars of percents, several for each group, as SVG; None is an empty place.

    Args:
        groups: from top to bottom.
        series: by the name in the legend, a value for each group.
        label: of the axis.
    """
    with plt.rc_context(_STYLE):
        height = 0.8 / len(series)
        figure, axes = plt.subplots(figsize=(6, 1.2 + 0.18 * len(groups) * (1 + len(series))))
        rows = np.arange(len(groups))
        for i, (name, values) in enumerate(series.items()):
            lengths = [0.0 if v is None else v for v in values]
            axes.barh(rows + (i + 0.5) * height - 0.4, lengths, height, label=name)
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(rows, groups)
        axes.set(xlabel=label, xlim=(0, 101))
        axes.invert_yaxis()
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12),
                    ncols=3)  # fmt: skip
        return _svg(figure)


def alike(path: Path, found: Audit, keyframes: Sequence[Keyframe]) -> None:
    """Pairs of stretches that look alike, written as PNG or SVG by suffix.

    On the map from above where its keyframes have poses, else by keyframe id.
    """
    positions = {k.id: k.pose.position_m[:2] for k in keyframes if k.pose is not None}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 6))
        if positions:
            axes.plot(*zip(*positions.values(), strict=True), ".", ms=2, color=QUIET)
            for pair in found.pairs:
                a, b = positions.get(pair.first.id), positions.get(pair.second.id)
                if a is not None and b is not None:
                    axes.plot(*zip(a, b, strict=True), color=WRONG, lw=0.8, alpha=0.6)
            axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
        else:
            for pair in found.pairs:
                axes.plot(pair.first.id, pair.second.id, ".", color=WRONG)
            axes.set(xlabel="keyframe", ylabel="looks like keyframe")
        axes.set_title(f"{found.alike} of {found.keyframes} keyframes have a double elsewhere")
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def bench(path: Path, search: Sequence[dict[str, Any]], engine: Sequence[dict[str, Any]]) -> None:
    """Search against map size and engine against batch size, written as PNG or SVG by suffix."""
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
        if search:
            places = [row["places"] for row in search]
            for key, label, style in (
                ("bare_search_ms", "FAISS alone", "o--"),
                ("search_ms", "search", "o-"),
                ("search_and_rerank_ms", "search and re-ranking", "o-"),
            ):
                left.plot(places, [row[key]["median"] for row in search], style, label=label)
            left.set(xlabel="places in the map", ylabel="ms a query, median")
            left.set(xscale="log", yscale="log")
            left.legend(frameon=False)
        if engine:
            batches = [row["batch"] for row in engine]
            for key, label, style in (
                ("bare_ms", "runtime alone", "o--"),
                ("engine_ms", "engine", "o-"),
            ):
                per_image = [row[key]["median"] / row["batch"] for row in engine]
                right.plot(batches, per_image, style, label=label)
            right.set(xlabel="images a batch", ylabel="ms an image, median", ylim=(0, None))
            right.set_xticks(batches)
            right.legend(frameon=False)
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def training_cost(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Time and peak memory of a training step in each way, written as PNG or SVG by suffix."""
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), sharey=True)
        labels = [row["label"] for row in rows]
        colors = [RIGHT if row["way"] in ("side", "cached") else "#7aa6c2" for row in rows]
        for axes, values, unit in (
            (left, [row["step_s"]["median"] for row in rows], "s a step, median"),
            (right, [row["peak_mb"] for row in rows], "MB, peak above the start"),
        ):
            bars = axes.barh(labels, values, color=colors)
            axes.bar_label(bars, [f"{v:.3g}" if v < 10 else f"{v:.0f}" for v in values], padding=3)
            axes.set(xlabel=unit, xlim=(0, 1.15 * max(*values, 1e-9)))
        left.invert_yaxis()
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def views(path: Path, images: Sequence[tuple[str, NDArray[np.uint8] | None]], title: str) -> None:
    """Pictures side by side with their titles, written as PNG or SVG by suffix.

    Args:
        images: title and RGB, uint8 [H, W, 3]; None where there is no picture.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(images), figsize=(3.4 * len(images), 3.2), squeeze=False
        )
        for panel, (name, rgb) in zip(axes[0], images, strict=True):
            panel.set_axis_off()
            panel.set_title(name, fontsize=9)
            if rgb is None:
                panel.text(0.5, 0.5, "no picture\n(--map, --images)", ha="center", va="center")
            else:
                panel.imshow(rgb)
        figure.suptitle(title)
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
