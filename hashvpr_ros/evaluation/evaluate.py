"""Recall, loop closures and latency of an engine on real images, by the code that a robot runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.drive import DriveFolder
from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import describe_batch, describe_image, resize
from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.evaluation import closures
from hashvpr_ros.evaluation.metrics import median_p95, recall_at
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.evaluation.run_result import Answer
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.local import KeyframeLocals
from hashvpr_ros.matching.recognizer import thumbnail_jpeg
from hashvpr_ros.matching.rerank import rerank, rerank_locally
from hashvpr_ros.types import Descriptor

# Re-ranking 100 of 111 references would be float search under another name.
SMALL_MAP, SMALL_TOP_K = 1000, 20
KS = (1, 5, 10, 20, 100)
_DEPTH = max(KS)
_WARM_UP = 5


@dataclass(frozen=True)
class Task:
    """What is searched for what. The references of a drive are its images."""

    queries: list[Path]
    references: list[Path]
    positives: list[set[int]]  # of each query: the references that recall counts as correct
    # What a loop closure of the query may match; for two traverses, the positives.
    correct: list[set[int]]
    middles: list[set[int]]  # the same without tolerance
    revisits: list[bool]  # of each query: whether the map holds its place
    # Number of references that may be found for each query, the first ones; None: all.
    allowed: list[int] | None = None

    @property
    def is_drive(self) -> bool:
        """Whether the queries are the references, each searched for among earlier ones."""
        return self.allowed is not None

    @property
    def images(self) -> int:
        """Number of different images."""
        return len(self.queries) + (0 if self.is_drive else len(self.references))

    def without(self, queries: Set[int], references: Set[int]) -> Task:
        """The same without some images, given by their indices; of a drive, by both.

        Raises:
            DatasetError: no query or no reference is left, or none that is correct.
        """
        if not queries and not references:
            return self
        kept = [i for i in range(len(self.queries)) if i not in queries]
        left = [j for j in range(len(self.references)) if j not in references]
        index = {j: new for new, j in enumerate(left)}

        def moved(sets: list[set[int]]) -> list[set[int]]:
            return [{index[j] for j in sets[i] if j in index} for i in kept]

        positives = moved(self.positives)
        if not kept or not left:
            raise DatasetError("no image of the data set can be read; replace them")
        if not self.is_drive:
            _require_ground_truth(positives, "of the images that can be read, ")
        return Task(
            [self.queries[i] for i in kept],
            [self.references[j] for j in left],
            positives,
            moved(self.correct),
            moved(self.middles),
            [self.revisits[i] for i in kept],
            None if self.allowed is None else self.allowed[: len(kept)],
        )


def task_of(dataset: Traverses | DriveFolder, tolerance: int = 0) -> Task:
    """What an evaluation does with a dataset.

    On a drive, a query is searched for among the earlier images that are at least
    `matching.exclude_recent_s` older, where images are 1 s apart.

    Raises:
        ConfigError: the tolerance is negative, or the layout takes none.
        DatasetError: no query of two traverses has a correct reference.
    """
    if tolerance < 0:
        raise ConfigError(f"the tolerance is {tolerance}; give at least 0")
    if not isinstance(dataset, DriveFolder):
        positives = dataset.positives(tolerance)
        _require_ground_truth(positives)
        middles = dataset.positives() if tolerance else positives
        revisits = [bool(p) for p in positives]
        return Task(dataset.queries, dataset.references, positives, positives, middles, revisits)
    recent_ns = round(Config().matching.exclude_recent_s * 1e9)
    # Of the images up to the newest that is old enough; Python rounds -1 // 10 down, too.
    allowed = [
        max(0, 1 + closures.index_of(closures.stamp_of(i) - recent_ns))
        for i in range(len(dataset.images))
    ]
    earlier = dataset.earlier(tolerance)
    return Task(
        queries=dataset.images,
        references=dataset.images,
        positives=[
            {j for j in right if j < count} for right, count in zip(earlier, allowed, strict=True)
        ],
        correct=earlier,
        middles=dataset.earlier(),
        revisits=dataset.revisits(),
        allowed=allowed,
    )


def _require_ground_truth(positives: Sequence[set[int]], which: str = "") -> None:
    if not any(positives):
        raise DatasetError(
            f"{which}none of {len(positives)} queries has a correct reference, so nothing can be "
            "measured; correct the ground truth"
        )


def ground_truth(positives: Sequence[set[int]]) -> dict[str, Any]:
    """What recall counts: the key `ground_truth` of `hashvpr evaluate`.

    Returns:
        `queries`; `with_correct_reference`, those that recall counts; `left_out`, the others;
        `median_correct_references` of those that count, None without any.
    """
    counts = [len(p) for p in positives if p]
    return {
        "queries": len(positives),
        "with_correct_reference": len(counts),
        "left_out": len(positives) - len(counts),
        "median_correct_references": statistics.median(counts) if counts else None,
    }


def of_all_queries(recall: Mapping[str, float], positives: Sequence[set[int]]) -> dict[str, float]:
    """Recall as the published benchmarks count it: over all queries, also those left out here.

    Args:
        recall: in percent of the queries with a correct reference.
        positives: correct references of each query.
    """
    share = sum(bool(p) for p in positives) / max(len(positives), 1)
    return {k: share * value for k, value in recall.items()}


@dataclass(frozen=True)
class Evaluation:
    """Rankings, answers and timings of all queries; indices are those of the references."""

    hash_ranked: list[list[int]]
    float_ranked: list[list[int]]
    rerank_ranked: list[list[int]]
    rerank_similarity: list[float]  # of the best, for each query; NaN where nothing was found
    task: Task
    top_k: int
    answers: list[Answer]  # of the node's recognizer, judged
    times_ms: dict[str, list[float]]
    bytes_resident: float
    bytes_stored: float
    skipped: list[str]  # why images were left out, one line each

    @property
    def positives(self) -> list[set[int]]:
        """Correct references of each query."""
        return self.task.positives

    def summary(self) -> dict[str, Any]:
        """The JSON of `hashvpr evaluate`; a recall is NaN where no query has a reference."""
        ranked = {
            "hash": self.hash_ranked,
            "float": self.float_ranked,
            "rerank": self.rerank_ranked,
        }
        recall = {key: recall_at(found, self.positives, KS) for key, found in ranked.items()}
        return {
            "queries": len(self.positives),
            "references": len(self.task.references),
            "images": self.task.images,
            "images_left_out": len(self.skipped),
            "ground_truth": ground_truth(self.positives),
            "top_k": self.top_k,
            "recall": recall,
            "recall_of_all_queries": {
                key: of_all_queries(values, self.positives) for key, values in recall.items()
            },
            "closures": closures.closures(self.answers, self.task.middles),
            "calibration": closures.calibration(self.answers),
            "latency_ms": {k: median_p95(v) for k, v in self.times_ms.items()},
            "bytes_per_place": {
                "resident": round(self.bytes_resident, 1),
                "stored": round(self.bytes_stored, 1),
            },
        }


def evaluate(
    dataset: Traverses | DriveFolder,
    engine: DescriptorEngine,
    *,
    top_k: int | None = None,
    tolerance: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Describe each image once, search for each query, then play the queries to the recognizer.

    Images that cannot be read are left out.

    Two traverses: the references are the map. A drive: each query is searched for in the images
    before the recent past (see `task_of`), and the recognizer runs in mode slam.

    Args:
        top_k: candidates re-ranked; None is 100, or 20 for fewer than 1,000 references. The
            recognizer always runs at its defaults.
        tolerance: references within so many indices of a correct one count as correct.
        progress: called after each image.

    Raises:
        DatasetError: no query has a correct reference among the images that can be read.
        ConfigError: top_k or tolerance out of range.
    """
    task = task_of(dataset, tolerance)
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top-k is {top_k}; give at least 1")
    info = engine.info
    described = _Described(engine, progress)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.vprmap"
        with PlaceMap.open(path, info.fingerprint, info.feature_dim) as place_map:
            skipped = Skipped()
            for i, reference in enumerate(task.references):
                with skipped.leaving_out(i):
                    image, descriptor = described.describe(reference, query=task.is_drive)
                    place_map.add_many([_place(image, len(place_map), descriptor)])
            references = set(skipped.indices)
            place_map.flush()
            if task.is_drive:
                task = task.without(references, references)
            else:
                skipped.indices.clear()
                for i, query in enumerate(task.queries):
                    with skipped.leaving_out(i):
                        described.describe(query, query=True)
                task = task.without(skipped.indices, references)
            top_k = candidates_to_rerank(task.references, top_k)
            local = KeyframeLocals(engine, place_map)
            ranked = _search(task, place_map, local, described.queries, top_k)
            recorded = RecordedEngine(
                info,
                np.array([q.code for q in described.queries]),
                np.array([q.feature for q in described.queries]),
            )
            if task.is_drive:
                answers = closures.drive(recorded, task.correct, task.revisits)
            else:
                answers = closures.localize(place_map, recorded, task.correct)
            resident = place_map.index_bytes_per_place
        stored = path.stat().st_size / max(len(task.references), 1)
    return Evaluation(
        *ranked[:4],
        task=task,
        top_k=top_k,
        answers=answers,
        times_ms={**described.times_ms, **ranked[4]},
        bytes_resident=resident,
        bytes_stored=stored,
        skipped=skipped.lines,
    )


