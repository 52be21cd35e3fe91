"""The node keeps a good copy of its map, finds damage when it starts, and names the copy."""

import os
import shutil
import signal
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from small_disks import tmpfs
from vpr_process import Camera, wait_until

from hashvpr_ros.map.backup import restore
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.srv import LoadMap, SaveMap
from hashvpr_ros.types import Descriptor

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "publish__diagnostics_period_s": 0.1,
    "map__commit_period_s": 0.1,
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "maps").mkdir()
    return tmp_path / "maps" / "m.vprmap"


@pytest.fixture
def good(path):
    return path.with_name("m.vprmap.good")


def record(node, first, last):
    camera = Camera(node).connect()
    for i in range(first, last):
        camera.show(i, float(i))


def held(path):
    return PlaceMap.read_info(path).keyframes


def damage(path):
    """Change a value behind the map's back."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE thumbnails SET jpeg = zeroblob(9) WHERE id = 2")
        db.commit()


def test_the_copy_follows_the_map_from_end_to_end(start, path, good):
    node = start(map__path=str(path), **EVERYTHING).activate()
    record(node, 1, 5)
    assert not good.exists()
    assert node.stop() == 0
    assert held(good) == held(path) == 4
    made = good.stat().st_mtime_ns
    # As it was closed: no other copy.
    node = start(udp_only=True, map__path=str(path), **EVERYTHING).activate()
    assert good.stat().st_mtime_ns == made
    record(node, 5, 7)
    assert node.change("deactivate") and node.change("cleanup")
    assert held(good) == 6
    # After a crash the copy is made when the map is loaded.
    assert node.change("configure") and node.change("activate")
    record(node, 7, 9)
    wait_until(lambda: held(path) == 8, "it is written")
    node.stop(signal.SIGKILL)
    assert held(good) == 6
    node = start(map__path=str(path), **EVERYTHING)
    assert node.change("configure")
    assert held(good) == 8
    assert node.stop() == 0
    assert sorted(os.listdir(path.parent)) == ["m.vprmap", "m.vprmap.good"]


def damaged_after_a_crash(start, path):
    """A map of six keyframes, of which a copy has four, and the second is damaged."""
    node = start(map__path=str(path), **EVERYTHING).activate()
    record(node, 1, 5)
    assert node.stop() == 0
    node = start(udp_only=True, map__path=str(path), **EVERYTHING).activate()
    record(node, 5, 7)
    wait_until(lambda: held(path) == 6, "it is written")
    node.stop(signal.SIGKILL)
    damage(path)


def test_a_damaged_map_is_refused_with_the_copy(start, path, good):
    damaged_after_a_crash(start, path)
    before = path.read_bytes(), good.read_bytes()
    node = start(map__path=str(path), **EVERYTHING)
    assert not node.change("configure")
    assert node.logged("keyframe 2: its thumbnail does not match its checksum") == 1
    assert node.logged("restores the backup of 20") == 1
    assert node.logged("with 4 keyframes") == 1
    assert (path.read_bytes(), good.read_bytes()) == before
    assert restore(path).keyframes == 4
    assert node.change("configure"), node.text()
    assert node.stop() == 0


def test_a_damaged_map_is_used_without_what_is_damaged(start, path, good, diagnostics):
    damaged_after_a_crash(start, path)
    before = good.read_bytes()
    node = start(map__path=str(path), map__on_damage="drop", **EVERYTHING)
    assert node.change("configure"), node.text()
    said = diagnostics(node, lambda d: "damaged" in d["node"]["message"], "it is said")
    assert "left out: 1 of 6 keyframes" in said["node"]["message"]
    assert node.change("activate")
    record(node, 7, 9)
    assert node.stop() == 0
    with PlaceMap.open(path, read_only=True, verify=True) as place_map:
        assert place_map.ids().tolist() == [1, 3, 4, 5, 6, 7, 8]
    # The copy of before has the second keyframe.
    assert path.with_name(good.name + ".old").read_bytes() == before and held(good) == 7
    assert [p.name for p in path.parent.iterdir() if ".damaged-" in p.name]


def test_a_map_that_is_copied_over_is_said_and_answers_again_when_it_is_loaded(start, path):
    node = start(map__path=str(path), map__keep_good_copy=False, **EVERYTHING).activate()
    record(node, 1, 4)
    assert node.call(SaveMap, "save_map", path=f"{path}.more").result == SaveMap.Response.RESULT_OK
    record(node, 4, 7)
    assert node.stop() == 0 and held(path) == 6
    node = start(map__path=str(path), mode="localization", **EVERYTHING).activate()
    camera = Camera(node).connect()
    assert camera.show(2, 100.0) is not None
    shutil.copyfile(f"{path}.more", path)
    # It is noticed while nothing is asked of the map.
    wait_until(lambda: node.logged("was changed by another program while it was open"), "said")
    assert node.call(LoadMap, "load_map", path=str(path)).keyframes == 3
    assert camera.show(2, 101.0) is not None
    assert node.stop() == 0


def test_a_map_that_cannot_be_read_is_refused_with_the_copy(start, path, good):
    node = start(map__path=str(path), **EVERYTHING).activate()
    record(node, 1, 3)
    assert node.stop() == 0
    path.write_bytes(path.read_bytes()[:5000])
    node = start(map__path=str(path), **EVERYTHING)
    assert not node.change("configure")
    assert node.logged(f"`hashvpr map restore {path}` restores the backup of 20") == 1
    assert restore(path).keyframes == 2
    assert node.change("configure"), node.text()


def test_a_map_that_is_gone_is_not_begun_anew_beside_its_copy(start, path, good):
    node = start(map__path=str(path), **EVERYTHING).activate()
    record(node, 1, 3)
    assert node.stop() == 0
    path.unlink()
    node = start(map__path=str(path), **EVERYTHING)
    assert not node.change("configure")
    assert node.logged(f"`hashvpr map restore {path}` restores the backup of 20") == 1
    assert not path.exists()
    assert restore(path).keyframes == 2
    assert node.change("configure"), node.text()


def test_loading_another_map_keeps_copies_of_both(start, path, good):
    other = path.with_name("other.vprmap")
    for target in (other, path):
        node = start(map__path=str(target), map__keep_good_copy=False, **EVERYTHING).activate()
        record(node, 1, 3)
        assert node.stop() == 0
        assert not target.with_name(target.name + ".good").exists()
    node = start(map__path=str(path), **EVERYTHING).activate()
    assert held(good) == 2
    record(node, 3, 5)
    assert node.call(LoadMap, "load_map", path=str(other)).result == LoadMap.Response.RESULT_OK
    assert held(good) == 4 and held(f"{other}.good") == 2


def test_saving_over_a_map_keeps_a_copy_of_it(start, path, good):
    with PlaceMap.open(path, "ab" * 32, 4, session="s") as place_map:
        place_map.add(
            camera="c",
            stamp_ns=1,
            pose=None,
            descriptor=Descriptor(np.zeros(64, np.uint8), np.ones(4, np.float32)),
        )
    node = start(**EVERYTHING).activate()
    record(node, 1, 3)
    saved = node.call(SaveMap, "save_map", path=str(path), overwrite=True)
    assert saved.result == SaveMap.Response.RESULT_OK and held(path) == 2
    assert held(good) == 1
    saved = node.call(SaveMap, "save_map", path=str(good), overwrite=True)
    assert saved.result == SaveMap.Response.RESULT_INVALID_PATH and held(good) == 1


def test_a_full_disk_is_a_warning_and_the_former_copy_stays(start, tmp_path):
    with tmpfs(tmp_path / "disk") as folder:
        path = folder / "m.vprmap"
        node = start(map__path=str(path), **EVERYTHING).activate()
        record(node, 1, 3)
        assert node.stop() == 0
        good = folder / "m.vprmap.good"
        before = good.read_bytes()
        node = start(map__path=str(path), **EVERYTHING).activate()
        record(node, 3, 5)
        wait_until(lambda: held(path) == 4, "it is written")
        with (folder / "filler").open("wb", buffering=0) as f, pytest.raises(OSError):
            while True:
                f.write(bytes(4096))
        assert node.stop() == 0
        assert node.logged("the disk is full") == node.logged("; the former backup stays") == 1
        assert node.logged("keyframes were lost") == 0
        assert good.read_bytes() == before
        (folder / "filler").unlink()
        assert held(path) == 4
