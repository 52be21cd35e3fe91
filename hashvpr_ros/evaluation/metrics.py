"""Measures of retrieval and of loop closures. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def recall_at(
    ranked: Sequence[Sequence[int]], positives: Sequence[set[int]], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Percent of queries with a correct reference among the first k.

    Args:
        ranked: for each query, reference indices, best first.
        positives: for each query, its correct references. Queries without any are not counted.

    Returns:
        k as text -> percent; NaN where no query has a correct reference.
    """
    counted = [(r, p) for r, p in zip(ranked, positives, strict=True) if p]
    if not counted:
        return {str(k): float("nan") for k in ks}
    return {
        str(k): 100.0 * sum(any(i in p for i in r[:k]) for r, p in counted) / len(counted)
        for k in ks
    }


def median_p95(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, as the benchmarks print them; NaN without values."""
    if not len(values):
        return {"median": float("nan"), "p95": float("nan")}
    median, p95 = np.percentile(np.asarray(values, float), [50, 95])
    return {"median": round(float(median), 4), "p95": round(float(p95), 4)}


def precision_recall(
    scores: Sequence[float], right: Sequence[bool], possible: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall as the threshold falls through the scores.

    Args:
        scores: of the best match of each query.
        right: whether that match is right.
        possible: queries that have a right match at all; recall counts against them.

    Returns:
        thresholds, precision and recall, one for each distinct score, highest first.
    """
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    sorted_scores = np.asarray(scores, float)[order]
    hits = np.cumsum(np.asarray(right, bool)[order])
    if not len(order):
        empty = np.empty(0)
        return empty, empty, empty
    last = np.append(np.diff(sorted_scores) != 0, True)  # equal scores fall together
    taken = np.arange(1, len(order) + 1)[last]
    return sorted_scores[last], hits[last] / taken, hits[last] / max(possible, 1)


def average_precision(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Area under the precision-recall steps; 0 without any."""
    if not len(recall):
        return 0.0
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
