"""The map as its users see it: what goes in comes out, from memory and from the file."""

import math
import sqlite3
import struct
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from map_helpers import (
    DIM,
    FINGERPRINT,
    add_places,
    descriptor,
    folder_state,
    make_map,
    open_map,
    place,
    start,
)

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.backup import damage_of
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.map.schema import DamagedMapError
from hashvpr_ros.map.verdicts import StoredVerdict
from hashvpr_ros.types import Descriptor, Keyframe, Pose

KINDS = pytest.mark.parametrize("kind", ["memory", "file"])


def new_map(kind, tmp_path, **options):
    return open_map("" if kind == "memory" else tmp_path / "m", **options)


def check_places(place_map, ids, numbers, session="s"):
    """The keyframes of the ids are the places of these numbers."""
    places = [place(i) for i in numbers]
    wanted = [
        Keyframe(id_, session, p.camera, p.stamp_ns, p.pose)
        for id_, p in zip(ids, places, strict=True)
    ]
    assert place_map.keyframes(ids) == wanted
    features = place_map.features(ids)
    assert features.dtype == np.float32 and features.shape == (len(ids), DIM)
    np.testing.assert_allclose(
        features, [p.descriptor.feature for p in places], rtol=2**-11, atol=2**-24
    )
    assert [place_map.thumbnail(i) for i in ids] == [p.thumbnail for p in places]
    for id_, p in zip(ids, places, strict=True):
        found, distances = place_map.search(p.descriptor.code, 3)
        assert found[0] == id_ and distances[0] == 0


# Round trip


@KINDS
def test_what_goes_in_comes_out_before_and_after_it_is_written(tmp_path, kind):
    with new_map(kind, tmp_path, session="s", model_name="the model") as place_map:
        ids = add_places(place_map, 1, 31)
        assert ids == list(range(1, 31)) == place_map.ids().tolist()
        check_places(place_map, ids, range(1, 31))  # pending
        assert place_map.flush() == 30
        check_places(place_map, ids, range(1, 31))  # written
        more = add_places(place_map, 31, 41)
        check_places(place_map, ids + more, range(1, 41))  # some of each
        check_places(place_map, (ids + more)[::-3], range(40, 0, -3))  # in the order asked for
        assert place_map.model_name == "the model" and place_map.fingerprint == FINGERPRINT
        assert place_map.feature_dim == DIM and place_map.session == "s" and len(place_map) == 40
        assert place_map.verify() == []
    if kind == "file":
        assert list(folder_state(tmp_path)) == ["m"]
        for read_only in (True, False):
            with open_map(tmp_path / "m", read_only=read_only) as place_map:
                check_places(place_map, ids + more, range(1, 41))
                assert place_map.ids().tolist() == ids + more
                np.testing.assert_array_equal(
                    place_map.codes(), [descriptor(i).code for i in range(1, 41)]
                )
                assert place_map.verify() == []


POSES = [
    None,
    Pose((0.0, 0.0, 0.0)),
    Pose((-0.0, 1.0, -0.0), (-0.0, 0.0, 0.0, -1.0)),
    Pose((1e300, -5e-324, 0.1), (1.0, 0.0, 0.0, 0.0), ""),
    Pose((2.0**53, -(2.0**63), 3.0), (0.5, 0.5, 0.5, 0.5), "карта"),
    Pose((np.float32(0.1), np.float64(0.2), 3), (0, 0, 0, 1), "numbers of other types"),
]
NO_POSES = [
    Pose((math.nan, 0.0, 0.0)),
    Pose((0.0, 0.0, math.inf)),
    Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, math.nan)),
    Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
]


@KINDS
def test_poses(tmp_path, kind):
    def check(place_map):
        assert [k.pose for k in place_map.keyframes(place_map.ids())] == POSES + [None] * 4
        assert place_map.info().with_pose == len(POSES) - 1
        assert place_map.verify() == []

    with new_map(kind, tmp_path) as place_map:
        for pose in POSES + NO_POSES:
            place_map.add(camera="c", stamp_ns=0, pose=pose, descriptor=descriptor(0))
        check(place_map)
    if kind == "file":
        check(open_map(tmp_path / "m", read_only=True))


