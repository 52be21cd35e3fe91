"""Merging maps: ids, sessions in common, and all that is refused; and what all edits share."""

import random
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from edit_helpers import check_result, content, refused
from map_helpers import (
    DIM,
    FINGERPRINT,
    add_places,
    folder_state,
    make_map,
    open_map,
    place,
    start,
)

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.merge import IdRange, merge_maps
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.prune import prune_map
from hashvpr_ros.map.schema import MAX_ID, MapNotFoundError, WrongModelError
from hashvpr_ros.map.split import split_map


def new_map(path, session, begin, end, first_id=1, **options):
    """A map file of the places from `begin` to before `end`."""
    with open_map(path, session=session, model_name="m", **options) as place_map:
        place_map._next_id = first_id
        add_places(place_map, begin, end)
    return path


def ids_of(path):
    with PlaceMap.open(path, read_only=True) as place_map:
        return place_map.ids().tolist()


@pytest.fixture
def a(tmp_path):
    return new_map(tmp_path / "a", "one", 1, 11)


@pytest.fixture
def b(tmp_path):
    return new_map(tmp_path / "b", "two", 21, 31)


def test_ids_that_clash_are_moved_by_one_offset(tmp_path, a, b):
    before = folder_state(tmp_path)
    first, second = merge_maps([a, b], tmp_path / "out")
    assert folder_state(tmp_path) == before | {"out": (tmp_path / "out").read_bytes()}
    check_result(tmp_path / "out", a, b)
    assert first.ids == (IdRange(1, 10, 0),) and second.ids == (IdRange(1, 10, 10),)
    assert first.map_id == PlaceMap.read_info(a).map_id and second.path == str(b)
    wanted = content(a) | {i + 10: values for i, values in content(b).items()}
    assert content(tmp_path / "out") == wanted
    info = PlaceMap.read_info(tmp_path / "out")
    assert [s.name for s in info.sessions] == ["one", "two"]
    with open_map(tmp_path / "out", session="three") as place_map:
        for i, p in ((3, place(3)), (14, place(24))):
            assert place_map.search(p.descriptor.code, 1)[0].tolist() == [i]
        assert add_places(place_map, 50, 51) == [21]


def test_ids_that_are_free_survive_whatever_the_order(tmp_path, a, b):
    c = new_map(tmp_path / "c", "three", 31, 36, first_id=11)
    merged = merge_maps([a, b, c], tmp_path / "out")
    check_result(tmp_path / "out", a, b, c)
    assert [m.ids for m in merged] == [
        (IdRange(1, 10, 0),),
        (IdRange(1, 10, 15),),  # above the ids of c, which so can stay
        (IdRange(11, 15, 0),),
    ]
    found = content(tmp_path / "out")
    assert list(found) == list(range(1, 26))
    assert all(found[i] == values for i, values in (content(a) | content(c)).items())


def test_ids_with_gaps_keep_their_order_and_distances(tmp_path, a):
    with open_map(tmp_path / "b", session="two", model_name="m") as place_map:
        for i, first in enumerate((8, 100, 500)):
            place_map._next_id = first
            add_places(place_map, 40 + 2 * i, 42 + 2 * i)
    merged = merge_maps([a, tmp_path / "b"], tmp_path / "out")
    assert merged[1].ids == (IdRange(8, 501, 502 - 8),)
    assert ids_of(tmp_path / "out")[10:] == [i + 494 for i in (8, 9, 100, 101, 500, 501)]


def test_ids_that_were_used_once_are_not_used_again(tmp_path, a, b):
    with open_map(b, session="two") as place_map:
        add_places(place_map, 60, 70)
        place_map.clear()
        assert add_places(place_map, 60, 62) == [21, 22]
    merge_maps([a, b], tmp_path / "out")
    assert ids_of(tmp_path / "out") == [*range(1, 11), 21, 22]
    c = new_map(tmp_path / "c", "three", 70, 72)
    merge_maps([b, c, a], tmp_path / "again")
    assert ids_of(tmp_path / "again") == [1, 2, 21, 22, *range(23, 33)]


def test_ids_are_moved_above_those_that_are_gone(tmp_path, a, b):
    with open_map(b, session="gone") as place_map:
        add_places(place_map, 60, 70)
    split_map(b, tmp_path / "part", sessions=["two"])
    merged = merge_maps([a, tmp_path / "part"], tmp_path / "out")
    assert merged[1].ids == (IdRange(1, 10, 20),)  # 11 to 20 were of other keyframes


def test_ids_end(tmp_path, a):
    full = new_map(tmp_path / "full", "two", 1, 3, first_id=MAX_ID - 1)
    merge_maps([a, full], tmp_path / "out")
    check_result(tmp_path / "out", a, full)
    assert ids_of(tmp_path / "out")[-1] == MAX_ID
    clash = new_map(tmp_path / "clash", "three", 1, 3)
    with refused(tmp_path, str(clash), f"end at {MAX_ID}", "leave it out"):
        merge_maps([a, full, clash], tmp_path / "no")


