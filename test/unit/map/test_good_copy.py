"""The last good copy of a map: when it is made, what never spoils it, and going back to it."""

import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from edit_helpers import content, refused
from map_helpers import add_places, folder_state, make_map, open_map, place, start
from test_durability import on_a_small_disk
from test_store import crash

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files
from hashvpr_ros.map.backup import damage_of, keep_good_copy, restore
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.files import good_copy_of
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.schema import DamagedMapError, MapNotFoundError, NewerMapError


@pytest.fixture
def path(tmp_path):
    return make_map(tmp_path / "a map", 20)


@pytest.fixture
def good(path):
    """The good copy of the map."""
    assert keep_good_copy(path)
    return good_copy_of(path)


def flip(path, what):
    """Flip a bit of a value that a map holds."""
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(what)] ^= 2
    path.write_bytes(damaged)


def test_a_copy_is_made_where_something_has_changed(path, tmp_path):
    with open_map(path, session="t") as place_map:
        assert place_map.keep_good_copy()
        assert not place_map.keep_good_copy()
        add_places(place_map, 21, 25)
        assert place_map.keep_good_copy()  # the open batch is in it
        place_map.add_headings({"camera0": 1.0})
        assert place_map.keep_good_copy()
        assert not place_map.keep_good_copy()
    assert list(folder_state(tmp_path)) == ["a map", "a map.good"]
    assert content(good_copy_of(path)) == content(path)
    assert not keep_good_copy(path)
    with PlaceMap.open(good_copy_of(path), read_only=True) as place_map:
        assert place_map.verify() == [] and place_map.headings_rad == {"camera0": 1.0}


@pytest.mark.parametrize("name", ["n" * 225, "é" * 112], ids=["long", "long in bytes"])
def test_a_long_name_is_a_name(tmp_path, name):
    path = make_map(tmp_path / name, 5)
    with open_map(path) as place_map:
        assert place_map.keep_good_copy()
        assert place_map.copy_to(tmp_path / f"c{name}") == 5
    path.write_bytes(b"")
    assert restore(path).keyframes == 5
    left = files.temporary_beside(good_copy_of(path))
    left.touch()  # of a killed process
    with open_map(path) as place_map:
        add_places(place_map, 6, 7)
        assert place_map.keep_good_copy() and not left.exists()


def test_no_copy_of_nothing(path, tmp_path):
    with open_map() as in_memory:
        add_places(in_memory, 1, 3)
        assert not in_memory.keep_good_copy()
    with open_map(path, read_only=True) as place_map:
        assert not place_map.keep_good_copy()
    assert not keep_good_copy(tmp_path / "none")
    with open_map(tmp_path / "empty") as place_map:
        assert not place_map.keep_good_copy()
    assert sorted(folder_state(tmp_path)) == ["a map", "empty"]


def test_a_cleared_map_leaves_the_copy(path, good):
    with open_map(path) as place_map:
        place_map.clear()
        assert not place_map.keep_good_copy()
    assert len(content(good)) == 20


@pytest.mark.parametrize("what", [b"camera1", b"\xff\xd8 thumbnail 18"])
def test_a_damaged_map_does_not_replace_the_copy(path, good, what):
    with open_map(path) as place_map:
        add_places(place_map, 21, 25)
    before = good.read_bytes()
    flip(path, what)
    said = pytest.raises(DamagedMapError, match=r"damaged \(.*hashvpr map restore .*with 20")
    with said, open_map(path) as place_map:
        place_map.keep_good_copy()
    assert good.read_bytes() == before
    with pytest.raises(DamagedMapError):
        keep_good_copy(path)
    assert good.read_bytes() == before and sorted(os.listdir(path.parent)) == ["a map", good.name]