@dataclass
class Skipped:
    """Images of a data set that cannot be read."""

    indices: set[int] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)  # why, one of each

    @contextmanager
    def leaving_out(self, index: int) -> Iterator[None]:
        """Where the block cannot read its image, note it and go on."""
        try:
            yield
        except DatasetError as e:
            self.indices.add(index)
            self.lines.append(str(e))


def images_of(dataset: Traverses | DriveFolder) -> int:
    """The number of images that an evaluation describes."""
    if isinstance(dataset, DriveFolder):
        return len(dataset.images)
    return len(dataset.queries) + len(dataset.references)


def candidates_to_rerank(references: Sequence[Path], top_k: int | None) -> int:
    """The number that is asked for; None is 100, or 20 for fewer than 1,000 references."""
    if top_k is not None:
        return top_k
    return SMALL_TOP_K if len(references) < SMALL_MAP else Config().matching.top_k


def place_of(path: Path, index: int, engine: DescriptorEngine) -> NewPlace:
    """An image file as a place of a map, with a thumbnail of the usual size.

    Args:
        index: of the image in its traverse, which gives the stamp.

    Raises:
        DatasetError: it cannot be read.
    """
    image = read_image(path)
    return _place(image, index, describe_image(engine, image))


def _place(image: NDArray[np.uint8], index: int, descriptor: Descriptor) -> NewPlace:
    thumbnail = thumbnail_jpeg(image, Config().map.thumbnail_px)
    return NewPlace("camera", closures.stamp_of(index), None, descriptor, thumbnail)


