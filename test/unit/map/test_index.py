"""The index against a brute-force computation with numpy."""

import numpy as np
import pytest

from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.index_backends import raw_faiss_search


def brute_force(codes, ids, code, k, keep=None):
    """All distances by counting bits, sorted by distance and id."""
    distances = np.unpackbits(codes ^ code, axis=1).sum(1).astype(np.int32)
    rows = np.arange(len(ids)) if keep is None else np.flatnonzero(keep)
    order = rows[np.lexsort((ids[rows], distances[rows]))][:k]
    return ids[order], distances[order]


def filled(codes, sessions=None, stamps=None, ids=None, batch=None):
    """An index of the codes, added in batches of a given size."""
    n = len(codes)
    ids = np.arange(1, n + 1, dtype=np.int32) if ids is None else ids
    sessions = np.ones(n, np.int32) if sessions is None else sessions
    stamps = np.arange(n, dtype=np.int64) if stamps is None else stamps
    index = HammingIndex()
    for i in range(0, n, batch or max(n, 1)):
        rows = slice(i, i + (batch or n))
        index.add(codes[rows], ids[rows], sessions[rows], stamps[rows])
    return index


def random_codes(n, seed=0, ties=False):
    """Random codes; with ties, only few different distances occur."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, 64), np.uint8)
    if ties:
        codes[:, 1:] = 0
        codes[:, 0] &= 0b111
    return codes


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 100, 1023, 1025, 5000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_nearest_are_exact_and_ties_are_ordered_by_id(n, k, ties):
    codes = random_codes(n, n, ties)
    ids = np.cumsum(np.random.default_rng(1).integers(1, 9, n)).astype(np.int32)  # with gaps
    index = filled(codes, ids=ids)
    for query in random_codes(5, 99, ties):
        found, distances = index.search(query, k)
        wanted, wanted_distances = brute_force(codes, ids, query, k)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(distances, wanted_distances)
        assert found.dtype == distances.dtype == np.int32


def test_all_codes_equal():
    index = filled(np.full((3000, 64), 7, np.uint8))
    ids, distances = index.search(np.full(64, 7, np.uint8), 50)
    np.testing.assert_array_equal(ids, np.arange(1, 51))
    assert not distances.any()


def test_opposite_codes_are_512_bits_apart():
    index = filled(np.zeros((1, 64), np.uint8))
    assert index.search(np.full(64, 255, np.uint8), 1)[1].tolist() == [512]


@pytest.mark.parametrize("k", [20, 21, 10**6])
def test_k_beyond_the_size_gives_all(k):
    codes = random_codes(20)
    ids, distances = filled(codes).search(codes[3], k)
    assert sorted(ids.tolist()) == list(range(1, 21))
    assert ids[0] == 4 and distances[0] == 0
    assert (np.diff(distances) >= 0).all()


@pytest.mark.parametrize("k", [0, -1])
def test_k_of_nothing_gives_nothing(k):
    ids, distances = filled(random_codes(20)).search(random_codes(1)[0], k)
    assert len(ids) == len(distances) == 0


def test_an_empty_index():
    index = HammingIndex()
    ids, distances = index.search(np.zeros(64, np.uint8), 5)
    assert len(index) == len(ids) == len(distances) == 0
    assert ids.dtype == distances.dtype == np.int32
    assert index.codes.shape == (0, 64) and index.ids.shape == (0,)
    assert len(index.excluded_rows(1, 0)) == 0
    empty = np.empty(0)
    index.add(random_codes(0), empty.astype(np.int32), empty.astype(np.int32), empty.astype("i8"))
    assert len(index) == 0


@pytest.mark.parametrize("batch", [1, 3, 1000, 1024, 2999])
def test_growth_keeps_every_row(batch):
    codes = random_codes(3000, 5)
    index = filled(codes, batch=batch)
    index.reserve(10)  # less than there is: nothing to do
    index.reserve(7000)
    np.testing.assert_array_equal(index.codes, codes)
    np.testing.assert_array_equal(index.ids, np.arange(1, 3001))
    for query in codes[::700]:
        found = index.search(query, 10)
        np.testing.assert_array_equal(found, brute_force(codes, index.ids, query, 10))
    np.testing.assert_array_equal(
        index.excluded_rows(1, 1234), np.arange(1235, 3000)
    )  # sessions and stamps have moved along


def test_views_cannot_be_written_and_do_not_freeze_the_index():
    index = filled(random_codes(10))
    for view in (index.codes, index.ids):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    index.add(random_codes(1), np.int32([11]), np.int32([1]), np.int64([0]))
    assert len(index) == 11


def check_exclusion(codes, sessions, stamps, session, after, ks=(1, 10, 100)):
    """Compare with brute force over the rows that remain."""
    index = filled(codes, sessions, stamps, batch=777)
    excluded = (sessions == session) & (stamps > after)
    np.testing.assert_array_equal(index.excluded_rows(session, after), np.flatnonzero(excluded))
    for k in ks:
        for query in random_codes(2, 3, ties=True):
            ids, distances = index.search(query, k, index.excluded_rows(session, after))
            wanted = brute_force(codes, index.ids, query, k, ~excluded)
            np.testing.assert_array_equal(ids, wanted[0])
            np.testing.assert_array_equal(distances, wanted[1])
            assert len(ids) == min(k, int((~excluded).sum()))


@pytest.mark.parametrize("after", [-1, 0, 1499, 2500, 2998, 2999, 10**6])
def test_the_recent_past_of_the_last_session_is_left_out(after):
    codes = random_codes(3000, 1, ties=True)
    sessions = np.repeat(np.int32([1, 2, 3]), 1000)
    check_exclusion(codes, sessions, np.arange(3000, dtype=np.int64), 3, after)


@pytest.mark.parametrize("session", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("after", [-1, 500, 1700])
def test_a_session_that_is_not_the_last_is_left_out_alone(session, after):
    codes = random_codes(3000, 1, ties=True)
    sessions = np.repeat(np.int32([1, 2, 3]), 1000)
    check_exclusion(codes, sessions, np.arange(3000, dtype=np.int64), session, after)


@pytest.mark.parametrize("after", [0, 1000, 2990])
def test_interleaved_sessions_keep_all_rows_of_the_others(after):
    codes = random_codes(3000, 2, ties=True)
    sessions = np.random.default_rng(7).integers(1, 4, 3000).astype(np.int32)
    check_exclusion(codes, sessions, np.arange(3000, dtype=np.int64), 2, after)


@pytest.mark.parametrize("after", [0, 1000, 1500, 2700, 2995])
@pytest.mark.parametrize("disorder", [3, 40, 600])
def test_stamps_out_of_order_between_cameras(disorder, after):
    codes = random_codes(3000, 2, ties=True)
    rng = np.random.default_rng(disorder)
    stamps = np.arange(3000, dtype=np.int64) + rng.integers(-disorder, disorder + 1, 3000)
    sessions = np.repeat(np.int32([1, 2]), 1500)
    check_exclusion(codes, sessions, stamps, 2, after)


def test_a_clock_that_jumped_back_hides_no_recent_rows():
    # 1500 rows, then a bag played again from its start under the same session.
    stamps = np.concatenate([np.arange(1500), np.arange(1500)]).astype(np.int64)
    check_exclusion(random_codes(3000, 2), np.ones(3000, np.int32), stamps, 1, 1000)


def test_a_session_goes_on_after_another():
    sessions = np.repeat(np.int32([5, 6, 5]), 1000)
    check_exclusion(random_codes(3000, 2), sessions, np.arange(3000, dtype=np.int64), 5, 700)


def test_everything_excluded_leaves_nothing():
    index = filled(random_codes(500))
    ids, distances = index.search(random_codes(1)[0], 5, index.excluded_rows(1, -1))
    assert len(ids) == len(distances) == 0


def test_extreme_stamps():
    stamps = np.int64([-(2**63), -1, 0, 2**63 - 1])
    index = filled(random_codes(4), stamps=stamps)
    assert index.excluded_rows(1, 2**63 - 1).tolist() == []
    assert index.excluded_rows(1, -(2**63)).tolist() == [1, 2, 3]


def test_a_place_that_has_gone_from_a_session_is_still_one_of_it():
    ids = np.int32([1, 2, 6, 7, 11, 12])
    index = filled(random_codes(6), np.int32([1, 1, 1, 1, 2, 2]), ids=ids)
    asked = np.arange(14)
    wanted = [-1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, 2, 2, -1]
    assert index.sessions_of(asked, 1, None).tolist() == wanted
    # Rows are stamped 0 to 5: what lies before an excluded one is as recent.
    wanted[3:8] = [-1] * 5
    assert index.sessions_of(asked, 1, 1).tolist() == wanted
    views = [index.views_of(place).tolist() for place in (1, 3, 4, 5, 7, 9, 12, 13)]
    assert views == [[1], [2], [2], [6], [7], [], [12], []]


@pytest.mark.parametrize("n", [5000, 200_000])
def test_memory_is_under_100_bytes_a_place(n):
    codes = np.zeros((n, 64), np.uint8)
    index = HammingIndex()
    index.reserve(n)
    index.add(codes, np.arange(n, dtype=np.int32), np.ones(n, np.int32), np.zeros(n, np.int64))
    assert index.bytes_per_row == 84
    assert index.nbytes == 84 * n  # a load of known size wastes nothing
    index.add(codes[:1], np.int32([n]), np.int32([1]), np.int64([0]))
    assert index.nbytes <= 100 * (n + 1)


def test_the_bare_faiss_index_takes_the_codes():
    codes = random_codes(100)
    assert raw_faiss_search(codes, 5)(codes[0]) is None
