"""Timings of search, re-ranking and engine beside the bare library calls, in one process.

Both sides take turns, query by query, after a warm-up: what else the machine does meets both.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.errors import ConfigError, MapError
from hashvpr_ros.evaluation.metrics import median_p95
from hashvpr_ros.map.index_backends import raw_faiss_search
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.rerank import rerank
from hashvpr_ros.types import CODE_BITS, CODE_BYTES, Descriptor

_CHUNK = 5000  # places added at a time
_WARM_UP = 20
_FLIPPED_BITS = 60  # between a query and its place, as between two views of one place
# Bits that change for good from one place of a drive to the next, and bits that are each view's
# own: neighbours then differ by 47, places 5 and 10 apart by 76 and 105, as the lite model's codes
# of keyframes do (49, 87 and 107 on the rendered course).
_WALK_BITS, _VIEW_BITS = 8, 20
_DRIVE_PLACES = 10_000  # then another drive begins elsewhere


class PlaceMaker:
    """Codes and features of places that are none.

    Args:
        scattered: codes that have nothing to do with one another; else those of drives, on which
            neighbouring places look alike, so that candidates come in runs, as in real maps.
    """

    def __init__(
        self, feature_dim: int, rng: np.random.Generator, scattered: bool = False
    ) -> None:
        self._dim, self._rng, self._scattered = feature_dim, rng, scattered
        self._bits = np.zeros(CODE_BITS, np.uint8)
        self._made = 0

    def make(self, count: int) -> list[NewPlace]:
        """The next places, one a second."""
        codes, features = self._codes(count), unit_features(count, self._dim, self._rng)
        first = self._made
        self._made += count
        return [
            NewPlace("camera", (first + i) * 10**9, None, Descriptor(codes[i], features[i]))
            for i in range(count)
        ]

    def _codes(self, count: int) -> NDArray[np.uint8]:
        if self._scattered:
            return self._rng.integers(0, 256, (count, CODE_BYTES), np.uint8)
        changes = self._some_bits(count, _WALK_BITS)
        elsewhere = (np.arange(self._made, self._made + count) % _DRIVE_PLACES) == 0
        changes[elsewhere] = self._some_bits(int(elsewhere.sum()), CODE_BITS // 2)
        changes[0] ^= self._bits
        walk = np.bitwise_xor.accumulate(changes, axis=0)
        self._bits = walk[-1]
        return np.packbits(walk ^ self._some_bits(count, _VIEW_BITS), axis=1)

    def _some_bits(self, count: int, of_each: int) -> NDArray[np.uint8]:
        return (self._rng.random((count, CODE_BITS), np.float32) < of_each / CODE_BITS).astype(
            np.uint8
        )


def unit_features(count: int, feature_dim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random directions, float32 [count, D]."""
    features = rng.standard_normal((count, feature_dim), np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def fill(
    place_map: PlaceMap,
    places: int,
    maker: PlaceMaker,
    progress: Callable[[int], object] = lambda n: None,
) -> None:
    """Add places until the map holds `places`."""
    while (held := len(place_map)) < places:
        count = min(_CHUNK, places - held)
        place_map.add_many(maker.make(count))
        place_map.flush()
        progress(count)


def bench_search(
    sizes: Sequence[int],
    *,
    feature_dim: int = 512,
    top_k: int = 100,
    queries: int = 200,
    scattered: bool = False,
    progress: Callable[[int], object] = lambda n: None,
) -> list[dict[str, Any]]:
    """Search and re-ranking in a real map file beside a bare `faiss.IndexBinaryFlat.search`.

    Args:
        sizes: places in the map, ascending; a million take about 1.2 GB of the temporary folder.
        scattered: see `PlaceMaker`; the worst case, for the features of the candidates lie
            scattered over the file.
        progress: called with the number of places that were added.

    Returns:
        a row per size: times in ms as median and p95, `ratio` of the medians of search plus
        re-ranking to the bare search, bytes a place in memory and on disk.

    Raises:
        ConfigError: a size below 1. MapError: the map cannot be written, as on a full disk.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] < 1 or top_k < 1 or queries < 1:
        raise ConfigError("sizes, top-k and queries must be at least 1")
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hashvpr_bench") as folder:
        path = Path(folder) / "bench.vprmap"
        maker = PlaceMaker(feature_dim, rng, scattered)
        with PlaceMap.open(path, "00" * 32, feature_dim) as place_map:
            for size in sizes:
                fill(place_map, size, maker, progress)
                row = _search_row(place_map, top_k, queries, rng)
                row["bytes_per_place"] = {
                    "resident": place_map.index_bytes_per_place,
                    "stored": round(place_map.file_bytes / size, 1),
                }
                rows.append(row)
    return rows


def _search_row(
    place_map: PlaceMap, top_k: int, queries: int, rng: np.random.Generator
) -> dict[str, Any]:
    codes = place_map.codes()
    bare = raw_faiss_search(codes, min(top_k, len(codes)))
    times: dict[str, list[float]] = {"bare": [], "search": [], "rerank": []}
    for turn in range(_WARM_UP + queries):
        code = _seen_again(codes[rng.integers(len(codes))], rng)
        feature = unit_features(1, place_map.feature_dim, rng)[0]
        # Who comes second finds the codes in the cache, where they fit: they take turns at it.
        bare_ms = _timed(partial(bare, code)) if turn % 2 else 0.0
        marks = [time.perf_counter()]
        ids, distances = place_map.search(code, top_k)
        marks.append(time.perf_counter())
        rerank(place_map, ids, distances, feature)
        marks.append(time.perf_counter())
        bare_ms = bare_ms or _timed(partial(bare, code))
        if turn >= _WARM_UP:
            times["bare"].append(bare_ms)
            times["search"].append(1e3 * (marks[1] - marks[0]))
            times["rerank"].append(1e3 * (marks[2] - marks[1]))
    both = (np.array(times["search"]) + times["rerank"]).tolist()
    return {
        "places": len(codes),
        "top_k": top_k,
        "bare_search_ms": median_p95(times["bare"]),
        "search_ms": median_p95(times["search"]),
        "rerank_ms": median_p95(times["rerank"]),
        "search_and_rerank_ms": median_p95(both),
        "ratio": round(float(np.median(both) / np.median(times["bare"])), 3),
    }


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def _seen_again(code: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    bits = np.unpackbits(code)
    bits[rng.choice(len(bits), _FLIPPED_BITS, replace=False)] ^= 1
    return np.packbits(bits)


def bench_engine(
    engine: DescriptorEngine,
    bare: Callable[[NDArray[np.uint8]], None],
    batches: Sequence[int],
    *,
    seconds: float = 3.0,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """An engine beside the bare call of its runtime.

    Args:
        bare: runs a batch, uint8 [N, H, W, 3], by the runtime alone.
        batches: sizes N.
        seconds: spent on each size, at least.
        progress: called after each size.

    Returns:
        a row per size: ms per call as median and p95, ms per image, and the ratio of the medians.

    Raises:
        ConfigError: a size below 1. EngineError: the model takes no such batch.
    """
    if not batches or min(batches) < 1:
        raise ConfigError("batch sizes must be at least 1")
    rng = np.random.default_rng(0)
    rows = []
    for size in sorted(set(batches)):
        shape = (size, engine.info.height, engine.info.width, 3)
        images = rng.integers(0, 256, shape, np.uint8)

        times: dict[str, list[float]] = {"engine": [], "bare": []}
        calls: tuple[tuple[str, Callable[[NDArray[np.uint8]], object]], ...] = (
            ("engine", engine.describe),
            ("bare", bare),
        )
        until = 0.0
        while time.perf_counter() < until or len(times["engine"]) < _WARM_UP:
            for name, call in calls:
                times[name].append(_timed(partial(call, images)))
            if not until and len(times["engine"]) >= 3:
                times = {"engine": [], "bare": []}
                until = time.perf_counter() + seconds
        median = float(np.median(times["engine"]))
        rows.append(
            {
                "batch": size,
                "engine_ms": median_p95(times["engine"]),
                "bare_ms": median_p95(times["bare"]),
                "engine_ms_per_image": round(median / size, 3),
                "ratio": round(median / float(np.median(times["bare"])), 3),
            }
        )
        progress()
    return rows


def check_room(places: int, feature_dim: int) -> None:
    """Refuse a size for which the temporary folder has no room.

    Raises:
        MapError: too little free space.
    """
    folder = tempfile.gettempdir()
    needed, free = places * (2 * feature_dim + 250), shutil.disk_usage(folder).free
    if needed > free:
        raise MapError(
            f"{folder}: {free / 1e9:.1f} GB are free, a map of {places} places takes "
            f"{needed / 1e9:.1f} GB; set TMPDIR to another folder or give smaller --sizes"
        )
