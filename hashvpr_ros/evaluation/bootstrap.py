"""Intervals of measures, by resampling the queries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set

import numpy as np
from numpy.typing import ArrayLike, NDArray

# With fewer, the resamples are too similar to show the spread.
LEAST_BLOCKS = 4


def block_length(positives: Sequence[Set[int]]) -> int | None:
    """Length of the blocks that `interval` should draw for these queries.

    Consecutive queries that share a correct reference show the same place, so they mostly hit or
    miss together. For each reference, the runs of consecutive queries that it is correct for are
    counted. A block is twice as long as the median run, so that it spans the time for which one
    place is in view. Where most references are correct for one query only, queries are
    independent, and a block is one query.

    Args:
        positives: for each query in order, its correct references.

    Returns:
        the length in queries, at most a quarter of the queries, so that at least 4 blocks remain.
        None where a quarter of the queries is shorter than the median run: then the queries show
        too few places for an interval.
    """
    runs: list[int] = []
    current: dict[int, int] = {}
    for right in positives:
        runs += [length for i, length in current.items() if i not in right]
        current = {i: current.get(i, 0) + 1 for i in right}
    runs += current.values()
    run = float(np.median(runs)) if runs else 1.0
    longest = len(positives) // LEAST_BLOCKS
    if longest < run:
        return None
    return min(round(2 * run), longest) if run > 1 else 1


def interval(
    statistic: Callable[[NDArray[np.int64]], ArrayLike],
    n: int,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    block: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap of a measure over queries (Efron and Tibshirani 1993, chapter 13).

    Consecutive images of a drive are hits or misses together, and resampled one by one they would
    look like more evidence than they are. With a block above 1, runs of that many neighbours are
    drawn instead (moving blocks: Künsch, The Jackknife and the Bootstrap for General Stationary
    Observations, Annals of Statistics 1989); a block should span several times what one place is
    in view for.

    Two measures need care. A recall at 100 % precision hangs on the one best wrong match, which
    a third of all resamples lack: its interval shows how it swings, and holds the true value less
    often than the level says. A calibration error grows with the noise of resampling: its interval
    lies too high, and may leave out the error itself.

    Args:
        statistic: the measure of the queries of an index array int64 [n], in which an index may
            occur several times. With the ranks of `metrics.first_hit`, recall@5 is
            `lambda i: (first[i] < 5).mean()`. One that gives several numbers has each resample
            drawn, and what they share computed, once.
        n: number of queries, numbered in the order in which they were taken.
        level: share of repetitions whose interval should hold the true value, between 0 and 1.
        samples: number of resamples.
        seed: equal seeds draw equal resamples, whatever the statistic.
        block: length of the runs in queries.

    Returns:
        lower and upper end, in the shape of the statistic. Resamples whose statistic is NaN are
        left out; NaN, NaN where all are. Fewer than two blocks of queries leave nothing to tell
        the spread by: a single NaN, NaN.

    Raises:
        ValueError: level not between 0 and 1, or samples or block below 1.
    """
    if not 0.0 < level < 1.0 or samples < 1 or block < 1:
        raise ValueError(
            f"a level is between 0 and 1, not {level}; samples and block are at least 1, not "
            f"{samples} and {block}"
        )
    if n < 2 * block:
        return np.array(np.nan), np.array(np.nan)
    random = np.random.default_rng(seed)
    blocks = -(-n // block)
    run = np.arange(block)
    values = []
    for _ in range(samples):
        starts = random.integers(n - block + 1, size=(blocks, 1))
        values.append(statistic((starts + run).ravel()[:n]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        ends = [(1 - level) / 2, (1 + level) / 2]
        lower, upper = np.nanquantile(np.array(values, float), ends, axis=0)
    return lower, upper
