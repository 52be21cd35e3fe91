"""What each index back end finds and costs, on made-up codes with the statistics of real ones.

Each measurement runs in a process of its own, so that what it holds in memory is its own.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.evaluation.metrics import median_p95
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.types import CODE_BITS, CODE_BYTES

# With these, codes 1, 5, 10 and 20 keyframes apart on a drive differ by 58, 98, 118 and 130 bits,
# those of other drives by 134 (standard deviation 16), and a query from its place by 69. Codes of
# the lite model of rendered courses, 0.5 m a keyframe: 56, 98, 116, 128; 135 (17); 60 in another
# light.
_HALF_LIFE_KEYFRAMES = 4.8
_VIEW_NOISE, _QUERY_NOISE = 0.26, 0.66
_DRIVE_KEYFRAMES = 10_000
_MOST_DRIVES = 1000  # side by side in memory
_CHUNK = 50_000
_WARM_UP = 20
_ADDED = 256  # one at a time, as a robot does


@dataclass(frozen=True)
class CodeModel:
    """Bits as thresholds of a Gaussian vector, with the means and correlations of given codes."""

    thresholds: NDArray[np.float32]  # [512]
    mixing: NDArray[np.float32]  # [512, 512]: independent normal numbers to correlated ones

    @classmethod
    def fit(cls, codes: NDArray[np.uint8]) -> CodeModel:
        """Fit to codes, uint8 [n, 64].

        The correlation of the Gaussian vector is the sine of that of the bits, which is exact for
        bits that are set as often as not.
        """
        bits = np.unpackbits(codes, axis=1).astype(np.float64)
        share = np.clip(bits.mean(axis=0), 0.5 / len(bits), 1 - 0.5 / len(bits))
        spread = np.maximum(bits.std(axis=0), 1e-6)
        correlation = np.sin(np.pi / 2 * (np.cov(bits.T) / np.outer(spread, spread)).clip(-1, 1))
        np.fill_diagonal(correlation, 1.0)
        values, vectors = np.linalg.eigh(correlation)
        mixing = vectors * np.sqrt(np.maximum(values, 1e-3))
        mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
        thresholds = np.array([NormalDist().inv_cdf(float(p)) for p in share])
        return cls(thresholds.astype(np.float32), mixing.astype(np.float32))

    def drives(
        self, count: int, queries: int, path: Path, progress: Callable[[int], object]
    ) -> NDArray[np.uint8]:
        """Write codes of drives to a .npy file, uint8 [count, 64].

        Along a drive the vector is a first-order autoregressive process: it forgets where it was
        with a half-life of some keyframes.

        Returns:
            queries, [queries, 64]: other views of some of the places.
        """
        rng = np.random.default_rng(0)
        drives = int(np.clip(count // _DRIVE_KEYFRAMES, min(16, count), _MOST_DRIVES))
        steps = -(-count // drives)
        asked = np.sort(rng.choice(count, queries, replace=count < queries))
        out = np.lib.format.open_memmap(path, "w+", np.uint8, (count, CODE_BYTES))
        found = np.empty((queries, CODE_BYTES), np.uint8)
        stay = 0.5 ** (1 / _HALF_LIFE_KEYFRAMES)
        vector = self._vectors(drives, rng)
        for step in range(steps):
            rows = np.arange(drives) * steps + step
            there = rows < count
            out[rows[there]] = self._seen(vector, _VIEW_NOISE, rng)[there]
            for i in np.flatnonzero(asked % steps == step):
                place = vector[[asked[i] // steps]]
                found[i] = self._seen(place, _QUERY_NOISE, rng)[0]
            vector *= np.float32(stay)
            vector += np.float32(np.sqrt(1 - stay**2)) * self._vectors(drives, rng)
            progress(int(there.sum()))
        out.flush()
        return found

    def _vectors(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        return rng.standard_normal((count, CODE_BITS), np.float32) @ self.mixing.T

    def _seen(
        self, vectors: NDArray[np.float32], noise: float, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Codes of views of places."""
        own = rng.standard_normal(vectors.shape, np.float32)
        seen = np.float32(np.sqrt(1 - noise**2)) * vectors + np.float32(noise) * own
        return np.packbits(seen + self.thresholds > 0, axis=1)


