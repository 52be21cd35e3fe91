"""Every way of finding places beside one another, on one description of the images.

SelaVPR++ (Lu et al., TPAMI 2026) compares code alone, float alone, and code re-ranked by float;
here on the user's data, with what this package adds over time, and with what does without a
network.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashvpr_ros.config import Config, from_flat
from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import describe_image
from hashvpr_ros.evaluation.baselines import BASELINES, evaluate_baseline
from hashvpr_ros.evaluation.bootstrap import LEAST_BLOCKS, block_length, interval
from hashvpr_ros.evaluation.evaluate import (
    KS,
    Skipped,
    Task,
    ground_truth,
    of_all_queries,
    place_of,
    task_of,
)
from hashvpr_ros.evaluation.metrics import (
    average_precision,
    brier,
    expected_calibration_error,
    first_hit,
    median_p95,
    precision_recall,
    recall_at_precision,
)
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.map.files import size_of
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode

TOP_KS = (10, 50, 100)
_TEMPORAL = {"sequence": "+ sequence", "filter": "+ filter", "both": "+ sequence and filter"}
_WARM_UP = 5


@dataclass(frozen=True)
class Way:
    """What one way of finding places came to; indices are those of the references."""

    key: str
    label: str
    ranked: list[list[int]]  # of each query, best first, at most 100
    scores: list[float]  # of each query's best
    times_ms: list[float]  # of each query, without the network
    bytes_resident: float  # a place
    bytes_stored: float
    accepted: list[bool] | None = None  # as loop closures, where the way decides
    is_probability: bool = False  # whether scores are

    def right(self, positives: Sequence[set[int]]) -> list[bool]:
        """Whether each query's best is one of its correct references."""
        return [
            bool(ranked) and ranked[0] in correct
            for ranked, correct in zip(self.ranked, positives, strict=True)
        ]


@dataclass(frozen=True)
class Ablation:
    """All ways on one data set."""

    ways: list[Way]
    task: Task
    similarity: NDArray[np.float32]  # cosine of the float features, [queries, references]
    network_ms: list[float]  # of each query: resize and network
    skipped: list[str]  # why images were left out, one line each

    @property
    def positives(self) -> list[set[int]]:
        """Correct references of each query."""
        return self.task.positives

    @property
    def default_way(self) -> Way:
        """The way that the node goes at its defaults."""
        return next(way for way in self.ways if way.key == Config().matching.temporal)

    def summary(self) -> dict[str, Any]:
        """The JSON of `hashvpr evaluate --ablate`."""
        return {
            "queries": len(self.positives),
            "references": len(self.task.references),
            "images": self.task.images,
            "images_left_out": len(self.skipped),
            "ground_truth": ground_truth(self.positives),
            "interval_block_queries": block_length(self.positives),
            "network_ms": median_p95(self.network_ms),
            "default_way": self.default_way.key,
            "ways": {way.key: measures(way, self.positives) for way in self.ways},
        }