class _Described:
    """Describes images one at a time, and keeps the descriptors and times of the queries."""

    def __init__(self, engine: DescriptorEngine, progress: Callable[[], None]) -> None:
        self._engine, self._progress = engine, progress
        self.queries: list[Descriptor] = []
        self.times_ms: dict[str, list[float]] = {"preprocess": [], "engine": []}

    def describe(self, path: Path, *, query: bool) -> tuple[NDArray[np.uint8], Descriptor]:
        """Image and descriptor of a file."""
        image = read_image(path)
        info = self._engine.info
        started = time.perf_counter()
        batch = resize(image, info.height, info.width)[np.newaxis]
        resized = time.perf_counter()
        descriptor = describe_batch(self._engine, batch)[0]
        finished = time.perf_counter()
        if query:
            self.queries.append(descriptor)
            self.times_ms["preprocess"].append(1e3 * (resized - started))
            self.times_ms["engine"].append(1e3 * (finished - resized))
        self._progress()
        return image, descriptor


def _search(
    task: Task,
    place_map: PlaceMap,
    local: KeyframeLocals,
    queries: Sequence[Descriptor],
    top_k: int,
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[float], dict[str, list[float]]]:
    """Rankings by hash, by float and re-ranked, best similarities, and times, of the queries."""
    held = place_map.features(place_map.ids())
    hash_ranked, float_ranked, rerank_ranked = [], [], []
    best: list[float] = []
    times: dict[str, list[float]] = {"search": [], "rerank": []}
    # The first queries run twice: the time that they take before anything is warm is not counted.
    for counted, i in _with_warm_up(len(queries)):
        query = queries[i]
        allowed = len(held) if task.allowed is None else task.allowed[i]
        started = time.perf_counter()
        ids, distances = place_map.search(
            query.code,
            max(top_k, _DEPTH),
            exclude_session=place_map.session,
            exclude_after_ns=None if task.allowed is None else closures.stamp_of(allowed - 1),
        )
        ids, distances, rest = ids[:top_k], distances[:top_k], ids[top_k:]
        searched = time.perf_counter()
        order, similarities = rerank(place_map, ids, distances, query.feature)
        order = order[rerank_locally(local, ids[order], similarities[order], query)]
        reranked = time.perf_counter()
        if not counted:
            continue
        times["search"].append(1e3 * (searched - started))
        times["rerank"].append(1e3 * (reranked - searched))
        # Ids count from 1 in the order of the references.
        hash_ranked.append([int(v) - 1 for v in (*ids, *rest)][:_DEPTH])
        rerank_ranked.append([int(v) - 1 for v in (*ids[order], *rest)][:_DEPTH])
        exhaustive = np.argsort(-(held[:allowed] @ query.feature), kind="stable")[:_DEPTH]
        float_ranked.append(exhaustive.tolist())
        best.append(float(similarities[order[0]]) if len(order) else float("nan"))
    return hash_ranked, float_ranked, rerank_ranked, best, times


def _with_warm_up(count: int) -> list[tuple[bool, int]]:
    return [(False, i) for i in range(min(count, _WARM_UP))] + [(True, i) for i in range(count)]
