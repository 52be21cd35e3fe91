"""Recall and latency of an engine on two traverses, by the code that a robot runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import describe_image, resize
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.evaluation.metrics import median_p95, recall_at
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.recognizer import thumbnail_jpeg
from hashvpr_ros.matching.rerank import rerank

# Re-ranking 100 of 111 references would be float search under another name.
SMALL_MAP, SMALL_TOP_K = 1000, 20
KS = (1, 5, 10, 20, 100)
_DEPTH = max(KS)
_WARM_UP = 5


@dataclass(frozen=True)
class Evaluation:
    """Rankings and timings of all queries; indices are those of the references."""

    hash_ranked: list[list[int]]
    float_ranked: list[list[int]]
    rerank_ranked: list[list[int]]
    rerank_similarity: list[float]  # of the best, for each query
    positives: list[set[int]]
    references: int
    top_k: int
    times_ms: dict[str, list[float]]
    bytes_resident: float
    bytes_stored: float

    def summary(self) -> dict[str, object]:
        """The JSON of `hashvpr evaluate`; a recall is NaN where no query has a reference."""
        return {
            "queries": len(self.positives),
            "references": self.references,
            "top_k": self.top_k,
            "recall": {
                "hash": recall_at(self.hash_ranked, self.positives, KS),
                "float": recall_at(self.float_ranked, self.positives, KS),
                "rerank": recall_at(self.rerank_ranked, self.positives, KS),
            },
            "latency_ms": {k: median_p95(v) for k, v in self.times_ms.items()},
            "bytes_per_place": {
                "resident": round(self.bytes_resident, 1),
                "stored": round(self.bytes_stored, 1),
            },
        }


def evaluate(
    dataset: Traverses,
    engine: DescriptorEngine,
    *,
    top_k: int | None = None,
    tolerance: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Describe the references into a map, then query it image by image.

    Args:
        top_k: candidates re-ranked; None is 100, or 20 for fewer than 1,000 references.
        tolerance: references within so many indices of a correct one count as correct.
        progress: called after each image.

    Raises:
        DatasetError: an image cannot be read. ConfigError: top_k or tolerance out of range.
    """
    top_k = candidates_to_rerank(dataset, top_k)
    if top_k < 1 or tolerance < 0:
        raise ConfigError("top-k must be at least 1 and the tolerance at least 0")
    positives = dataset.positives(tolerance)
    info = engine.info
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.vprmap"
        with PlaceMap.open(path, info.fingerprint, info.feature_dim) as place_map:
            for i, reference in enumerate(dataset.references):
                place_map.add_many([place_of(reference, i, engine)])
                progress()
            place_map.flush()
            ids = place_map.ids()
            features = place_map.features(ids)
            run = _query(dataset, engine, place_map, features, top_k, progress)
            resident = place_map.index_bytes_per_place
        stored = path.stat().st_size / max(len(ids), 1)
    return Evaluation(
        *run[:4],
        positives=positives,
        references=len(dataset.references),
        top_k=top_k,
        times_ms=run[4],
        bytes_resident=resident,
        bytes_stored=stored,
    )


def candidates_to_rerank(dataset: Traverses, top_k: int | None) -> int:
    """What is asked for; None is 100, or 20 for fewer than 1,000 references."""
    if top_k is not None:
        return top_k
    return SMALL_TOP_K if len(dataset.references) < SMALL_MAP else Config().matching.top_k


def place_of(path: Path, second: int, engine: DescriptorEngine) -> NewPlace:
    """An image file as a place of a map, with a thumbnail of the usual size.

    Raises:
        DatasetError: it cannot be read.
    """
    image = read_image(path)
    thumbnail = thumbnail_jpeg(image, Config().map.thumbnail_px)
    return NewPlace("camera", second * 10**9, None, describe_image(engine, image), thumbnail)


def _query(
    dataset: Traverses,
    engine: DescriptorEngine,
    place_map: PlaceMap,
    features: NDArray[np.float32],
    top_k: int,
    progress: Callable[[], None],
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[float], dict[str, list[float]]]:
    info = engine.info
    hash_ranked, float_ranked, rerank_ranked = [], [], []
    best: list[float] = []
    times: dict[str, list[float]] = {k: [] for k in ("preprocess", "engine", "search", "rerank")}
    # The first queries run twice: what they take before anything is warm is not counted.
    for counted, path in _with_warm_up(dataset.queries):
        image = read_image(path)
        marks = [time.perf_counter()]
        batch = resize(image, info.height, info.width)[np.newaxis]
        marks.append(time.perf_counter())
        codes, query = engine.describe(batch)
        marks.append(time.perf_counter())
        ids, distances = place_map.search(codes[0], max(top_k, _DEPTH))
        ids, distances, rest = ids[:top_k], distances[:top_k], ids[top_k:]
        marks.append(time.perf_counter())
        order, similarities = rerank(place_map, ids, distances, query[0])
        marks.append(time.perf_counter())
        if not counted:
            continue
        for name, begin, end in zip(times, marks, marks[1:], strict=False):
            times[name].append(1e3 * (end - begin))
        # Ids count from 1 in the order of the references.
        hash_ranked.append([int(v) - 1 for v in (*ids, *rest)][:_DEPTH])
        rerank_ranked.append([int(v) - 1 for v in (*ids[order], *rest)][:_DEPTH])
        exhaustive = np.argsort(-(features @ query[0]), kind="stable")[:_DEPTH]
        float_ranked.append(exhaustive.tolist())
        best.append(float(similarities[order[0]]))
        progress()
    return hash_ranked, float_ranked, rerank_ranked, best, times


def _with_warm_up(paths: Sequence[Path]) -> list[tuple[bool, Path]]:
    return [(False, p) for p in paths[:_WARM_UP]] + [(True, p) for p in paths]
