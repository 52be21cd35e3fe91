"""The ceiling of the index: memory, who leaves, and what the map still knows of them."""

import tracemalloc

import numpy as np
import pytest
from map_helpers import DIM, descriptor, open_map

from hashvpr_ros.errors import ConfigError, MapError
from hashvpr_ros.map.ceiling import BoundedIndex, Views, new_index
from hashvpr_ros.map.place_map import NewPlace
from hashvpr_ros.types import Descriptor, Pose


def walk(n, seed=0, flips=24):
    """Codes of a drive: each differs a bit from the one before."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 2, 512)
    changes = (rng.random((n, 512)) < flips / 512).astype(np.uint8)
    changes[0] = start
    return np.packbits(np.bitwise_xor.accumulate(changes, axis=0), axis=1)


def along(n, x=0.0, step=0.5, frame="odom"):
    """Poses of a straight drive, as `Views` takes them."""
    poses = np.zeros((n, 7))
    poses[:, 0] = x + step * np.arange(n)
    poses[:, 6] = 1.0
    return Views(["front"] * n, [frame] * n, poses)


def nowhere(n, camera="front"):
    return Views([camera] * n, [None] * n, np.full((n, 7), np.nan))


def add(index, codes, views, session=1, at_once=7):
    """Append rows a few at a time, with the next ids and stamps."""
    first = index.ids[-1] if len(index) else 0
    numbers = np.arange(first + 1, first + 1 + len(codes), dtype=np.int32)
    for i in range(0, len(codes), at_once):
        part = slice(i, i + at_once)
        some = Views(views.cameras[part], views.frame_ids[part], views.poses[part])
        sessions = np.full(len(numbers[part]), session, np.int32)
        index.add_seen(codes[part], numbers[part], sessions, numbers[part].astype("i8"), some)


def bounded(rows):
    index = BoundedIndex(1)
    index.most_rows = rows
    return index


def allocated(index):
    return sum(getattr(index, name).nbytes for name in index._names)


@pytest.mark.parametrize("codes", ["drive", "equal"])
@pytest.mark.parametrize("megabytes", [1, 3])
def test_memory_stays_under_the_ceiling_while_adding_and_choosing_who_leaves(megabytes, codes):
    n = megabytes * 20_000
    codes = walk(n) if codes == "drive" else np.full((n, 64), 7, np.uint8)
    views = along(n)
    add(BoundedIndex(1), codes[:9000], along(9000))  # what numpy loads once
    index = BoundedIndex(megabytes)
    tracemalloc.start()
    try:
        add(index, codes, views, at_once=20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert index.left_out == n - len(index) > n / 2
    assert peak < megabytes * 10**6 and len(index._ids) <= index.most_rows
    assert len(index) > 0.8 * index.most_rows and index.nbytes <= allocated(index)
    assert index.nbytes > 0.5 * (megabytes - 0.4) * 10**6  # and uses what it may


def test_an_index_under_its_ceiling_leaves_nothing_out():
    codes = walk(500)
    index = bounded(500)
    add(index, codes, along(500))
    assert index.left_out == 0 and len(index) == 500
    np.testing.assert_array_equal(index.codes, codes)


@pytest.mark.parametrize("views", [along, nowhere])
def test_no_stretch_is_lost_and_ids_stay(views):
    codes = walk(4000)
    index = bounded(1000)
    add(index, codes, views(4000))
    assert index.left_out + len(index) == 4000 and len(index) <= 1000
    ids = index.ids
    assert (np.diff(ids) > 0).all() and ids[-1] == 4000
    np.testing.assert_array_equal(index.codes, codes[ids - 1])
    assert np.diff(ids).max() < 60  # on average 4 to 5
    for row in range(0, 4000, 100):  # a view of any place finds one near it
        (found,), _ = index.search(codes[row], 1)
        assert abs(found - 1 - row) < 40


def test_what_looks_the_same_nearby_leaves_before_what_does_not():
    still, moving = np.repeat(walk(1), 600, axis=0), walk(600, 1, 60)
    index = bounded(900)
    add(index, still, nowhere(600))
    add(index, moving, nowhere(600))
    assert (index.ids > 600).sum() == 600 and 0 < (index.ids <= 600).sum() <= 300


def test_laps_of_one_street_leave_before_streets_driven_once():
    index = bounded(1000)
    lap, once = walk(200, 0, 60), walk(400, 9, 60)
    for number in range(6):
        noise = np.packbits(np.random.default_rng(number).random((200, 512)) < 0.02, axis=1)
        add(index, lap ^ noise, along(200), session=number + 1)
        if number == 2:
            add(index, once, along(400, x=1000.0), session=number + 1)
    ids = index.ids
    first_lap, unique = ids <= 200, (ids > 600) & (ids <= 1000)
    assert index.left_out >= 600
    # Codes of other laps differ by 20 bits, neighbours by 60 and more.
    assert unique.sum() > 380 and first_lap.sum() > 180


@pytest.mark.parametrize("views", [along, nowhere])
def test_distant_places_that_look_alike_do_not_displace_each_other(views):
    index = bounded(1000)
    codes = walk(400, flips=60)
    add(index, codes, views(400))
    add(index, walk(400, 5, 60), along(400, x=500.0))
    add(index, codes, along(400, x=1000.0))
    kept = [int(((index.ids > a) & (index.ids <= a + 400)).sum()) for a in (0, 400, 800)]
    assert min(kept) > 250, kept


def test_cameras_are_compared_with_themselves():
    front, rear = np.repeat(walk(1), 600, axis=0), walk(600, 2, 60)  # one sees nothing but a wall
    codes = np.stack([front, rear], axis=1).reshape(-1, 64)
    views = Views(["front", "rear"] * 600, [None] * 1200, np.full((1200, 7), np.nan))
    index = bounded(900)
    add(index, codes, views)
    fronts, rears = (index.ids % 2 == 1).sum(), (index.ids % 2 == 0).sum()
    assert rears == 600 and fronts <= 300


def test_keyframes_without_any_neighbour_are_thinned_evenly():
    index = bounded(800)
    codes = walk(3000)
    for i in range(3000):  # each a session of its own
        add(index, codes[[i]], nowhere(1), session=i + 1)
    assert 600 < len(index) <= 800 and np.diff(index.ids).max() < 100


def test_the_same_keyframes_leave_each_time():
    kept = []
    for _ in range(2):
        index = bounded(700)
        add(index, walk(3000), along(3000))
        kept.append(index.ids.tolist())
    assert kept[0] == kept[1]


def test_a_batch_larger_than_the_index():
    index = bounded(300)
    add(index, walk(5000), along(5000), at_once=5000)
    assert len(index) <= 300 and index.left_out == 5000 - len(index)
    assert np.diff(index.ids).max() < 200 and index.ids[0] < 200


def test_exclusion_after_others_have_left():
    index = bounded(600)
    codes = walk(2000)
    for session in (1, 2, 3, 2):
        add(index, codes[500 * (session - 1) :][:500], nowhere(500), session=session)
    stamps, sessions = index.ids.astype("i8"), index._sessions[: len(index)]
    for session, after in ((1, 200), (2, 700), (2, 1700), (3, 1100)):
        wanted = np.flatnonzero((sessions == session) & (stamps > after))
        rows = index.excluded_rows(session, after)
        np.testing.assert_array_equal(rows, wanted)
        ids, _ = index.search(codes[0], 400, rows)
        assert len(ids) == min(400, len(index) - len(wanted))
        assert not set(ids.tolist()) & set(index.ids[wanted].tolist())


def test_poses_fall_into_cells():
    def cell(x=0.0, y=0.0, turn=(0.0, 0.0, 0.0, 1.0), frame="odom"):
        return int(Views(["c"], [frame], np.array([[x, y, 0.0, *turn]])).cells()[0])

    assert cell() == cell(0.3, -0.3) == cell(turn=(0, 0, 0.03, 1.0)) == cell(turn=(0, 0, -0.03, 1))
    assert cell() == cell(turn=(0, 0, 0, -1)) == cell(turn=(0, 0, 0, 5e200))
    others = [cell(2.0), cell(0, 2.0), cell(-2.0), cell(turn=(0, 0, 1, 0)), cell(frame="map")]
    others += [cell(1e300), cell(turn=(0, 0, 0.4, 0.9))]
    assert len({cell(), *others}) == 8 and min(others) > 0
    assert nowhere(3).cells().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_ceiling_is_refused_where_keyframes_cannot_leave(kind):
    with pytest.raises(ConfigError, match=r"max_index_mb.*exact"):
        new_index(kind, 100)


# In a map


def places(n, first=0):
    codes = walk(n + first)[first:]
    return [
        NewPlace(
            "front",
            (first + i) * 10**9,
            Pose((0.5 * (first + i), 0.0, 0.0), frame_id="odom"),
            Descriptor(code, descriptor(i % 50).feature),
        )
        for i, code in enumerate(codes)
    ]


@pytest.fixture
def low_ceiling(monkeypatch):
    """A ceiling of one megabyte is that of 400 rows."""
    init = BoundedIndex.__init__

    def lower(self, max_mb):
        init(self, max_mb)
        self.most_rows = 400

    monkeypatch.setattr(BoundedIndex, "__init__", lower)


def test_the_file_keeps_all_and_all_come_back_without_the_ceiling(low_ceiling, tmp_path):
    path = tmp_path / "m.vprmap"
    with open_map(path, session="s", max_index_mb=1) as place_map:
        for place in places(1500):
            place_map.add_many([place])
        assert len(place_map) == 1500 and place_map.verify() == []
        assert place_map.left_out == 1500 - len(place_map.ids()) >= 1100
        info = place_map.info()
        assert (info.keyframes, info.left_out) == (1500, place_map.left_out)
        gone = np.setdiff1d(np.arange(1, 1501), place_map.ids())
        assert [k.id for k in place_map.keyframes(gone[:3])] == gone[:3].tolist()
        assert place_map.features(gone[:700]).shape == (700, DIM)
    with open_map(path, session="t", max_index_mb=1) as place_map:
        assert len(place_map) == 1500 and len(place_map.ids()) <= 400
        assert place_map.add_many(places(1, 1500)) == [1501]
        for row in range(0, 1500, 100):
            (found,), _ = place_map.search(places(1, row)[0].descriptor.code, 1)
            assert abs(found - 1 - row) < 40
    with open_map(path) as place_map:
        assert place_map.left_out == 0
        np.testing.assert_array_equal(place_map.ids(), np.arange(1, 1502))
        np.testing.assert_array_equal(place_map.codes(), walk(1501))


def test_what_has_left_can_be_asked_for_but_not_searched(low_ceiling):
    with open_map(session="s", max_index_mb=1) as place_map:
        place_map.add_many(places(1500))
        gone = int(np.setdiff1d(np.arange(1, 1501), place_map.ids())[0])
        assert place_map.places_of(np.array([gone])).tolist() == [gone]
        (keyframe,) = place_map.keyframes([gone])
        assert keyframe.place == gone and keyframe.stamp_ns == (gone - 1) * 10**9
        assert place_map.sessions_of(np.array([gone, 1500, 1501, 0])).tolist() == [1, 1, -1, -1]
        (view,) = place_map.views_of(gone)
        assert abs(view - gone) == np.abs(place_map.ids() - gone).min()
        late = {"exclude_session": "s", "exclude_after_ns": (gone - 5) * 10**9}
        assert place_map.sessions_of(np.array([gone]), **late).tolist() == [-1]
        assert place_map.views_of(1501).tolist() == place_map.views_of(0).tolist() == []
        with pytest.raises(MapError, match="max_index_mb"):
            place_map.codes_of(np.array([gone]))
        with pytest.raises(MapError, match="no keyframe 1501"):
            place_map.places_of(np.array([1501]))


def test_places_are_those_of_the_whole_map(low_ceiling, tmp_path):
    path = tmp_path / "m.vprmap"
    new = [NewPlace(c, p.stamp_ns, p.pose, p.descriptor) for p in places(700) for c in "ab"]
    with open_map(path, session="s", max_index_mb=1) as place_map:
        for i in range(0, 1400, 2):
            place_map.add_many(new[i : i + 2])
        live = dict(
            zip(place_map.ids().tolist(), place_map.places_of(place_map.ids()), strict=True)
        )
    with open_map(path, read_only=True, max_index_mb=1) as place_map:
        ids = place_map.ids()
        loaded = dict(zip(ids.tolist(), place_map.places_of(ids).tolist(), strict=True))
    for found in (live, loaded):
        assert len(found) <= 400
        assert all(place == (id_ - 1) // 2 + 1 for id_, place in found.items())


def test_clearing_begins_again_under_the_same_ceiling(low_ceiling):
    with open_map(session="s", max_index_mb=1) as place_map:
        place_map.add_many(places(1000))
        assert place_map.clear() == 1000
        assert len(place_map) == place_map.left_out == 0
        place_map.add_many(places(1000))
        assert len(place_map) == 1000 and len(place_map.ids()) <= 400
        assert place_map.ids().min() >= 1001
