"""Approximate back ends beside the exact one, and the GPU's, which has never run."""

import faiss
import numpy as np
import pytest
from map_helpers import descriptor, folder_state, open_map

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.map import index_backends
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.place_map import NewPlace

_N = 6000
KINDS = ["hnsw", "ivf"]


@pytest.fixture(autouse=True)
def small_maps_may_have_lists(monkeypatch):
    """IVF in maps of a size that a test can build."""
    monkeypatch.setattr(index_backends, "MIN_IVF", 2000)


def walk(n, seed=0, flips=16):
    """Codes of a drive: each differs a bit from the one before."""
    rng = np.random.default_rng(seed)
    changes = (rng.random((n, 512)) < flips / 512).astype(np.uint8)
    changes[0] = rng.integers(0, 2, 512)
    return np.packbits(np.bitwise_xor.accumulate(changes, axis=0), axis=1)


def add(index, codes, session=1):
    first = len(index)
    numbers = np.arange(first + 1, first + len(codes) + 1, dtype=np.int32)
    index.add(codes, numbers, np.full(len(codes), session, np.int32), numbers.astype("i8"))


def loaded(kind, codes):
    index = HammingIndex(kind)
    add(index, codes)
    index.build()
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_all_of_the_nearest_are_found_and_they_are_in_order(kind):
    codes = walk(_N)
    exact, index = loaded("exact", codes), loaded(kind, codes)
    assert index.in_use == kind and exact.in_use == "exact"
    found = 0
    flipped = np.packbits(np.random.default_rng(1).random((100, 512)) < 0.05, axis=1)
    for query in codes[::60] ^ flipped:
        ids, distances = index.search(query, 100)
        assert ids.dtype == distances.dtype == np.int32 and len(ids) == len(set(ids)) == 100
        np.testing.assert_array_equal(np.lexsort((ids, distances)), np.arange(100))
        np.testing.assert_array_equal(  # distances are true ones
            distances, np.unpackbits(codes[ids - 1] ^ query, axis=1).sum(axis=1)
        )
        found += int((distances <= exact.search(query, 100)[1][-1]).sum())
    assert found >= 0.9 * 100 * 100


@pytest.mark.parametrize("excluded_rows", [1, 60, 999, 5000, 5990])
@pytest.mark.parametrize("kind", KINDS)
def test_k_remain_whatever_is_excluded(kind, excluded_rows):
    index = loaded(kind, walk(_N))
    after = _N - excluded_rows
    excluded = index.excluded_rows(1, after)
    assert len(excluded) == excluded_rows
    for query in walk(_N)[-200::40]:  # the nearest are all excluded
        for k in (1, 10, 100):
            ids, _ = index.search(query, k, excluded)
            assert len(ids) == min(k, after) and ids.max() <= after


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_structure_finds_too_few_all_rows_are_scanned(kind, monkeypatch):
    codes = walk(_N)
    exact, index = loaded("exact", codes), loaded(kind, codes)
    monkeypatch.setattr(
        type(index._structure), "search", lambda *_: (np.int64([5]), np.int32([1]))
    )
    for got, wanted in zip(index.search(codes[9], 50), exact.search(codes[9], 50), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [*KINDS, "exact"])
def test_what_is_added_one_at_a_time_is_found_at_once(kind):
    codes = walk(_N + 300)
    index = loaded(kind, codes[:_N])
    for row in range(_N, _N + 300):
        add(index, codes[[row]])
        ids, distances = index.search(codes[row], 3)
        assert ids[0] == row + 1 and distances[0] == 0
    for row in range(_N, _N + 300):  # and still, most of them by the structure
        assert index.search(codes[row], 1)[0].tolist() == [row + 1]
    assert len(index) == _N + 300


def test_a_graph_grows_from_an_empty_map():
    index = HammingIndex("hnsw")
    index.build()
    assert len(index.search(walk(1)[0], 5)[0]) == 0
    codes = walk(1000)
    for row in range(1000):
        add(index, codes[[row]])
    found = [index.search(code, 1)[0].tolist() for code in codes]
    assert sum(ids == [i + 1] for i, ids in enumerate(found)) >= 990
    assert len(index._structure) >= 900


def test_a_map_too_small_for_lists_is_searched_exactly_and_says_so(monkeypatch):
    monkeypatch.setattr(index_backends, "MIN_IVF", _N + 1)
    index = loaded("ivf", walk(_N))
    assert index.in_use.startswith("exact (ivf where")
    exact = loaded("exact", walk(_N))
    for got, wanted in zip(
        index.search(walk(1)[0], 50), exact.search(walk(1)[0], 50), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_counts_the_structure(kind):
    index = loaded(kind, walk(_N))
    assert index.nbytes > _N * (84 + 64) and index.bytes_per_row > 84 + 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_loaded_searched_and_cleared(kind, tmp_path):
    codes = walk(2500)
    places = [NewPlace("c", i, None, descriptor(i)) for i in range(2500)]
    for place, code in zip(places, codes, strict=True):
        place.descriptor.code[:] = code
    path = tmp_path / "m.vprmap"
    with open_map(path, session="s") as place_map:
        place_map.add_many(places)
    with open_map(path, session="t", index=kind) as place_map:
        assert place_map.info().index == place_map.index_in_use == kind
        assert place_map.search(codes[7], 1)[0].tolist() == [8]
        ids, _ = place_map.search(codes[2400], 100, exclude_session="s", exclude_after_ns=2300)
        assert len(ids) == 100 and ids.max() <= 2301
        assert place_map.clear() == 2500
        assert len(place_map.search(codes[7], 1)[0]) == 0
        (new,) = place_map.add_many(places[:1])
        assert new == 2501 and place_map.search(codes[0], 5)[0].tolist() == [2501]


@pytest.mark.skipif(hasattr(faiss, "GpuIndexBinaryFlat"), reason="this faiss can use GPUs")
def test_gpu_is_refused_without_a_faiss_for_it_and_no_file_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"faiss-gpu.*exact"):
        open_map(tmp_path / "m.vprmap", index="gpu")
    assert folder_state(tmp_path) == {}


def test_gpu_is_refused_where_faiss_finds_none(monkeypatch):
    monkeypatch.setattr(faiss, "GpuIndexBinaryFlat", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="finds no GPU"):
        HammingIndex("gpu")


def test_gpu_by_a_double_on_the_cpu_as_no_gpu_has_ever_run_it(monkeypatch):
    def double(resources, bits):
        return faiss.IndexBinaryFlat(bits)

    monkeypatch.setattr(faiss, "GpuIndexBinaryFlat", double, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    codes = walk(_N)
    index, exact = loaded("gpu", codes), loaded("exact", codes)
    excluded = index.excluded_rows(1, 5950)
    for k in (1, 100, 3000):
        for got, wanted in zip(
            index.search(codes[-1], k, excluded), exact.search(codes[-1], k, excluded), strict=True
        ):
            assert len(got) == k
            if k == 1:  # of equals another may be the last
                np.testing.assert_array_equal(got, wanted)