def uniform_codes(
    count: int, queries: int, path: Path, progress: Callable[[int], object]
) -> NDArray[np.uint8]:
    """As `CodeModel.drives`, but all bits random: what no model gives, and the worst case."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (count, CODE_BYTES))
    for begin in range(0, count, _CHUNK):
        part = out[begin : begin + _CHUNK]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
        progress(len(part))
    out.flush()
    places = out[rng.choice(count, queries, replace=count < queries)]
    flipped = rng.random((queries, CODE_BITS)) < 70 / CODE_BITS
    return np.bitwise_xor(places, np.packbits(flipped, axis=1))


def measure_kinds(
    path: Path, queries: NDArray[np.uint8], kinds: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    """Measure back ends on one file of codes, each in a process of its own.

    Args:
        path: .npy file, uint8 [n, 64].
        queries: uint8 [q, 64].
        kinds: as parameter `map.index` has them.

    Returns:
        a row for each kind: `index` in use, `recall` against exact in percent and `recall_10` of
        the first ten, `search_ms` as median and p95, `add_ms` the mean of one addition and
        `add_worst_ms`, `build_s`, `bytes_per_code` resident.

    Raises:
        ConfigError: a kind that cannot be had here, or no room in memory.
    """
    exact = _alone(path, queries, "exact", top_k)
    rows = []
    for kind in kinds:
        row = exact if kind == "exact" else _alone(path, queries, kind, top_k)
        found, nearest = row["distances"], exact["distances"]
        row = {k: v for k, v in row.items() if k != "distances"}
        recalls = {"recall_10": _recall(found, nearest, 10), "recall": _recall(found, nearest)}
        rows.append({"kind": kind, **recalls, **row})
    return rows


def _recall(found: NDArray[np.int32], exact: NDArray[np.int32], first: int | None = None) -> float:
    """Share of the nearest that were found, percent.

    Many codes are equally far: each that is as near as the last of the exact answer is right.
    """
    nearest = exact[:, :first]
    return round(100.0 * float((found[:, :first] <= nearest[:, -1:]).mean()), 2)


def _alone(path: Path, queries: NDArray[np.uint8], kind: str, top_k: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure, path, queries, kind, top_k).result()
        except multiprocessing.ProcessError as e:
            raise ConfigError(f"index {kind}: the process that measured it died: {e}") from e


def _measure(path: Path, queries: NDArray[np.uint8], kind: str, top_k: int) -> dict[str, Any]:
    codes = np.load(path, mmap_mode="r")
    count = len(codes)
    HammingIndex(kind).build()  # what FAISS allocates once is not the index's
    before = _resident()
    index = HammingIndex(kind)
    index.reserve(count + _ADDED)
    for begin in range(0, count, _CHUNK):
        _add(index, codes[begin : begin + _CHUNK])
    started = time.perf_counter()
    index.build()
    build_s = time.perf_counter() - started
    held = _resident() - before
    times = []
    distances = np.full((len(queries), min(top_k, count)), CODE_BITS + 1, np.int32)
    for code in queries[:_WARM_UP]:
        index.search(code, top_k)
    for i, code in enumerate(queries):
        started = time.perf_counter()
        _, found = index.search(code, top_k)
        times.append(1e3 * (time.perf_counter() - started))
        distances[i, : len(found)] = found
    added = []
    for i in range(_ADDED):
        started = time.perf_counter()
        _add(index, queries[[i % len(queries)]])
        added.append(1e3 * (time.perf_counter() - started))
    return {
        "index": index.in_use,
        "search_ms": median_p95(times),
        "add_ms": round(float(np.mean(added)), 4),
        "add_worst_ms": round(max(added), 2),
        "build_s": round(build_s, 2),
        "bytes_per_code": round(held / count, 1),
        "distances": distances,
    }


def _add(index: HammingIndex, codes: NDArray[np.uint8]) -> None:
    numbers = np.arange(len(index) + 1, len(index) + len(codes) + 1)
    session = np.ones(len(codes), np.int32)
    index.add(codes, numbers.astype(np.int32), session, numbers * 10**9)


def _resident() -> int:
    """Bytes of memory that are this process's own, files that it has mapped left out."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/self/status: has no RssAnon; measure on Linux")