def test_empty_maps(tmp_path, a):
    open_map(tmp_path / "empty", model_name="m").close()
    for n, maps in enumerate(([a, tmp_path / "empty"], [tmp_path / "empty", a])):
        merged = merge_maps(maps, tmp_path / f"out{n}")
        check_result(tmp_path / f"out{n}", a)
        assert content(tmp_path / f"out{n}") == content(a)
        assert merged[1 - n].ids == ()


# Sessions in common


def test_a_copy_that_went_on_is_taken_once(tmp_path, a):
    with open_map(a, session="one") as place_map:
        place_map.copy_to(tmp_path / "copy")
        add_places(place_map, 11, 15)
    for name, maps in (("x", [a, tmp_path / "copy"]), ("y", [tmp_path / "copy", a])):
        merged = merge_maps(maps, tmp_path / name)
        check_result(tmp_path / name, a)
        assert [m.taken_once for m in merged] == [0, 10]
        assert content(tmp_path / name) == content(a)


def test_copies_that_went_different_ways(tmp_path, a):
    with open_map(a, session="noon") as place_map:
        place_map.copy_to(tmp_path / "copy")
        add_places(place_map, 11, 15)
    with open_map(tmp_path / "copy", session="night") as place_map:
        add_places(place_map, 31, 34)
    merged = merge_maps([a, tmp_path / "copy"], tmp_path / "out")
    assert merged[1].ids == (IdRange(1, 10, 0), IdRange(11, 13, 4))
    assert merged[1].taken_once == 10
    night = {i + 4: v for i, v in content(tmp_path / "copy").items() if i > 10}
    assert content(tmp_path / "out") == content(a) | night and len(night) == 3
    # What was merged is an ancestor, so that merging once more changes nothing.
    again = merge_maps([tmp_path / "out", tmp_path / "copy"], tmp_path / "again")
    assert again[1].taken_once == 13 and content(tmp_path / "again") == content(tmp_path / "out")
    assert again[1].ids == merged[1].ids


def test_parts_can_be_put_together_again(tmp_path, a):
    split_map(a, tmp_path / "first", to_ns=5 * 10**9)
    split_map(a, tmp_path / "last", from_ns=5 * 10**9)
    prune_map(a, tmp_path / "pruned")
    merged = merge_maps([tmp_path / n for n in ("last", "first", "pruned")], tmp_path / "out")
    check_result(tmp_path / "out", a)
    assert [m.taken_once for m in merged] == [0, 0, 10]
    assert content(tmp_path / "out") == content(a)


def test_unrelated_sessions_of_one_name(tmp_path, a):
    other = new_map(tmp_path / "other", "one", 1, 11)  # even with the same content
    with refused(tmp_path, str(a), str(other), "'one'", "--session", "hashvpr map split"):
        merge_maps([a, other], tmp_path / "out")


# What is refused


def test_another_model(tmp_path, a):
    for name, fingerprint, dim in (("x", "cd" * 32, DIM), ("y", FINGERPRINT, DIM + 1)):
        PlaceMap.open(tmp_path / name, fingerprint, dim, model_name="big").close()
        with refused(
            tmp_path, str(tmp_path / name), str(a), "big", "reembed", error=WrongModelError
        ):
            merge_maps([a, tmp_path / name], tmp_path / "out")


def test_maps_given_twice_and_results_that_are_read(tmp_path, a, b):
    (tmp_path / "link").symlink_to(a)
    for path in (a, tmp_path / "link", tmp_path / "." / "a"):
        with refused(tmp_path, "given twice"):
            merge_maps([a, b, path], tmp_path / "out")
    for path in (a, b, tmp_path / "link"):
        with refused(tmp_path, "is read from", "give another path"):
            merge_maps([a, b], path, overwrite=True)
        with refused(tmp_path, "give another path"):
            merge_maps([a, b], path)


def test_a_result_that_exists(tmp_path, a, b):
    old = make_map(tmp_path / "old", 3)
    with refused(tmp_path, str(old), "exists"):
        merge_maps([a, b], old)
    merge_maps([a, b], old, overwrite=True)
    check_result(old, a, b)
    assert len(content(old)) == 20
    with open_map(old, read_only=True), pytest.raises(MapError, match="already open"):
        merge_maps([a, b], old, overwrite=True)
    merge_maps([a, b], tmp_path / "new" / "folder" / "out")
    check_result(tmp_path / "new" / "folder" / "out", a, b)