NAMES = ["front", "", "камера 前 📷", "a'b\"c;--", "new\nline", "nul\0inside", "x" * 10_000]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_text(tmp_path, name):
    pose = Pose((0.0, 0.0, 0.0), frame_id=name)
    with open_map(tmp_path / "m", session=name, model_name=name) as place_map:
        session = place_map.session
        assert session == name or (not name and len(session) == 36)
        place_map.add(camera=name, stamp_ns=1, pose=pose, descriptor=descriptor(1))
        assert place_map.keyframes([1]) == [Keyframe(1, session, name, 1, pose)]
    with open_map(tmp_path / "m", session=session) as place_map:
        assert place_map.keyframes([1]) == [Keyframe(1, session, name, 1, pose)]
        assert place_map.model_name == name
        info = place_map.info()
        assert info.cameras == (name,) and [s.name for s in info.sessions] == [session]
        assert place_map.verify() == []
        excluded = place_map.search(
            descriptor(1).code, 1, exclude_session=session, exclude_after_ns=0
        )
        assert len(excluded[0]) == 0  # the session of the file is the one of this name


@pytest.mark.parametrize("thumbnail", [None, b"", b"\0" * 10, bytes(range(256)) * 1200])
def test_thumbnails(tmp_path, thumbnail):
    with open_map(tmp_path / "m") as place_map:
        for data in (thumbnail, bytearray(thumbnail or b"")):
            place_map.add(
                camera="c", stamp_ns=0, pose=None, descriptor=descriptor(0), thumbnail=data
            )
        for _ in range(2):
            assert place_map.thumbnail(1) == thumbnail
            assert place_map.thumbnail(2) == (thumbnail or b"")
            assert place_map.thumbnail(np.int32(1)) == thumbnail  # an id as `search` gives it
            assert place_map.thumbnail(3) is None
            place_map.flush()
        assert place_map.info().with_thumbnail == (1 if thumbnail is None else 2)
        assert place_map.verify() == []


@pytest.mark.parametrize("stamp_ns", [-(2**63), -1, 0, 1_700_000_000_123_456_789, 2**63 - 1])
def test_stamps(tmp_path, stamp_ns):
    for stamp in (stamp_ns, np.int64(stamp_ns)):
        with open_map(tmp_path / "m") as place_map:
            id_ = place_map.add(camera="c", stamp_ns=stamp, pose=None, descriptor=descriptor(0))
        with open_map(tmp_path / "m", read_only=True) as place_map:
            assert place_map.keyframes([id_])[0].stamp_ns == stamp_ns
            assert place_map.verify() == []


def test_features_of_all_sizes_are_kept_within_float16():
    values = np.float32([0, 1, -1, 1e-3, 6e-5, 1e-7, -0.33333, 65504] + [0.1] * (DIM - 8))
    with open_map() as place_map:
        code = descriptor(0).code
        place_map.add(camera="c", stamp_ns=0, pose=None, descriptor=Descriptor(code, values))
        place_map.flush()
        np.testing.assert_allclose(place_map.features([1])[0], values, rtol=2**-11, atol=2**-25)


def test_empty_questions():
    with open_map() as place_map:
        assert place_map.features([]).shape == (0, DIM)
        assert place_map.features([]).dtype == np.float32
        assert place_map.keyframes([]) == [] and place_map.add_many([]) == []
        assert len(place_map.search(descriptor(0).code, 5)[0]) == 0
        assert place_map.ids().shape == (0,) and place_map.codes().shape == (0, 64)
        assert place_map.flush() == place_map.flush_if_due() == place_map.clear() == 0
        assert place_map.verify() == [] and place_map.info().sessions == ()


def test_ids_that_are_not_there():
    with open_map() as place_map:
        add_places(place_map, 1, 4)
        for _ in range(2):
            for ids in ([4], [1, 99, 2], [0], [-1], [2**40], [1, 2**63, 2], [-(2**70)]):
                with pytest.raises(MapError, match="there is no keyframe"):
                    place_map.features(ids)
                with pytest.raises(MapError, match="there is no keyframe"):
                    place_map.keyframes(ids)
            place_map.flush()
        assert len(place_map.keyframes([2, 2, 1, 2])) == 4
        np.testing.assert_array_equal(*np.split(place_map.features([2, 2]), 2))
        pose = place_map.keyframes([1])[0].pose
        for id_ in (4, 0, -1, 2**40, 2**63, -(2**70)):
            assert place_map.thumbnail(id_) is None
            with pytest.raises(ValueError, match=f"there is no keyframe {id_}"):
                place_map.set_poses({1: Pose((9.0, 9.0, 9.0)), id_: Pose((9.0, 9.0, 9.0))})
        assert place_map.keyframes([1])[0].pose == pose


