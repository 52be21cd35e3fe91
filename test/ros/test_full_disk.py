"""The disk of the map runs full, or the map's file is lost, while the node works."""

import pytest
from small_disks import tmpfs
from vpr_process import Camera, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.srv import SaveMap

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "publish__diagnostics_period_s": 0.1,
    "map__commit_period_s": 0.1,
}
ERROR = 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, for root alone."""
    with tmpfs(tmp_path / "disk") as folder:
        yield folder


def test_a_full_disk_is_survived_and_nothing_is_lost(start, small_disk, diagnostics):
    node = start(map__path=str(small_disk / "m.vprmap"), **EVERYTHING).activate()
    camera = Camera(node).connect()
    assert camera.show(0, 0.0).keyframe_id == 1
    diagnostics(node, lambda d: d["node"]["map_uncommitted"] == "0", "it is written")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as f, pytest.raises(OSError, match="No space"):
        while True:
            f.write(bytes(4096))
    shown = 1

    def full(d):
        nonlocal shown
        assert camera.show(shown, shown).keyframe_id == shown + 1  # it goes on meanwhile
        shown += 1
        return d["node"]["level"] == ERROR

    said = diagnostics(node, full, "the full disk is said")
    assert "stay in memory; save the map" in said["node"]["message"]
    assert "the disk is full" in said["node"]["message"] and int(said["node"]["failures"]) > 0
    # Again and again, but not for each image.
    assert 1 <= node.logged("the disk is full") < 5
    answer = node.call(SaveMap, "save_map")
    assert answer.result == answer.RESULT_WRITE_FAILED and "disk is full" in answer.message
    filler.unlink()
    for _ in range(3):
        assert camera.show(shown, shown).keyframe_id == shown + 1
        shown += 1
    said = diagnostics(node, lambda d: d["node"]["map_uncommitted"] == "0", "it is written")
    assert node.call(SaveMap, "save_map").keyframes == shown
    assert node.stop() == 0
    with PlaceMap.open(small_disk / "m.vprmap", create=False) as place_map:
        assert len(place_map) == shown and place_map.verify() == []


def test_what_a_full_disk_loses_at_the_end_is_said(start, small_disk, diagnostics):
    node = start(map__path=str(small_disk / "m.vprmap"), **EVERYTHING).activate()
    camera = Camera(node).connect()
    camera.show(0, 0.0)
    diagnostics(node, lambda d: d["node"]["map_uncommitted"] == "0", "it is written")
    with (small_disk / "filler").open("wb", buffering=0) as f, pytest.raises(OSError):
        while True:
            f.write(bytes(4096))
    for i in range(1, 40):
        camera.show(i, i)
    wait_until(lambda: node.logged("the disk is full"), "the full disk is said")
    assert node.stop() == 1
    assert node.logged("keyframes were lost") == 1
    (small_disk / "filler").unlink()
    with PlaceMap.open(small_disk / "m.vprmap", create=False) as place_map:
        assert 1 <= len(place_map) < 40 and place_map.verify() == []