@pytest.mark.parametrize("edit", ["merge", "prune", "split"])
def test_maps_that_cannot_be_read(tmp_path, a, edit):
    edits = {
        "merge": lambda path: merge_maps([a, path], tmp_path / "out"),
        "prune": lambda path: prune_map(path, tmp_path / "out"),
        "split": lambda path: split_map(path, tmp_path / "out", sessions=["s"]),
    }
    sound = make_map(tmp_path / "m", 300).read_bytes()
    with closing(sqlite3.connect(tmp_path / "m")) as db:
        db.execute("PRAGMA user_version = 9")
        db.execute("PRAGMA journal_mode = DELETE")
    newer = (tmp_path / "m").read_bytes()
    for data, reason in (
        (b"", "empty"),
        (b"text" * 99, "not an SQLite file"),
        (sound[: len(sound) // 2], "truncated"),
        (newer, "newer hashvpr_ros"),
    ):
        (tmp_path / "m").write_bytes(data)
        with refused(tmp_path, str(tmp_path / "m"), reason):
            edits[edit](tmp_path / "m")
    with refused(tmp_path, str(tmp_path / "none"), "no such map", error=MapNotFoundError):
        edits[edit](tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "UPDATE keyframes SET crc = crc + 1 WHERE id = 7",
            "keyframe 7: its content",
        ),
        (
            "UPDATE keyframes SET camera = 'other' WHERE id = 7",
            "keyframe 7: its content",
        ),
        ("DELETE FROM features WHERE id = 7", "keyframe 7: its feature is missing"),
        ("DELETE FROM thumbnails WHERE id = 8", "keyframe 8: its thumbnail is missing"),
        ("UPDATE keyframes SET px = NULL WHERE id = 7", "keyframe 7: its content"),
        ("UPDATE keyframes SET px = 'east' WHERE id = 7", "damaged"),
        ("UPDATE keyframes SET camera = x'00' WHERE id = 7", "damaged"),
        ("UPDATE sessions SET name = x'00'", "damaged"),
        ("DELETE FROM sessions", "damaged"),
        ("UPDATE checks SET count = 'x'", "damaged"),
        ("UPDATE checks SET count = 1 << 40 WHERE name = 'last id'", "damaged"),
    ],
)
def test_damage_does_not_get_into_a_result(tmp_path, a, change, reason):
    path = make_map(tmp_path / "m", 20)
    with closing(sqlite3.connect(path)) as db:
        db.execute(change)
        db.commit()
    with refused(tmp_path, str(path), reason):
        merge_maps([a, path], tmp_path / "out")


def test_a_map_that_is_being_written(tmp_path, a):
    writer = start(
        """
m = open_map(sys.argv[1], session="w", commit_period_s=1e9)
add_places(m, 101, 121)
m.flush()
add_places(m, 121, 131)
say("ready")
sys.stdin.readline()
m.close()
say(len(m))
""",
        tmp_path / "w",
    )
    assert writer.stdout.readline() == "ready\n"
    merge_maps([a, tmp_path / "w"], tmp_path / "out")
    assert len(content(tmp_path / "out")) == 30  # what was committed
    with pytest.raises(MapError, match="another process has this map open"):
        merge_maps([a, tmp_path / "out"], tmp_path / "w", overwrite=True)
    out, error = writer.communicate("\n", timeout=20)
    assert out == "30\n", error
    with open_map(tmp_path / "w", read_only=True) as place_map:
        assert place_map.verify() == [] and len(place_map) == 30


def test_what_is_read_is_of_one_moment(tmp_path):
    writer = start(
        """
m = open_map(sys.argv[1], session="w")
add_places(m, 101, 121)
m.flush()
say("ready")
sys.stdin.readline()
m.clear()
add_places(m, 1, 4)
m.flush()
say("cleared")
sys.stdin.readline()
m.close()
""",
        tmp_path / "w",
    )
    assert writer.stdout.readline() == "ready\n"
    with MapReader(tmp_path / "w") as source:
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "cleared\n"
        assert [row.stamp_ns for row in source.rows()] == [i * 10**9 for i in range(101, 121)]
    with MapReader(tmp_path / "w") as source:
        assert [row.id for row in source.rows()] == [21, 22, 23]
    _, error = writer.communicate("\n", timeout=20)
    assert writer.returncode == 0, error


def test_a_merge_that_is_killed_leaves_nothing_or_all(tmp_path):
    rng = random.Random(5)
    for name, session in (("a", "one"), ("b", "two")):
        new_map(tmp_path / name, session, 1, 1501)
    before = folder_state(tmp_path)
    script = """
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.merge import merge_maps
say("ready")
merge_maps(sys.argv[1:3], sys.argv[3])
say("done")
sys.stdin.read()
"""
    for _ in range(5):
        process = start(script, tmp_path / "a", tmp_path / "b", tmp_path / "out")
        process.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.15))
        process.kill()
        out, error = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGKILL, error
        found = folder_state(tmp_path)
        assert {n: found[n] for n in before} == before
        for leftover in tmp_path.glob(".out.*"):  # beside the whole result, too: it has two names
            leftover.unlink()
        if "out" in found:
            assert np.array_equal(ids_of(tmp_path / "out"), np.arange(1, 3001))
            check_result(tmp_path / "out", tmp_path / "a", tmp_path / "b")
            (tmp_path / "out").unlink()
        else:
            assert "done" not in out


def test_a_disk_that_is_full_is_told_of_the_result(tmp_path, a, b):
    process = start(
        """
import resource
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.merge import merge_maps
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    merge_maps(sys.argv[1:3], sys.argv[3])
except MapError as e:
    say(e)
""",
        a,
        b,
        tmp_path / "out",
    )
    before = folder_state(tmp_path)
    out, error = process.communicate(timeout=20)
    assert out.startswith(f"{tmp_path / 'out'}: writing"), out + error
    assert folder_state(tmp_path) == before