def test_more_ids_than_a_statement_takes(tmp_path):
    with open_map(tmp_path / "m", session="s") as place_map:
        ids = add_places(place_map, 1, 2500)
        place_map.flush()
        ids += add_places(place_map, 2500, 2600)
        order = np.random.default_rng(0).permutation(ids).astype(np.int32)
        assert [k.id for k in place_map.keyframes(order)] == order.tolist()
        wanted = np.stack([descriptor(i).feature for i in order])
        np.testing.assert_allclose(place_map.features(order), wanted, atol=1e-3)


# What is refused


GOOD = descriptor(1)
BAD_PLACES = [
    ({"descriptor": Descriptor(GOOD.code[:63], GOOD.feature)}, r"uint8 \[64\], not uint8 \[63\]"),
    ({"descriptor": Descriptor(GOOD.code[None], GOOD.feature)}, r"not uint8 \[1, 64\]"),
    ({"descriptor": Descriptor(GOOD.code.astype(np.int32), GOOD.feature)}, "not int32"),
    ({"descriptor": Descriptor(GOOD.code, GOOD.feature[1:])}, r"must have 32 values, not \[31\]"),
    ({"descriptor": Descriptor(GOOD.code, GOOD.feature[None])}, r"not \[1, 32\]"),
    ({"descriptor": Descriptor(GOOD.code, GOOD.feature * np.nan)}, "NaN"),
    ({"descriptor": Descriptor(GOOD.code, GOOD.feature + np.inf)}, "infinity"),
    ({"descriptor": Descriptor(GOOD.code, GOOD.feature + 1e6)}, "more than 65504"),
    ({"stamp_ns": 2**63}, "stamp must fit"),
    ({"stamp_ns": -(2**63) - 1}, "stamp must fit"),
    ({"camera": "\udcff"}, "name of a camera must be text"),
    ({"camera": None}, "name of a camera must be text"),
    ({"pose": Pose((0.0, 0.0, 0.0), frame_id="\ud800")}, "frame of a pose must be text"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_PLACES)
def test_a_malformed_place_is_refused_and_holds_nothing_up(tmp_path, change, reason):
    good = {"camera": "c", "stamp_ns": 0, "pose": None, "descriptor": GOOD}
    with open_map(tmp_path / "m") as place_map:
        add_places(place_map, 1, 3)
        with pytest.raises(MapError, match=reason):
            place_map.add(**(good | change))
        with pytest.raises(MapError, match=reason):
            place_map.add_many([NewPlace(**good), NewPlace(**(good | change))])
        assert len(place_map) == place_map.uncommitted() == 2
        assert place_map.add(**good) == 3
        assert place_map.flush() == 3
    with open_map(tmp_path / "m") as place_map:
        assert place_map.ids().tolist() == [1, 2, 3] and place_map.verify() == []


def test_malformed_questions_and_sessions():
    with open_map() as place_map:
        add_places(place_map, 1, 3)
        for code in (GOOD.code[:32], GOOD.code[None], GOOD.code.astype(float)):
            with pytest.raises(MapError, match="a code must be uint8"):
                place_map.search(code, 1)
        session = place_map.session
        with pytest.raises(MapError, match="session must be text"):
            place_map.start_session("\udc80")
        assert place_map.session == session
        strided = np.repeat(GOOD.code, 2)[::2]
        assert place_map.search(strided, 1)[0].tolist() == [1]


def test_a_closed_map():
    place_map = open_map()
    add_places(place_map, 1, 3)
    place_map.close()
    place_map.close()
    for use in (
        lambda: add_places(place_map, 1, 2),
        lambda: place_map.search(GOOD.code, 1),
        lambda: place_map.features([1]),
        lambda: place_map.keyframes([1]),
        lambda: place_map.thumbnail(1),
        lambda: place_map.copy_to("/tmp/never"),
        place_map.info,
        place_map.flush,
        place_map.clear,
        place_map.verify,
        place_map.start_session,
    ):
        with pytest.raises(MapError, match="closed already"):
            use()


# Ids, sessions, exclusion


@KINDS
def test_ids_are_not_used_again(tmp_path, kind):
    place_map = new_map(kind, tmp_path)
    assert add_places(place_map, 1, 6) == [1, 2, 3, 4, 5]
    place_map.flush()
    assert add_places(place_map, 6, 8) == [6, 7]
    assert place_map.clear() == 7  # two of them never written
    assert len(place_map) == place_map.uncommitted() == 0 and place_map.verify() == []
    with pytest.raises(MapError, match="no keyframe 6"):
        place_map.keyframes([6])
    if kind == "file":
        for _ in range(2):
            place_map.close()
            place_map = new_map(kind, tmp_path)
    assert add_places(place_map, 1, 3) == [8, 9]
    place_map.close()
    if kind == "file":
        with new_map(kind, tmp_path) as place_map:
            assert place_map.ids().tolist() == [8, 9]
            assert place_map.clear() == 2
            assert place_map.clear() == 0
        with new_map(kind, tmp_path) as place_map:
            assert add_places(place_map, 1, 2) == [10]
            assert place_map.info().sessions[0].keyframes == 1


def test_an_unused_map_cleared_before_its_first_batch(tmp_path):
    with open_map(tmp_path / "m") as place_map:
        add_places(place_map, 1, 4)
        assert place_map.clear() == 3
    with open_map(tmp_path / "m") as place_map:
        assert add_places(place_map, 1, 2) == [4]


@KINDS
def test_a_cleared_map_is_not_calibrated(tmp_path, kind):
    with new_map(kind, tmp_path) as place_map:
        add_places(place_map, 1, 4)
        place_map.set_calibration(Calibration(2.0, 0.5, 5, 5))
        place_map.add_headings({"camera0": 1.0})  # which is of the robot
        place_map.clear()
        assert place_map.calibration is None and place_map.verify() == []
        if kind == "file":
            place_map.close()
            with new_map(kind, tmp_path) as again:
                assert again.calibration is None and again.headings_rad == {"camera0": 1.0}


def test_sessions(tmp_path):
    with open_map(tmp_path / "m", session="one") as place_map:
        add_places(place_map, 1, 4)
        assert place_map.start_session("two") == "two" == place_map.session
        add_places(place_map, 4, 9)
        assert place_map.start_session("never used") == "never used"
        place_map.start_session("one")
        add_places(place_map, 9, 10)
        assert place_map.session_count == 2  # one that holds nothing is none
        assert [k.session for k in place_map.keyframes(place_map.ids())] == (
            ["one"] * 3 + ["two"] * 5 + ["one"]
        )
    with open_map(tmp_path / "m") as place_map:
        assert len(place_map.start_session()) == 36  # a UUID
        add_places(place_map, 10, 11)
        sessions = place_map.info().sessions
        assert [(s.name, s.keyframes) for s in sessions[:2]] == [("one", 4), ("two", 5)]
        assert (sessions[0].first_stamp_ns, sessions[0].last_stamp_ns) == (10**9, 9 * 10**9)
        assert sessions[2].name == place_map.session


@KINDS
def test_the_recent_past_of_a_session_is_left_out(tmp_path, kind):
    place_map = new_map(kind, tmp_path, session="old")
    add_places(place_map, 1, 41)
    place_map.start_session("now")
    add_places(place_map, 41, 81)
    if kind == "file":
        place_map.close()
        place_map = new_map(kind, tmp_path, session="now")
    add_places(place_map, 81, 101)
    code = descriptor(100).code

    def found(k, **exclude):
        return sorted(place_map.search(code, k, **exclude)[0].tolist())

    after = 60 * 10**9
    everything = list(range(1, 101))
    assert found(200) == everything
    assert found(200, exclude_session="now", exclude_after_ns=after) == everything[:60]
    assert len(found(60, exclude_session="now", exclude_after_ns=after)) == 60
    assert found(200, exclude_session="old", exclude_after_ns=after) == everything
    assert found(200, exclude_session="old", exclude_after_ns=30 * 10**9) == (
        everything[:30] + everything[40:]
    )
    assert found(200, exclude_session="unknown", exclude_after_ns=0) == everything
    assert found(200, exclude_session="now") == everything
    place_map.close()


# Batches


def test_a_batch_is_written_when_it_is_due(tmp_path):
    with open_map(tmp_path / "m", commit_period_s=1e9) as place_map:
        add_places(place_map, 1, 4)
        assert place_map.flush_if_due() == 0 and place_map.uncommitted() == 3
        assert place_map.flush() == 3 and place_map.uncommitted() == 0
        assert place_map.flush() == 0
    with open_map(tmp_path / "m", commit_period_s=0.0) as place_map:
        assert place_map.flush_if_due() == 0
        add_places(place_map, 1, 4)
        assert place_map.flush_if_due() == 3 and place_map.flush_if_due() == 0
    with open_map(tmp_path / "m", commit_period_s=0.2) as place_map:
        begin = time.monotonic()
        add_places(place_map, 1, 2)
        written = 0
        while not written:  # the age is that of the oldest keyframe, whatever is added since
            add_places(place_map, 1, 2)
            written = place_map.flush_if_due()
            time.sleep(0.01)
        assert time.monotonic() - begin >= 0.2
        assert place_map.uncommitted() == 0 and written == len(place_map) - 6


def test_closing_writes_the_batch_and_info_does_too(tmp_path):
    with open_map(tmp_path / "m") as place_map:
        add_places(place_map, 1, 4)
        assert place_map.info().uncommitted == 0
        add_places(place_map, 4, 6)
    assert PlaceMap.read_info(tmp_path / "m").keyframes == 5


def test_read_info(tmp_path):
    path = make_map(tmp_path / "m", 21, model_name="lite")
    info = PlaceMap.read_info(path)
    assert info.path == str(path) and len(info.map_id) == 36
    assert (info.model_name, info.fingerprint, info.feature_dim) == ("lite", FINGERPRINT, DIM)
    assert (info.keyframes, info.with_pose, info.with_thumbnail) == (21, 21, 10)
    assert info.cameras == ("camera0", "camera1")
    assert [(s.name, s.keyframes) for s in info.sessions] == [("s", 21)]
    assert info.file_bytes == path.stat().st_size and info.schema_version == 3
    assert info.index_bytes == 21 * 84 and info.uncommitted == 0
    assert info.read_only and info.session == ""
    with open_map(path) as place_map:
        assert place_map.info().map_id == info.map_id
        assert place_map.index_bytes_per_place <= 100
    assert open_map(tmp_path / "other").map_id != info.map_id


def test_a_new_map_is_complete_before_anything_is_added(tmp_path):
    open_map(tmp_path / "new" / "folders" / "m").close()
    info = PlaceMap.read_info(tmp_path / "new" / "folders" / "m")
    assert info.keyframes == 0 and info.sessions == () and info.cameras == ()
    assert list(folder_state(tmp_path / "new" / "folders")) == ["m"]


# Copies


@KINDS
def test_a_copy_is_complete(tmp_path, kind):
    with new_map(kind, tmp_path, session="s") as place_map:
        ids = add_places(place_map, 1, 51)
        target = tmp_path / "copies" / "deep" / "copy"
        assert place_map.copy_to(target) == 50
        assert list(folder_state(tmp_path / "copies" / "deep")) == ["copy"]
        add_places(place_map, 51, 53)
        assert place_map.map_id == PlaceMap.read_info(target).map_id
        with open_map(target, read_only=True) as copy:
            check_places(copy, ids, range(1, 51))
            assert copy.verify() == []
            assert copy.copy_to(tmp_path / "second") == 50  # of a read-only map
        with open_map(target) as copy:
            assert add_places(copy, 1, 2) == [51]
    assert PlaceMap.read_info(tmp_path / "second").keyframes == 50


def files_but_locks(folder):
    """The state of a folder but for the memory where SQLite keeps the locks of an open map."""
    return {n: b for n, b in folder_state(folder).items() if not n.endswith("-shm")}


def test_a_copy_replaces_only_where_it_may(tmp_path):
    target = make_map(tmp_path / "target", 3)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("not a map")
    (tmp_path / "link").symlink_to(target)
    with open_map(tmp_path / "m") as place_map:
        add_places(place_map, 1, 6)
        place_map.flush()
        before = files_but_locks(tmp_path)
        for name in ("target", "text", "link", "m"):
            with pytest.raises(MapError, match=r": exists; give another path"):
                place_map.copy_to(tmp_path / name)
        for name, reason in (
            ("folder", "is not a file, so it is not replaced"),
            ("m", "already open in this process.*another path"),
            ("text/copy", "its folder is a file|Not a directory"),
            ("text/deep/copy", "its folder is a file|Not a directory"),
            ("x" * 300, "File name too long"),
        ):
            with pytest.raises(MapError, match=reason):
                place_map.copy_to(tmp_path / name, overwrite=True)
        assert files_but_locks(tmp_path) == before
        for name in ("target", "text", "link", "new"):
            assert place_map.copy_to(tmp_path / name, overwrite=True) == 5
            assert PlaceMap.read_info(tmp_path / name).keyframes == 5
        assert (tmp_path / "link").is_symlink()
        add_places(place_map, 6, 7)  # the open map is as it was
        assert place_map.verify() == []
    assert sorted(folder_state(tmp_path)) == ["folder", "link", "m", "new", "target", "text"]


def test_a_copy_does_not_replace_a_map_that_is_open(tmp_path):
    target = make_map(tmp_path / "target", 3)
    with open_map() as place_map:
        add_places(place_map, 1, 6)
        with open_map(target, read_only=True), pytest.raises(MapError, match="already open"):
            place_map.copy_to(target, overwrite=True)
        for mode in ("False", "True"):
            process = start(
                f"m = open_map(sys.argv[1], read_only={mode})\nsay(len(m))\nsys.stdin.read()\n"
                "say(m.verify(), len(m))\nm.close()",
                target,
            )
            assert process.stdout.readline() == "3\n"
            before = folder_state(tmp_path)
            with pytest.raises(MapError, match="another process has this map open"):
                place_map.copy_to(target, overwrite=True)
            assert folder_state(tmp_path) == before
            out, error = process.communicate(timeout=20)
            assert out == "[] 3\n", error
        assert place_map.copy_to(target, overwrite=True) == 5


def test_a_copy_over_a_map_whose_writer_was_killed(tmp_path):
    target = make_map(tmp_path / "target", 30)
    process = start(
        "m = open_map(sys.argv[1])\nm.clear()\nadd_places(m, 100, 120)\nm.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        target,
    )
    process.communicate(timeout=20)
    assert (tmp_path / "target-wal").stat().st_size > 0  # would be replayed into the copy
    with open_map(session="s") as place_map:
        ids = add_places(place_map, 1, 6)
        assert place_map.copy_to(target, overwrite=True) == 5
    assert list(folder_state(tmp_path)) == ["target"]
    with open_map(target) as copy:
        assert copy.verify() == []
        check_places(copy, ids, range(1, 6))


def test_a_copy_over_a_file_that_another_program_has_open(tmp_path):
    target = tmp_path / "target"
    with closing(sqlite3.connect(target)) as db, open_map() as place_map:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
        with pytest.raises(MapError, match="another program has this file open"):
            place_map.copy_to(target, overwrite=True)
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert list(folder_state(tmp_path)) == ["target"]


def test_long_reads_do_not_hold_up_the_others_and_closing_waits_for_them(tmp_path):
    make_map(tmp_path / "m", 10)
    for read_only in (True, False):
        place_map = open_map(tmp_path / "m", read_only=read_only)
        with place_map._snapshot() as db:
            done = []
            others = threading.Thread(
                target=lambda p=place_map, d=done, r=read_only: d.extend(
                    [
                        p.search(GOOD.code, 3),
                        p.features([1]),
                        None if r else (add_places(p, 1, 2), p.flush()),
                    ]
                )
            )
            others.start()
            others.join(20)
            assert len(done) == 3
            closing_thread = threading.Thread(target=place_map.close)
            closing_thread.start()
            closing_thread.join(0.05)
            assert closing_thread.is_alive()
            assert db.execute("SELECT count(*) FROM keyframes").fetchone()[0] >= 10
        closing_thread.join(20)
        assert not closing_thread.is_alive()
        with pytest.raises(MapError, match="closed"):
            place_map.verify()
    assert PlaceMap.read_info(tmp_path / "m").keyframes == 11


# Verification


PARTS = {
    "code": descriptor(7).code.tobytes(),
    "feature": descriptor(8).feature.astype("<f2").tobytes(),
    "pose": struct.pack(">d", 7.25),
    "thumbnail": place(8).thumbnail,
    "camera": b"camera1",
    "frame": b"odom",
}


@pytest.mark.parametrize("part", PARTS)
def test_verify_finds_any_flipped_bit(tmp_path, part):
    path = make_map(tmp_path / "m", 20)
    sound = path.read_bytes()
    begin = sound.rindex(PARTS[part])
    for at in range(begin, begin + len(PARTS[part]), max(1, len(PARTS[part]) // 8)):
        content = bytearray(sound)
        content[at] ^= 1 << (at % 8)
        path.write_bytes(content)
        for read_only in (True, False):
            try:
                with open_map(path, read_only=read_only) as place_map:
                    problems = place_map.verify()
            except MapError:
                continue  # noticed even sooner
            assert any("checksum" in p or "structure" in p for p in problems), (at, problems)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DELETE FROM features WHERE id = 3", "keyframe 3: its feature is missing"),
        ("UPDATE features SET feature = zeroblob(62) WHERE id = 3", "keyframe 3: its feature do"),
        ("UPDATE features SET feature = 'text' WHERE id = 3", "keyframe 3: its feature does not"),
        ("DELETE FROM keyframes WHERE id = 3", "1 features belong to no keyframe"),
        ("DELETE FROM keyframes WHERE id = 4", "1 thumbnails belong to no keyframe"),
        ("DELETE FROM thumbnails WHERE id = 4", "keyframe 4: its thumbnail is missing"),
        ("DELETE FROM sessions", "20 keyframes belong to no session"),
        ("UPDATE keyframes SET camera = x'00' WHERE id = 3", "keyframe 3: its content does not"),
        ("UPDATE keyframes SET px = 'east' WHERE id = 3", "keyframe 3: its content does not"),
        ("UPDATE keyframes SET stamp_ns = 7 WHERE id = 3", "keyframe 3: its content does not"),
        ("UPDATE keyframes SET crc = crc + 1", "keyframe 20: its content does not match"),
        ("UPDATE thumbnails SET jpeg = 5 WHERE id = 4", "keyframe 4: its thumbnail does not"),
        ("INSERT INTO thumbnails VALUES (3, x'00')", "keyframe 3: its thumbnail does not match"),
        ("UPDATE verdicts SET log_odds = 4.6", "table verdicts: a row does not match"),
        ("DELETE FROM verdicts", "table verdicts: has 0 rows, but 1 were written"),
        ("UPDATE sessions SET name = 'S'", "table sessions: a row does not match its checksum"),
        ("DELETE FROM meta WHERE key = 'headings'", "table meta: has 4 rows, but 5 were written"),
        ("UPDATE meta SET value = '{}' WHERE key = 'headings'", "table meta: a row does not"),
        ("UPDATE checks SET count = 19 WHERE name = 'keyframes'", "cannot be read: table checks"),
        ("UPDATE checks SET sum = 'v' WHERE name = 'meta'", "cannot be read: table checks"),
        ("DELETE FROM checks WHERE name = 'meta'", "cannot be read: table checks: has 4 rows"),
    ],
)
def test_verify_finds_wrong_content(tmp_path, change, problem):
    with open_map(tmp_path / "m", session="s") as place_map:
        add_places(place_map, 1, 21)
        place_map.add_headings({"camera1": 1.5})
        place_map.add_verdict(StoredVerdict(10**18, 7, "accepted", 4.5))
    with closing(sqlite3.connect(tmp_path / "m")) as db:
        db.execute(change)
        db.commit()
    assert any(p.startswith(problem) for p in damage_of(tmp_path / "m", {}))
    for options in ({}, {"read_only": True}):
        with pytest.raises(DamagedMapError):
            open_map(tmp_path / "m", verify=True, **options)


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("DELETE FROM features WHERE id = 3", "features"),
        ("UPDATE features SET feature = zeroblob(62) WHERE id = 3", "features"),
        ("UPDATE features SET feature = 'text' WHERE id = 3", "features"),
        ("UPDATE features SET feature = zeroblob(62 + 4 * (id - 3)) WHERE id < 5", "features"),
        ("UPDATE thumbnails SET jpeg = x'00'", "thumbnail"),
        ("UPDATE thumbnails SET jpeg = 'text'", "thumbnail"),
        ("DELETE FROM thumbnails", "thumbnail"),
    ],
)
def test_what_is_read_when_it_is_used_is_tested_then(tmp_path, change, read):
    path = make_map(tmp_path / "m", 20)
    with closing(sqlite3.connect(path)) as db:
        db.execute(change)
        db.commit()
    with open_map(path, read_only=True) as place_map:
        with pytest.raises(DamagedMapError, match=f"damaged .*{read[:-1]}"):
            place_map.thumbnail(4) if read == "thumbnail" else place_map.features(place_map.ids())
        assert len(place_map.features([])) == 0


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM sessions",
        "UPDATE sessions SET name = x'00'",
        "UPDATE keyframes SET camera = x'00' WHERE id = 3",
        "UPDATE keyframes SET camera = CAST(x'ff' AS TEXT) WHERE id = 3",
        "UPDATE keyframes SET px = 'east' WHERE id = 3",
        "UPDATE keyframes SET px = NULL WHERE id = 3",
        "UPDATE keyframes SET frame_id = NULL WHERE id = 3",
        "UPDATE keyframes SET stamp_ns = stamp_ns + 1 WHERE id = 3",
        "UPDATE keyframes SET feature_crc = feature_crc + 1 WHERE id = 3",
        "UPDATE keyframes SET thumbnail_crc = NULL WHERE id = 4",
        "UPDATE keyframes SET crc = crc + 1 WHERE id = 3",
        "DELETE FROM keyframes WHERE id = 3",
        "UPDATE checks SET sum = sum + 1",
        "UPDATE checks SET count = 'v' WHERE name = 'keyframes'",
        "UPDATE checks SET crc = 1e300",
        "DELETE FROM checks",
        "INSERT INTO checks VALUES ('more', 1, 1, 1)",
    ],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_read_when_a_map_is_opened_is_tested_then(tmp_path, change, read_only):
    path = make_map(tmp_path / "m", 20)
    with closing(sqlite3.connect(path)) as db:
        db.execute(change)
        db.commit()
    before = path.read_bytes()
    with pytest.raises(DamagedMapError) as e:
        open_map(path, read_only=read_only)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
    assert path.read_bytes() == before