def measures(way: Way, positives: Sequence[set[int]]) -> dict[str, Any]:
    """All numbers of a way; percent where they are shares, with 95 % bootstrap intervals.

    The bootstrap draws blocks of consecutive queries, see `bootstrap.block_length`. An interval is
    NaN where the queries show too few places for one.

    Args:
        positives: correct references of each query; a query without any shows a place that the map
            does not hold, and whatever it matches is wrong.
    """
    first = first_hit(way.ranked, positives)
    possible = np.array([bool(p) for p in positives])
    right = np.array(way.right(positives))
    scores = np.asarray(way.scores)
    block = block_length(positives)

    def of_the_curve(rows: NDArray[np.intp]) -> list[float]:
        _, precision, recall = precision_recall(
            scores[rows], right[rows], int(possible[rows].sum())
        )
        return [
            average_precision(precision, recall),
            recall_at_precision(precision, recall, 1.0),
            recall_at_precision(precision, recall, 0.99),
        ]

    def recalls(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return (first[rows, np.newaxis] < KS).mean(0)

    recall = {str(k): _percent(float((first < k).mean()) if len(first) else np.nan) for k in KS}
    result: dict[str, Any] = {
        "label": way.label,
        "recall": recall,
        "recall_of_all_queries": of_all_queries(recall, positives),
        "recall_interval": dict(
            zip(map(str, KS), _intervals(recalls, len(first), len(KS), block), strict=True)
        ),
    }
    names = "average_precision", "recall_at_100_precision", "recall_at_99_precision"
    values = of_the_curve(np.arange(len(scores)))
    intervals = _intervals(of_the_curve, len(scores), len(names), block)
    for name, value, ends in zip(names, values, intervals, strict=True):
        result[name], result[f"{name}_interval"] = _percent(value), ends
    if way.is_probability:
        result["calibration_error"] = round(expected_calibration_error(scores, right), 4)
        result["brier"] = round(brier(scores, right), 4)
    if way.accepted is not None:
        taken = np.array(way.accepted, bool)
        result["closures"] = {
            "accepted": int(taken.sum()),
            "precision": _percent(float(right[taken].mean()) if taken.any() else np.nan),
            "recall": _percent(float((taken & right).sum() / max(int(possible.sum()), 1))),
        }
    result["latency_ms"] = median_p95(way.times_ms)
    result["bytes_per_place"] = {
        "resident": round(way.bytes_resident, 1),
        "stored": round(way.bytes_stored, 1),
    }
    return result


def _percent(share: float) -> float:
    return round(100.0 * share, 2)


def _intervals(
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    count: int,
    numbers: int,
    block: int | None,
) -> list[list[float]]:
    """Of each of a statistic's numbers, lower and upper end in percent.

    Args:
        count: queries that the statistic is over; it may leave some out.
        block: queries in a block; None where no interval can be given.
    """
    if block is None or count < LEAST_BLOCKS * block:
        return [[np.nan, np.nan]] * numbers
    ends = np.stack(interval(statistic, count, samples=500, block=block), axis=-1)
    return [[_percent(v) for v in e] for e in np.broadcast_to(ends, (numbers, 2)).tolist()]


def ablate(
    dataset: Traverses,
    engine: DescriptorEngine,
    *,
    tolerance: int = 0,
    baselines: Sequence[str] = tuple(BASELINES),
    progress: Callable[[], None] = lambda: None,
) -> Ablation:
    """Describe all images once, then find the queries' places in every way.

    The queries are taken for consecutive images of one camera, a second apart.

    Args:
        baselines: keys of `baselines.BASELINES`.
        progress: called after each image that is described, by the network or a baseline.

    Raises:
        DatasetError: no query has a correct reference among the images that can be read.
        ConfigError: the tolerance is out of range.
    """
    task = task_of(dataset, tolerance)
    references: list[NewPlace] = []
    bad_references, bad_queries = Skipped(), Skipped()
    for i, path in enumerate(task.references):
        with bad_references.leaving_out(i):
            references.append(place_of(path, len(references), engine))
        progress()
    queries, network_ms = _describe(task.queries, engine, bad_queries, progress)
    task = task.without(bad_queries.indices, bad_references.indices)
    info = engine.info
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ablation.vprmap"
        with PlaceMap.open(path, info.fingerprint, info.feature_dim) as place_map:
            place_map.add_many(references)
            place_map.flush()
            copy = path.with_name("copy.vprmap")  # of the map itself much is in its log still
            keyframes = place_map.copy_to(copy)
            stored = size_of(copy) / max(keyframes, 1)
            sizes = (float(place_map.index_bytes_per_place), stored)
            held = place_map.features(place_map.ids())
            ways = [
                _by_code(place_map, queries[0], sizes),
                _by_float(held, queries[1], sizes),
            ]
            for top_k in TOP_KS:
                label = f"code, re-ranked (k = {top_k})"
                ways.append(
                    _by_recognizer(
                        place_map, engine, queries, sizes, f"rerank_{top_k}", label,
                        {"matching.temporal": "none", "matching.top_k": top_k},
                    )
                )  # fmt: skip
            for temporal, label in _TEMPORAL.items():
                ways.append(
                    _by_recognizer(
                        place_map, engine, queries, sizes, temporal, label,
                        {"matching.temporal": temporal},
                    )
                )  # fmt: skip
            similarity = queries[1] @ held.T
    for key in baselines:
        done = evaluate_baseline(
            BASELINES[key](), task.references, task.queries, max(KS), progress
        )
        size = done.bytes_per_place
        ways.append(Way(key, done.name, done.ranked, done.scores, done.times_ms, size, size))
    skipped = bad_references.lines + bad_queries.lines
    return Ablation(ways, task, similarity, network_ms, skipped)


def _describe(
    paths: Sequence[Path],
    engine: DescriptorEngine,
    skipped: Skipped,
    progress: Callable[[], None],
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.float32]], list[float]]:
    """Codes and features of the images that can be read, and milliseconds of each."""
    descriptors, times = [], []
    for i, path in enumerate(paths):
        with skipped.leaving_out(i):
            image = read_image(path)
            started = time.perf_counter()
            descriptors.append(describe_image(engine, image))
            times.append(1e3 * (time.perf_counter() - started))
        progress()
    codes = np.array([d.code for d in descriptors])
    return (codes, np.array([d.feature for d in descriptors])), times


