"""Poses that a back end has optimised, in the place of those that were recorded."""

import math
import sqlite3
from contextlib import closing

import pytest
from map_helpers import add_places, open_map

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.schema import DamagedMapError
from hashvpr_ros.types import Pose


def moved(x_m):
    return Pose((x_m, -0.0, 2.0), (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)), "optimised")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map.vprmap"


def test_keyframes_have_their_new_poses_at_once_and_after_opening_anew(path):
    with open_map(path) as place_map:
        ids = add_places(place_map, 0, 1200)  # more than one batch; the last are not written yet
        poses = {i: moved(float(i)) for i in ids[::2]}
        assert place_map.set_poses(poses) == 600
        assert {k.id: k.pose for k in place_map.keyframes(ids[::2])} == poses
        others = place_map.keyframes(ids[1::2])
        assert not place_map.verify()
    with PlaceMap.open(path, read_only=True, create=False) as place_map:
        assert {k.id: k.pose for k in place_map.keyframes(ids[::2])} == poses
        assert place_map.keyframes(ids[1::2]) == others
        assert not place_map.verify()


def test_a_map_in_memory_takes_them_too():
    with open_map("") as place_map:
        (id_,) = add_places(place_map, 0, 1)
        assert place_map.set_poses({id_: moved(1.0)}) == 1
        assert place_map.keyframes([id_])[0].pose == moved(1.0)
        assert place_map.set_poses({}) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {999: moved(0.0)},
        {1: Pose((math.nan, 0.0, 0.0))},
        {1: Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))},
    ],
)
def test_what_is_wrong_changes_nothing(path, bad):
    with open_map(path) as place_map:
        ids = add_places(place_map, 0, 3)
        before = place_map.keyframes(ids)
        with pytest.raises(ValueError, match=r"999|keyframe 1 is not finite"):
            place_map.set_poses({2: moved(2.0), **bad})
        assert place_map.keyframes(ids) == before


def test_a_map_that_is_read_only_refuses_them(path):
    with open_map(path) as place_map:
        add_places(place_map, 0, 3)
    content = path.read_bytes()
    with (
        PlaceMap.open(path, read_only=True, create=False) as place_map,
        pytest.raises(MapError, match="read-only"),
    ):
        place_map.set_poses({1: moved(1.0)})
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change", ["stamp_ns = stamp_ns + 1", "camera = CAST(camera AS BLOB)", "camera = 5"]
)
def test_damage_is_not_blessed_by_a_checksum_made_anew(path, change):
    with open_map(path) as place_map:
        add_places(place_map, 0, 3)
        place_map.flush()
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE keyframes SET {change} WHERE id = 2")
        with pytest.raises(DamagedMapError, match="keyframe 2 does not match its checksum"):
            place_map.set_poses({1: moved(1.0), 2: moved(2.0)})
        assert place_map.keyframes([1])[0].pose != moved(1.0)  # its batch was not written
        assert place_map.verify()