def test_verify_lists_not_more_than_a_user_reads(tmp_path):
    path = make_map(tmp_path / "m", 200)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE keyframes SET crc = 0")
        db.commit()
    assert len(damage_of(path, {})) == 20


# Threads


@pytest.fixture
def eager_threads():
    """Threads take turns often, so that more of their orders occur."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def test_threads_that_add_search_read_and_clear_at_once(tmp_path, eager_threads):
    place_map = open_map(tmp_path / "m", commit_period_s=0.0, session="s")
    adding = threading.Event()
    adding.set()
    failures, done = [], dict.fromkeys(("searches", "reads", "clears", "copies"), 0)

    def guarded(name, work):
        def repeat():
            while adding.is_set():
                try:
                    work()
                    done[name] += 1
                except MapError as e:
                    if "there is no keyframe" not in str(e):
                        failures.append(e)
                except Exception as e:
                    failures.append(e)

        return threading.Thread(target=repeat)

    def search():
        ids, distances = place_map.search(
            GOOD.code, 20, exclude_session="s", exclude_after_ns=400 * 10**9
        )
        assert len(ids) == len(distances) and (np.diff(distances) >= 0).all()
        for keyframe in place_map.keyframes(ids):
            assert keyframe.stamp_ns <= 400 * 10**9
            assert keyframe.camera == f"camera{keyframe.stamp_ns // 10**9 % 2}"

    def read():
        ids = place_map.ids()
        assert (np.diff(ids) > 0).all()
        assert place_map.features(ids[-30:]).shape[1] == DIM
        if len(ids):
            place_map.thumbnail(int(ids[-1]))
        assert place_map.info().feature_dim == DIM

    def clear():
        if len(place_map) > 200:
            place_map.clear()

    def copy():
        place_map.copy_to(tmp_path / "copy", overwrite=True)
        assert place_map.verify() == []

    others = [
        guarded("searches", search),
        guarded("reads", read),
        guarded("clears", clear),
        guarded("copies", copy),
    ]
    for thread in others:
        thread.start()
    added = []
    for i in range(1, 800):
        added += add_places(place_map, i, i + 1)
        place_map.flush_if_due()
    adding.clear()
    for thread in others:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
    assert all(done.values()), done
    assert added == list(range(1, 800))
    assert place_map.verify() == []
    rest = place_map.ids()
    check_places(place_map, rest.tolist(), rest.tolist())
    place_map.close()
    with open_map(tmp_path / "m") as again:
        np.testing.assert_array_equal(again.ids(), rest)
    assert open_map(tmp_path / "copy").verify() == []


def test_sessions_and_codes_of_ids_from_memory():
    with PlaceMap.open("", "ab" * 32, 4, session="one") as place_map:
        assert place_map.sessions_of(np.array([1, 2])).tolist() == [-1, -1]
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 256, (6, 64), np.uint8)
        feature = np.ones(4, np.float32) / 2
        for i, code in enumerate(codes):
            if i == 3:
                place_map.start_session("two")
            place_map.add(camera="c", stamp_ns=i, pose=None, descriptor=Descriptor(code, feature))
        numbers = place_map.sessions_of(np.array([6, 1, 7, 4, -3]))
        assert numbers.tolist() == [numbers[0], numbers[1], -1, numbers[0], -1]
        assert numbers[0] != numbers[1] and numbers[:2].min() > 0
        left = place_map.sessions_of(np.arange(1, 7), exclude_session="two", exclude_after_ns=3)
        assert (left > 0).tolist() == [True, True, True, True, False, False]
        assert np.array_equal(place_map.codes_of(np.array([5, 2])), codes[[4, 1]])
        assert place_map.codes_of(np.array([], int)).shape == (0, 64)
        with pytest.raises(MapError, match="no keyframe 7"):
            place_map.codes_of(np.array([1, 7]))
