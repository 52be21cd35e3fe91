"""The disk of the map is read-only, or becomes so while the node records."""

import signal
import time

import pytest
from small_disks import breaking_disk, loop_mounted, read_only
from vpr_process import Camera, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.srv import ClearMap, InspectMap, LoadMap, SaveMap, SetMode

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "publish__diagnostics_period_s": 0.1,
    "map__commit_period_s": 0.1,
}
ERROR = 2


def state(folder):
    """Every name in a folder with its bytes."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def recorded(start, tmp_path):
    """A folder with a map of pictures 1 to 5, as it was closed."""
    folder = tmp_path / "maps"
    folder.mkdir()
    node = start(map__path=str(folder / "m.vprmap"), **EVERYTHING).activate()
    camera = Camera(node).connect()
    for i in range(1, 6):
        camera.show(i, float(i))
    assert node.stop() == 0
    return folder


def use_for_localization(node):
    """Everything that mode localization offers."""
    camera = Camera(node).connect()
    for i in range(1, 6):
        shown = camera.show(i, 100.0 + i)
        assert shown.hypotheses[0].place_id == i and shown.keyframe_id == 0
    answer = node.call(InspectMap, "inspect_map", keyframe_id=2, verify=True)
    assert answer.result == answer.RESULT_OK, answer.message
    assert answer.status.read_only and answer.status.keyframes == 5 and len(answer.thumbnail.data)
    assert (
        node.call(ClearMap, "clear_map", confirm=True).result == ClearMap.Response.RESULT_READ_ONLY
    )
    assert node.call(SaveMap, "save_map").keyframes == 5
    return camera


@pytest.mark.parametrize("mounted", [True, False], ids=["read-only disk", "writable disk"])
def test_localization_works_and_leaves_no_byte_changed(start, recorded, tmp_path, mounted):
    before = state(recorded)
    with read_only(recorded, tmp_path / "mounted") as folder:
        path = (folder if mounted else recorded) / "m.vprmap"
        node = start(map__path=str(path), mode="localization", **EVERYTHING).activate()
        camera = use_for_localization(node)
        copy = tmp_path / "copy.vprmap"
        assert node.call(SaveMap, "save_map", path=str(copy)).keyframes == 5
        assert node.change("deactivate") and node.change("activate")
        if mounted:
            answer = node.call(SetMode, "set_mode", mode="slam")
            assert answer.result == answer.RESULT_FAILED
            assert "its disk is read-only" in answer.message and "localization" in answer.message
            assert camera.connect().show(3, 300.0).hypotheses[0].place_id == 3  # as before
        assert state(recorded) == before
        assert node.stop() == 0
        assert node.logged("[ERROR]") == node.logged("[WARN]") == 0, node.text()
    assert state(recorded) == before


def test_localization_on_what_a_killed_writer_left(start, recorded, tmp_path):
    node = start(udp_only=True, map__path=str(recorded / "m.vprmap"), **EVERYTHING).activate()
    camera = Camera(node).connect()
    camera.show(6, 6.0)
    wait_until(lambda: PlaceMap.read_info(recorded / "m.vprmap").keyframes == 6, "it is written")
    node.stop(signal.SIGKILL)
    assert "m.vprmap-wal" in state(recorded)
    before = state(recorded)
    with read_only(recorded, tmp_path / "mounted") as folder:
        path = folder / "m.vprmap"
        node = start(map__path=str(path), mode="localization", **EVERYTHING).activate()
        answer = node.call(InspectMap, "inspect_map", keyframe_id=6, verify=True)
        assert answer.result == answer.RESULT_OK and answer.status.keyframes == 6
        assert Camera(node).connect().show(6, 200.0).hypotheses
        assert node.stop() == 0
        assert state(recorded) == before
        (recorded / "m.vprmap-shm").unlink()  # as where map and log alone were copied
        node = start(map__path=str(path), mode="localization", **EVERYTHING)
        assert not node.change("configure")
        assert node.logged("its WAL m.vprmap-wal can only be read on a writable disk") == 1


def test_mapping_on_a_read_only_disk_is_refused_and_says_what_helps(start, recorded, tmp_path):
    before = state(recorded)
    with read_only(recorded, tmp_path / "mounted") as folder:
        node = start(map__path=str(folder / "m.vprmap"), **EVERYTHING)
        assert not node.change("configure")
        assert node.logged("its disk is read-only") == 1
        assert node.logged("make it writable, or open the map read-only (mode localization)") == 1
        new = start(map__path=str(folder / "new.vprmap"), **EVERYTHING)
        assert not new.change("configure") and new.logged("disk is read-only") == 1
        assert node.set("mode", "localization").successful
        assert node.change("configure") and node.change("activate")
        assert Camera(node).connect().show(4, 200.0).hypotheses[0].place_id == 4
    assert state(recorded) == before


def test_a_disk_that_breaks_while_the_node_records(start, tmp_path, diagnostics):
    with breaking_disk(tmp_path / "disk") as (disk, break_it):
        node = start(map__path=str(disk / "m.vprmap"), **EVERYTHING).activate()
        camera = Camera(node).connect()
        for i in range(1, 6):
            camera.show(i, float(i))
        diagnostics(node, lambda d: d["node"]["map_uncommitted"] == "0", "it is written")
        break_it()
        shown = 5

        def broken(d):
            nonlocal shown
            shown += 1
            seen = camera.show(shown, float(shown))  # it goes on meanwhile
            assert seen.keyframe_id == shown
            return d["node"]["level"] == ERROR

        said = diagnostics(node, broken, "the disk is said to be read-only")["node"]["message"]
        assert "its disk is read-only" in said and "save_map" in said and "load_map" in said
        assert camera.show(3, 500.0).hypotheses[0].place_id == 3
        shown += 1
        answer = node.call(SaveMap, "save_map")
        assert answer.result == answer.RESULT_WRITE_FAILED and "read-only" in answer.message
        # Said once, and shown as long as it lasts: longer than what happened once is shown.
        end = time.monotonic() + 11.0
        said = diagnostics(node, lambda d: time.monotonic() > end, "time passes")["node"]
        assert said["level"] == ERROR and "its disk is read-only" in said["message"]
        late = node.call(InspectMap, "inspect_map").status
        assert late.uncommitted > 0
        assert node.logged("its disk is read-only") == 1, node.text()
        assert said["failures"] == "1"
        other = tmp_path / "other.vprmap"
        # Another map would cost what waits: it is refused.
        info = PlaceMap.read_info(disk / "m.vprmap")
        PlaceMap.open(tmp_path / "third", info.fingerprint, info.feature_dim).close()
        answer = node.call(LoadMap, "load_map", path=str(tmp_path / "third"))
        assert answer.result != answer.RESULT_OK and "its disk is read-only" in answer.message
        # A copy on another disk has all of it, and the node records there.
        answer = node.call(SaveMap, "save_map", path=str(other))
        assert (answer.result, answer.keyframes) == (answer.RESULT_OK, shown), answer.message
        answer = node.call(LoadMap, "load_map", path=str(other))
        assert (answer.result, answer.keyframes) == (answer.RESULT_OK, shown), answer.message
        assert camera.show(50, 600.0).keyframe_id == shown + 1
        diagnostics(
            node,
            lambda d: d["node"]["map_uncommitted"] == "0" and not d["node"]["level"],
            "it is written",
        )
        assert node.stop() == 0
        assert node.logged("keyframes were lost") == 0
    with PlaceMap.open(other, read_only=True) as place_map:
        assert len(place_map) == shown + 1 and place_map.verify() == []
    # What was written before is on the disk that broke.
    with (
        loop_mounted(tmp_path / "disk.img", tmp_path / "again") as folder,
        PlaceMap.open(folder / "m.vprmap", read_only=True) as place_map,
    ):
        assert len(place_map) == 5 and place_map.verify() == []