def test_a_full_disk_leaves_map_and_copy_whole(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
disk = sys.argv[1]
mount(disk, 4_000_000)
m = open_map(disk + "/m", session="s")
add_places(m, 1, 21)
assert m.keep_good_copy()
before = open(disk + "/m.good", "rb").read()
while len(m) < 1000:
    add_places(m, len(m) + 1, len(m) + 101)
    m.flush()
free = fill_up(disk)
try:
    m.keep_good_copy()
except MapError as e:
    assert "making the backup failed: the disk is full" in str(e), e
else:
    assert False
assert open(disk + "/m.good", "rb").read() == before
free()
assert sorted(os.listdir(disk)) == ["m", "m-shm", "m-wal", "m.good"], os.listdir(disk)
assert m.verify() == []
m.close()
say("good")
""",
    )


def test_killed_while_copying_the_former_copy_stays_and_no_rest(path, good, tmp_path):
    with open_map(path) as place_map:
        add_places(place_map, 21, 25)
    before = good.read_bytes()
    process = start(
        """
from hashvpr_ros.map import backup
backup.find_problems = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
open_map(sys.argv[1]).keep_good_copy()
""",
        path,
    )
    process.communicate(timeout=20)
    assert process.returncode == -9
    assert good.read_bytes() == before
    assert any(n.startswith(".a map.good.") for n in os.listdir(tmp_path))
    assert keep_good_copy(path)
    assert not any(n.startswith(".") for n in os.listdir(tmp_path))
    assert len(content(good)) == 24


def test_a_copy_that_holds_more_than_the_map_stays(path, good):
    crash(path, 21, 31)
    assert keep_good_copy(path)
    Path(f"{path}-wal").unlink()  # as after a power cut: it never was on the disk
    before = good.read_bytes()
    with open_map(path, session="t") as place_map:
        for end in (21, 26):  # ids are given again
            add_places(place_map, 100, 100 + end - len(place_map))
            with pytest.raises(
                MapError, match=r"last id is 2\d.* at 30; `hashvpr map restore --f"
            ):
                place_map.keep_good_copy()
            assert good.read_bytes() == before
        # The map now goes on further than the copy, but not from there.
        add_places(place_map, 200, 220)
        assert place_map.keep_good_copy() and Path(f"{good}.old").read_bytes() == before
        add_places(place_map, 220, 221)
        assert place_map.keep_good_copy() and Path(f"{good}.old").read_bytes() == before
    assert content(good) == content(path)


def test_a_copy_of_another_map_is_kept_under_another_name(path, good, caplog):
    before = good.read_bytes()
    path.unlink()
    make_map(path.with_name("other"), 3).rename(path)
    with open_map(path) as place_map:
        assert place_map.keep_good_copy()
        place_map.clear()
        add_places(place_map, 1, 3)
        assert place_map.keep_good_copy()  # what is deleted is not kept for that
    assert Path(f"{good}.old").read_bytes() == before
    assert len(content(good)) == 2
    assert [f"kept as {good}.old" in r.message for r in caplog.records] == [True]


def test_a_damaged_copy_is_made_anew_when_the_map_is_loaded(path, good):
    sound = content(good)
    with open_map(path) as place_map:
        flip(good, place(8).thumbnail)
        assert place_map.keep_good_copy() and content(good) == sound
        flip(good, place(8).thumbnail)
        assert not place_map.keep_good_copy()  # reading all of it takes time: once a load
    assert keep_good_copy(path) and content(good) == sound


@pytest.mark.parametrize(
    "change",
    ["DELETE FROM keyframes", "UPDATE checks SET sum = 'many'", "DROP TABLE meta"],
)
def test_a_copy_that_makes_no_sense_is_replaced(path, good, change):
    with closing(sqlite3.connect(good)) as db:
        db.execute(change)
        db.execute("UPDATE checks SET sum = '0'")
        db.commit()
    assert keep_good_copy(path) and content(good) == content(path)


# Damage names the copy


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:9000]),
        lambda path: path.write_bytes(b"?" + path.read_bytes()[1:]),
        lambda path: flip(path, b"feature_dim"),
        lambda path: flip(path, b"CREATE TABLE sessions"),
    ],
)
def test_opening_a_damaged_map_names_the_copy_and_how_to_go_back(path, good, damage):
    damage(path)
    os.utime(good, (0, 1_600_000_000))
    for read in (lambda: open_map(path), lambda: open_map(path, read_only=True)):
        with pytest.raises(MapError) as e:
            read()
        text = str(e.value)
        assert f"`hashvpr map restore '{path}'` restores the backup of 2020-09-1" in text
        assert text.endswith("with 20 keyframes") and "\n" not in text
    with pytest.raises(MapError, match="hashvpr map restore"):
        MapReader(path)


def test_an_unreadable_copy_is_named_all_the_same(path):
    good_copy_of(path).write_bytes(b"what")
    path.write_bytes(b"")
    with pytest.raises(MapError, match="with an unknown number of keyframes"):
        open_map(path)


# Going back


def test_restore(path, good, tmp_path):
    was = content(path)
    flip(path, place(8).thumbnail)
    damaged = path.read_bytes()
    restored = restore(path)
    assert restored.keyframes == 20
    assert content(path) == was
    aside = restored.set_aside
    assert aside.read_bytes() == damaged and aside.name.startswith("a map.damaged-20")
    assert sorted(os.listdir(tmp_path)) == sorted(["a map", aside.name, good.name])
    with open_map(path) as place_map:
        assert place_map.verify() == [] and add_places(place_map, 21, 22) == [21]
    # Again at the same moment: no name is used twice.
    flip(path, place(8).thumbnail)
    assert restore(path).set_aside.exists() and aside.read_bytes() == damaged


def test_restore_takes_the_log_of_the_damaged_map_aside(path, good):
    process = start(
        "m = open_map(sys.argv[1], session='late')\nadd_places(m, 21, 31)\nm.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        path,
    )
    process.communicate(timeout=20)
    log = Path(f"{path}-wal").read_bytes()
    path.write_bytes(path.read_bytes()[:5000] + b"garbage" * 900)
    aside = restore(path).set_aside
    assert Path(f"{aside}-wal").read_bytes() == log
    assert not Path(f"{path}-wal").exists()
    with open_map(path, read_only=True) as place_map:
        assert len(place_map) == 20 and place_map.verify() == []


def test_restore_a_map_that_is_gone(path, good):
    path.unlink()
    restored = restore(path)
    assert (restored.keyframes, restored.set_aside) == (20, None)
    assert content(path) == content(good)


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"create": False}])
def test_a_map_that_is_gone_is_not_begun_anew_beside_its_copy(path, good, options):
    path.unlink()
    before = folder_state(path.parent)
    with pytest.raises(MapNotFoundError, match=r"map restore .* with 20 keyframes; move"):
        open_map(path, **options)
    assert folder_state(path.parent) == before
    good.unlink()
    with open_map(path) as place_map:
        assert len(place_map) == 0


def test_a_copy_is_not_put_beside_the_log_of_a_map_that_is_gone(path):
    """SQLite would take the log for the copy's own."""
    keep_good_copy(path)
    path.unlink()
    Path(f"{path}-wal").write_bytes(b"committed once")
    with pytest.raises(MapError, match="belongs to a map that does not exist"):
        restore(path)
    assert not path.exists() and Path(f"{path}-wal").read_bytes() == b"committed once"


def test_restore_refuses(path, tmp_path):
    for force in (False, True):  # without a copy a sound map needs no advice
        with refused(tmp_path, "is not damaged; leave it"):
            restore(path, force=force)
    sound = path.read_bytes()
    flip(path, place(8).thumbnail)
    with refused(tmp_path, "the map has no backup", error=MapNotFoundError):
        restore(path)
    path.write_bytes(sound)
    keep_good_copy(path)
    with refused(tmp_path, "is not damaged", "--force"):
        restore(path)
    with open_map(path) as place_map:
        add_places(place_map, 21, 23)
    assert restore(path, force=True).keyframes == 20
    good = good_copy_of(path)
    path.write_bytes(b"")
    flip(good, place(8).thumbnail)
    with refused(tmp_path, "the backup is damaged, too (keyframe 8"):
        restore(path)


def test_what_must_not_be_read_is_not_damaged(path, good, tmp_path):
    newer = struct.pack(">I", 9)
    sound = {p: p.read_bytes() for p in (path, good)}
    for p, force in ((path, False), (good, True)):
        p.write_bytes(sound[p][:60] + newer + sound[p][64:])
        with refused(tmp_path, "made by a newer hashvpr_ros", error=NewerMapError):
            restore(path, force=force)
        p.write_bytes(sound[p])
    # The map is looked at first: it needs no other where it is sound.
    flip(good, place(8).thumbnail)
    with refused(tmp_path, f"{path}: is not damaged"):
        restore(path)
    with refused(tmp_path, "the backup is damaged (keyframe 8", "so it is not restored"):
        restore(path, force=True)
    path.unlink()
    path.mkdir()
    with refused(tmp_path, "is not a file"):
        restore(path)


def test_damage_in_a_log_is_damage(path, good):
    crash(path, 21, 31)
    log = Path(f"{path}-wal")
    assert damage_of(path, {}) == []
    flip(log, place(22).thumbnail)
    assert [p[:12] for p in damage_of(path, {})] == ["WAL: damaged"]
    restored = restore(path)
    assert restored.keyframes == 20 and Path(f"{restored.set_aside}-wal").exists()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("at", ["sync", "fold_log", "put"])
def test_restore_that_is_interrupted_leaves_the_log_with_its_map(
    path, good, tmp_path, monkeypatch, links, at
):
    crash(path, 21, 31)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def refuse(*_, **__):
        raise OSError("there are no links")

    before = folder_state(tmp_path)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(files, at, interrupt)
        if not links:
            m.setattr(Path, "hardlink_to", refuse)
        restore(path, force=True)
    after = folder_state(tmp_path)
    assert after.keys() == before.keys() and path.stat().st_nlink == 1
    with open_map(path) as place_map:
        assert len(place_map) == 30 and place_map.verify() == []
    assert restore(path, force=True).keyframes == 20


def test_restore_leaves_a_map_in_use(path, good):
    with open_map(path), pytest.raises(MapError, match="open in this process"):
        restore(path, force=True)
    assert len(content(path)) == 20


def test_restore_that_is_killed_leaves_the_one_or_the_other(path, good, tmp_path):
    """At no moment there is no map of the name: a node would make an empty one."""
    damaged = path.read_bytes().replace(b"thumbnail 8", b"thumbnail 9")
    for at in ("hashvpr_ros.map.backup._set_aside", "os.link", "os.replace", "os.fsync"):
        path.write_bytes(damaged)
        module, name = at.rsplit(".", 1)
        process = start(
            f"""
import {module} as module
from hashvpr_ros.map.backup import restore
module.{name} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
restore(sys.argv[1])
""",
            path,
        )
        process.communicate(timeout=20)
        assert process.returncode == -9
        assert path.read_bytes() == damaged
        assert restore(path).keyframes == 20
        with open_map(path, read_only=True) as place_map:
            assert place_map.verify() == []
