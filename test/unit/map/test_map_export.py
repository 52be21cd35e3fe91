"""Exporting maps: each format as its readers find it."""

import csv

import numpy as np
import pytest
from edit_helpers import refused
from map_helpers import DIM, FINGERPRINT, descriptor, folder_state, make_map, open_map, place

from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.map.export import FORMATS, export_map
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.types import Pose

NAME = 'comma, "quote"\nand line'
STAMPS = [1_700_000_000_123_456_789, -1, 0, 7, 7]
POSES = [
    Pose((1.5, -2.0, 0.1), (0.0, 0.0, 0.6, 0.8), "map"),
    None,
    Pose((0.0, 1e-7, 3.0), (0.0, 0.0, 0.0, 2.0), NAME),
    Pose((4.0, 0.0, 0.0), frame_id="map"),
    Pose((5.0, 0.0, 0.0), frame_id="map"),
]


@pytest.fixture
def source(tmp_path):
    with open_map(tmp_path / "m", session=NAME) as place_map:
        for i, (stamp_ns, pose) in enumerate(zip(STAMPS, POSES, strict=True)):
            place_map.add(
                camera=f"камера {i}", stamp_ns=stamp_ns, pose=pose, descriptor=descriptor(i)
            )
    return tmp_path / "m"


def test_csv(tmp_path, source):
    assert export_map(source, tmp_path / "out", "csv").keyframes == 5
    with open(tmp_path / "out", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["id"] for r in rows] == list("12345")
    assert {r["session"] for r in rows} == {NAME} and rows[2]["camera"] == "камера 2"
    assert [r["stamp_s"] for r in rows] == [
        "1700000000.123456789", "-0.000000001", "0.000000000", "0.000000007", "0.000000007",
    ]  # fmt: skip
    numbers = ("x_m", "y_m", "z_m", "qx", "qy", "qz", "qw")
    for row, pose, i in zip(rows, POSES, range(5), strict=True):
        assert row["has_pose"] == str(int(pose is not None))
        assert bytes.fromhex(row["code"]) == descriptor(i).code.tobytes()
        if pose is None:
            assert {row[n] for n in (*numbers, "frame_id")} == {""}
        else:
            found = tuple(float(row[n]) for n in numbers)
            assert found == (*pose.position_m, *pose.orientation)
            assert row["frame_id"] == pose.frame_id


def test_tum(tmp_path, source):
    with open_map(source) as place_map:
        place_map.clear()
        for i in (3, 1, 2, 2):
            stamp_ns = 1_700_000_000_123_456_789 + i
            place_map.add(
                camera="c", stamp_ns=stamp_ns, pose=place(i).pose, descriptor=descriptor(i)
            )
        place_map.add(
            camera="c",
            stamp_ns=4,
            pose=Pose((4.0, 5.0, 6.0), (0.0, 0.0, 0.0, 2.0), "odom"),
            descriptor=descriptor(4),
        )
        place_map.add(camera="c", stamp_ns=5, pose=None, descriptor=descriptor(5))
    exported = export_map(source, tmp_path / "out", "tum")
    assert (exported.keyframes, exported.without_pose, exported.same_stamp) == (4, 1, 1)
    found = read_tum(tmp_path / "out")
    assert [stamp for stamp, _ in found] == [
        4, *(1_700_000_000_123_456_789 + i for i in (1, 2, 3)),
    ]  # fmt: skip
    assert [pose.position_m for _, pose in found[1:]] == [
        place(i).pose.position_m for i in (1, 2, 3)
    ]
    assert found[0][1].orientation == (0.0, 0.0, 0.0, 1.0)  # TUM's quaternions are of length 1


def test_tum_without_poses(tmp_path):
    with open_map(tmp_path / "m") as place_map:
        place_map.add(camera="c", stamp_ns=1, pose=None, descriptor=descriptor(1))
    with refused(tmp_path, str(tmp_path / "m"), "has no poses", "csv or npz"):
        export_map(tmp_path / "m", tmp_path / "out", "tum")


def test_npz(tmp_path, source):
    export_map(source, tmp_path / "out", "npz")
    assert folder_state(tmp_path).keys() == {"m", "out"}  # numpy would add its suffix
    with np.load(tmp_path / "out") as found, open_map(source, read_only=True) as place_map:
        assert found["ids"].dtype == np.int32 and found["ids"].tolist() == [1, 2, 3, 4, 5]
        assert found["stamps_ns"].dtype == np.int64 and found["stamps_ns"].tolist() == STAMPS
        assert found["sessions"].tolist() == [NAME] * 5
        assert found["cameras"].tolist() == [f"камера {i}" for i in range(5)]
        assert found["codes"].dtype == np.uint8
        np.testing.assert_array_equal(found["codes"], place_map.codes())
        assert found["features"].dtype == np.float16 and found["features"].shape == (5, DIM)
        np.testing.assert_array_equal(found["features"], place_map.features(range(1, 6)))
        assert found["poses"].dtype == np.float64
        wanted = [[np.nan] * 7 if p is None else [*p.position_m, *p.orientation] for p in POSES]
        np.testing.assert_array_equal(found["poses"], wanted)
        assert found["frame_ids"].tolist() == ["map", "", NAME, "map", "map"]
        assert found["map_id"] == place_map.map_id and found["fingerprint"] == FINGERPRINT


@pytest.mark.parametrize("form", FORMATS)
def test_what_all_formats_share(tmp_path, form):
    source = make_map(tmp_path / "m", 600)  # more than a batch
    before = folder_state(tmp_path)
    assert export_map(source, tmp_path / "out", form).keyframes == 600
    first = (tmp_path / "out").read_bytes()
    with refused(tmp_path, str(tmp_path / "out"), "exists"):
        export_map(source, tmp_path / "out", form)
    export_map(source, tmp_path / "out", form, overwrite=True)
    assert (tmp_path / "out").read_bytes() == first or form == "npz"  # which holds the time
    with refused(tmp_path, "is read from"):
        export_map(source, source, form, overwrite=True)
    (tmp_path / "out").unlink()
    assert folder_state(tmp_path) == before
    whole = source.read_bytes()
    at = whole.rindex(descriptor(7).code.tobytes())
    source.write_bytes(whole[:at] + b"\0\0\0\0" + whole[at + 4 :])
    with refused(tmp_path, str(source), "keyframe 7: its content does not match"):
        export_map(source, tmp_path / "out", form)


def test_an_empty_map(tmp_path):
    open_map(tmp_path / "m").close()
    for form in ("csv", "npz"):
        assert export_map(tmp_path / "m", tmp_path / form, form).keyframes == 0
    with np.load(tmp_path / "npz") as found:
        assert found["features"].shape == (0, DIM) and found["codes"].shape == (0, 64)
    assert len((tmp_path / "csv").read_text().splitlines()) == 1
    assert PlaceMap.read_info(tmp_path / "m").keyframes == 0