def _timed(
    find: Callable[[int], tuple[NDArray[np.integer], float]], count: int
) -> tuple[list[list[int]], list[float], list[float]]:
    """Rankings, scores and times of `find` for each query; the first run twice, to be warm."""
    for i in range(min(_WARM_UP, count)):
        find(i)
    ranked, scores, times = [], [], []
    for i in range(count):
        started = time.perf_counter()
        order, score = find(i)
        times.append(1e3 * (time.perf_counter() - started))
        ranked.append(order.tolist())
        scores.append(score)
    return ranked, scores, times


def _by_code(place_map: PlaceMap, codes: NDArray[np.uint8], sizes: tuple[float, float]) -> Way:
    def find(i: int) -> tuple[NDArray[np.integer], float]:
        ids, distances = place_map.search(codes[i], max(KS))
        return ids - 1, -float(distances[0])

    return Way("hash", "code alone", *_timed(find, len(codes)), *sizes)


def _by_float(
    held: NDArray[np.float32], features: NDArray[np.float32], sizes: tuple[float, float]
) -> Way:
    def find(i: int) -> tuple[NDArray[np.integer], float]:
        similarity = held @ features[i]
        order = np.argsort(-similarity, kind="stable")[: max(KS)]
        return order, float(similarity[order[0]])

    resident = float(held.nbytes / len(held))
    return Way("float", "float alone", *_timed(find, len(features)), resident, sizes[1])


def _by_recognizer(
    place_map: PlaceMap,
    engine: DescriptorEngine,
    queries: tuple[NDArray[np.uint8], NDArray[np.float32]],
    sizes: tuple[float, float],
    key: str,
    label: str,
    settings: dict[str, Any],
) -> Way:
    """The very recognizer of the node, in mode localization."""
    temporal = settings["matching.temporal"] != "none"
    recorded = RecordedEngine(engine.info, *queries)
    recognizer = Recognizer(recorded, place_map, from_flat(settings), mode=Mode.LOCALIZATION)
    ranked, scores, times, accepted = [], [], [], []
    for i in range(len(queries[0])):
        decision = recognizer.process(recorded.blank, (i + 1) * 10**9)
        first = [h.keyframe.id - 1 for h in decision.hypotheses]
        rest = [c.keyframe_id - 1 for c in decision.candidates]
        # What is likeliest comes first, then the candidates in the order of their similarity.
        ranked.append(list(dict.fromkeys([*first[:1], *rest]))[: max(KS)])
        best = decision.hypotheses[0] if decision.hypotheses else None
        scores.append(0.0 if best is None else best.probability if temporal else best.similarity)
        times.append(decision.times.matching_ms)
        accepted.append(decision.accepted)
    return Way(
        key, label, ranked, scores, times[_WARM_UP:] or times, *sizes,
        accepted if temporal else None, is_probability=temporal,
    )  # fmt: skip
