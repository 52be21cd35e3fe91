"""Measures of retrieval, of loop closures and of probabilities. numpy only.

`evaluation.bootstrap` gives their intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Rank of a correct reference that was not found: beyond every k, so that `first < k` is the hit.
MISSED = int(np.iinfo(np.int64).max)


def first_hit(ranked: Sequence[Sequence[int]], positives: Sequence[set[int]]) -> NDArray[np.int64]:
    """Rank of the first correct reference of each query that has one.

    The share of `first_hit(...) < k` is recall@k, and that of `first[i] < k` recall@k of the
    queries i of a resample.

    Args:
        ranked: for each query, reference indices, best first.
        positives: for each query, its correct references. Queries without any are left out.

    Returns:
        int64 [queries with a correct reference], 0 for the best; MISSED where no reference of the
        list is correct.

    Raises:
        ValueError: ranked and positives are not of the same queries.
    """
    return np.array(
        [
            next((rank for rank, i in enumerate(r) if i in p), MISSED)
            for r, p in zip(ranked, positives, strict=True)
            if p
        ],
        np.int64,
    )


def recall_at(
    ranked: Sequence[Sequence[int]], positives: Sequence[set[int]], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Percent of queries with a correct reference among the first k.

    Args:
        ranked: for each query, reference indices, best first. A list shorter than k counts with
            what it holds, so they should be as deep as the largest k.
        positives: for each query, its correct references. Queries without any are not counted.

    Returns:
        k as text -> percent; NaN where no query has a correct reference.

    Raises:
        ValueError: ranked and positives are not of the same queries.
    """
    first = first_hit(ranked, positives)
    if not len(first):
        return {str(k): float("nan") for k in ks}
    return {str(k): 100.0 * int(np.count_nonzero(first < k)) / len(first) for k in ks}


def median_p95(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, as the benchmarks print them; NaN without values."""
    if not len(values):
        return {"median": float("nan"), "p95": float("nan")}
    median, p95 = np.percentile(np.asarray(values, float), [50, 95])
    return {"median": round(float(median), 4), "p95": round(float(p95), 4)}


def precision_recall(
    scores: ArrayLike, right: ArrayLike, possible: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall as the threshold falls through the scores.

    A query whose place is not in the map enters like any other, with the score of what it matched
    and `right` False; `possible` does not count it. So from its score down it costs precision, and
    never recall. A query that matched nothing has no score: it is left out of `scores`, but counts
    in `possible` where the map holds its place.

    Args:
        scores: of the best match of each query, [n].
        right: whether that match is right, [n].
        possible: queries that have a right match at all; recall counts against them.

    Returns:
        thresholds, precision and recall, one for each distinct score, highest first; precision and
        recall from 0 to 1.
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


def recall_at_precision(
    precision: NDArray[np.float64], recall: NDArray[np.float64], least: float
) -> float:
    """Highest recall of the points whose precision is at least so much; 0 where there is none.

    Precision may fall below and come back: the last point that reaches it counts. With least = 1
    it is the recall at 100 % precision, the standard measure for loop closures, since a single
    wrong one can ruin a map (Cummins and Newman, FAB-MAP, IJRR 2008).

    Args:
        precision, recall: of the points of a curve, as of `precision_recall`.
        least: precision from 0 to 1.

    Raises:
        ValueError: least is not from 0 to 1.
    """
    if not 0.0 <= least <= 1.0:
        raise ValueError(f"a precision is from 0 to 1, not {least}")
    return float(np.max(recall[precision >= least], initial=0.0))


def reliability(
    probabilities: ArrayLike, right: ArrayLike, bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Predicted against observed: the points of a reliability diagram.

    The bins are of equal width, as where they come from (Guo et al., On Calibration of Modern
    Neural Networks, ICML 2017, section 2). Those of equal mass would part equal probabilities by
    their order, and the many near 0 and 1 are as good as equal; they would also move with each
    resample of a bootstrap.

    Args:
        probabilities: that the match of a query is right, 0 to 1, [n].
        right: whether it is, [n]; False where the map does not hold the place.
        bins: in which the probabilities fall; an upper edge belongs to its bin.

    Returns:
        mean probability float64 [bins], share right float64 [bins] and number of queries int64
        [bins]; the first two are NaN where a bin is empty.

    Raises:
        ValueError: arrays of different shapes, a probability not from 0 to 1, or bins below 1.
    """
    if bins < 1:
        raise ValueError(f"at least 1 bin is needed, not {bins}")
    predicted, observed = _forecasts(probabilities, right)
    bin_of = np.searchsorted(np.arange(1, bins) / bins, predicted)
    count = np.bincount(bin_of, minlength=bins)
    # 0 / 0 is the NaN of an empty bin.
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_of, predicted, bins) / count
        share = np.bincount(bin_of, observed, bins) / count
    return mean, share, count


def expected_calibration_error(
    probabilities: ArrayLike, right: ArrayLike, bins: int = 10
) -> float:
    """Mean distance of predicted from observed over the bins, weighted by their queries.

    0 is calibrated; NaN without queries. Chance alone moves each bin away from its prediction, so
    with few queries it is too large (Roelofs et al., Mitigating Bias in Calibration Error
    Estimation, AISTATS 2022), and the resamples of a bootstrap more so: compare it at equal
    numbers of queries, and beside the Brier score.

    Args:
        probabilities, right, bins: as of `reliability`.

    Raises:
        ValueError: see `reliability`.
    """
    mean, share, count = reliability(probabilities, right, bins)
    if not count.any():
        return float("nan")
    return float(np.nansum(count * np.abs(share - mean)) / count.sum())


def brier(probabilities: ArrayLike, right: ArrayLike) -> float:
    """Mean squared error of the probabilities, 0 to 1; NaN without queries.

    Of the right outcome alone, as is usual today: half of what Brier (Verification of Forecasts
    Expressed in Terms of Probability, Monthly Weather Review 1950) sums over both outcomes.

    Args:
        probabilities, right: as of `reliability`.

    Raises:
        ValueError: arrays of different shapes, or a probability not from 0 to 1.
    """
    predicted, observed = _forecasts(probabilities, right)
    return float(np.mean((predicted - observed) ** 2)) if len(predicted) else float("nan")


def _forecasts(
    probabilities: ArrayLike, right: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, observed = np.asarray(probabilities, float), np.asarray(right, bool).astype(float)
    # numpy would repeat a single outcome for all.
    if predicted.ndim != 1 or predicted.shape != observed.shape:
        raise ValueError(
            f"one outcome for each probability is needed, not {observed.shape} for "
            f"{predicted.shape}"
        )
    if not ((predicted >= 0.0) & (predicted <= 1.0)).all():
        raise ValueError("a probability is not from 0 to 1")
    return predicted, observed
