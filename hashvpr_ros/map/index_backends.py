"""FAISS: the exact scan, and structures that find near codes without one. No other imports it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.types import CODE_BITS, CODE_BYTES

Nearest = tuple[NDArray[np.int64], NDArray[np.int32]]  # rows and distances in bits

# Fewer codes are scanned in 0.1 ms, and train centroids by which much is missed.
MIN_IVF = 50_000
# With 16 links and 40 looked at for building, a search takes 15 % less time and finds 57 % instead
# of 84 % of the nearest 100 in a million codes of drives, which come in clumps.
_LINKS = 32  # of each code in the graph of HNSW; twice as many on its lowest level
_EXPANSION = 80  # codes looked at for a place in the graph
_LOOKED_AT = 400  # at least, by a search of the graph
_TRAINING_PER_LIST = 64  # codes; more cost time and gain next to nothing


class Structure(Protocol):
    """Finds near codes among the first rows of a map; what it returns may be approximate."""

    @property
    def name(self) -> str:
        """As the parameter `map.index` has it."""
        ...

    @property
    def nbytes(self) -> int:
        """Resident memory, in bytes."""
        ...

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row."""
        ...

    def __len__(self) -> int: ...

    def add(self, codes: NDArray[np.uint8]) -> None:
        """Append rows, uint8 [m, 64]."""
        ...

    def search(self, code: NDArray[np.uint8], k: int) -> Nearest:
        """Near rows, [<=k] each; fewer than k also where it has more rows."""
        ...


def check(kind: str) -> None:
    """Raise ConfigError where an index of a kind cannot be had here."""
    if kind != "gpu":
        return
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        raise ConfigError(
            "map.index gpu: the installed faiss cannot use a GPU; install a faiss-gpu, or set "
            "map.index to exact"
        )
    if faiss.get_num_gpus() < 1:
        raise ConfigError("map.index gpu: faiss finds no GPU; set map.index to exact")


def build(kind: str, codes: NDArray[np.uint8]) -> Structure | None:
    """The structure that a map of these codes is searched by; None: it is scanned."""
    if kind == "exact" or (kind == "ivf" and len(codes) < MIN_IVF):
        return None
    return _KINDS[kind](codes)


class Hnsw:
    """A graph of neighbours (Malkov and Yashunin, arXiv:1603.09320), built as codes come."""

    name = "hnsw"
    # Code, links on the lowest level and on those above (1 in `_LINKS` codes is on the next), the
    # place of its links, its level.
    bytes_per_row = CODE_BYTES + 4 * (2 * _LINKS + 1) + 8 + 4

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._index = faiss.IndexBinaryHNSW(CODE_BITS, _LINKS)
        self._index.hnsw.efConstruction = _EXPANSION
        self._index.add(codes)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        return len(self) * self.bytes_per_row

    def add(self, codes: NDArray[np.uint8]) -> None:
        self._index.add(codes)

    def search(self, code: NDArray[np.uint8], k: int) -> Nearest:
        self._index.hnsw.efSearch = max(2 * k, _LOOKED_AT)
        return _ask(self._index, code, k)


class Ivf:
    """Lists of codes by the nearest of some centroids, of which the nearest lists are scanned."""

    name = "ivf"
    bytes_per_row = CODE_BYTES + 8  # code and row number

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        lists = 1 << round(math.log2(math.sqrt(len(codes))))
        self._quantizer = faiss.IndexBinaryFlat(CODE_BITS)  # not owned by the index
        self._index = faiss.IndexBinaryIVF(self._quantizer, CODE_BITS, lists)
        self._index.nprobe = max(16, lists // 8)
        sample = _TRAINING_PER_LIST * lists
        if len(codes) > sample:
            rows = np.random.default_rng(0).choice(len(codes), sample, replace=False)
            self._index.train(codes[np.sort(rows)])
        else:
            self._index.train(codes)
        self._index.add(codes)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        return len(self) * self.bytes_per_row + int(self._index.nlist) * CODE_BYTES

    def add(self, codes: NDArray[np.uint8]) -> None:
        self._index.add(codes)

    def search(self, code: NDArray[np.uint8], k: int) -> Nearest:
        return _ask(self._index, code, k)


class Gpu:
    """An exact scan by a GPU. It has never run: nothing of this project has had a GPU."""

    name = "gpu"
    bytes_per_row = 0  # of the computer's memory; CODE_BYTES of the GPU's
    nbytes = 0

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._resources = faiss.StandardGpuResources()  # must outlive the index
        self._index = faiss.GpuIndexBinaryFlat(self._resources, CODE_BITS)
        self.add(codes)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, codes: NDArray[np.uint8]) -> None:
        if len(codes):
            self._index.add(codes)

    def search(self, code: NDArray[np.uint8], k: int) -> Nearest:
        return _ask(self._index, code, min(k, 2048))  # the most that it can find


_KINDS: dict[str, Callable[[NDArray[np.uint8]], Structure]] = {
    "hnsw": Hnsw,
    "ivf": Ivf,
    "gpu": Gpu,
}


def _ask(index: Any, code: NDArray[np.uint8], k: int) -> Nearest:
    k = min(k, int(index.ntotal))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    with _one_thread():
        distances, rows = index.search(code.reshape(1, -1), k)
    found = rows[0] >= 0  # -1: no more were found
    return rows[0][found], distances[0][found]


def scan(code: NDArray[np.uint8], codes: NDArray[np.uint8], k: int) -> Nearest:
    """Rows and distances of the k nearest of all codes, in no order among equals."""
    k = min(k, len(codes))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    with _one_thread():
        distances, rows = faiss.knn_hamming(code.reshape(1, -1), codes, k)
    return rows[0], distances[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let FAISS work in the calling thread alone.

    It shares queries out to threads, and here is one query: a second thread would only be waited
    for, 10 ms where the other cores are busy. The number is the calling thread's own.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def raw_faiss_search(codes: NDArray[np.uint8], k: int) -> Callable[[NDArray[np.uint8]], None]:
    """A bare `IndexBinaryFlat` over the codes, for benchmarks to stand beside.

    On one thread too, which is its best for one query.

    Returns:
        a function that searches one code, uint8 [64], and drops the answer.
    """
    index = faiss.IndexBinaryFlat(CODE_BITS)
    index.add(np.ascontiguousarray(codes))

    def search(code: NDArray[np.uint8]) -> None:
        with _one_thread():
            index.search(code.reshape(1, -1), k)

    return search
