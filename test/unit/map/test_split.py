"""Splitting maps by sessions and by time."""

import pytest
from edit_helpers import check_result, content, refused
from map_helpers import add_places, folder_state, open_map

from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.split import split_map

SESSIONS = {"one": range(1, 11), "two": range(11, 31), "three": range(31, 36)}


@pytest.fixture
def source(tmp_path):
    """Places 1 to 35 of three sessions; place i has id i and stamp i seconds."""
    path = tmp_path / "m"
    with open_map(path, session="one", model_name="m") as place_map:
        for name, numbers in SESSIONS.items():
            place_map.start_session(name)
            add_places(place_map, numbers.start, numbers.stop)
    return path


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"sessions": ["two"]}, SESSIONS["two"]),
        ({"sessions": ["three", "one"]}, [*SESSIONS["one"], *SESSIONS["three"]]),
        ({"from_ns": 30 * 10**9}, range(30, 36)),
        ({"to_ns": 3 * 10**9}, range(1, 3)),
        ({"from_ns": 3 * 10**9, "to_ns": 5 * 10**9 + 1}, range(3, 6)),
        ({"sessions": ["two"], "to_ns": 13 * 10**9}, range(11, 13)),
    ],
)
def test_a_part_is_a_map_of_its_own(tmp_path, source, options, ids):
    before = folder_state(tmp_path)
    assert split_map(source, tmp_path / "out", **options) == (len(ids), 35)
    check_result(tmp_path / "out", source)
    whole = content(source)
    assert content(tmp_path / "out") == {i: whole[i] for i in ids}
    assert {n: b for n, b in folder_state(tmp_path).items() if n != "out"} == before
    names = [s.name for s in PlaceMap.read_info(tmp_path / "out").sessions]
    assert names == [n for n, numbers in SESSIONS.items() if set(numbers) & set(ids)]
    with open_map(tmp_path / "out") as place_map:
        assert add_places(place_map, 50, 51) == [36]  # ids of the whole are not used again


def test_a_part_is_not_calibrated(tmp_path, source):
    with open_map(source) as place_map:
        place_map.set_calibration(Calibration(1.0, 0.0, 5, 5))
    split_map(source, tmp_path / "out", sessions=["two"])
    with open_map(tmp_path / "out", read_only=True) as place_map:
        assert place_map.calibration is None


def test_what_there_is_not(tmp_path, source):
    for options, reasons in (
        ({"sessions": ["one", "no"]}, ["'no'", "'one', 'two', 'three'"]),
        ({"from_ns": 36 * 10**9}, ["from 1.000000000 s to 35.000000000 s"]),
        ({"sessions": ["two"], "to_ns": 5}, ["from 11.000000000 s to 30.000000000 s"]),
    ):
        with refused(tmp_path, str(source), *reasons):
            split_map(source, tmp_path / "out", **options)
    open_map(tmp_path / "empty").close()
    with refused(tmp_path, "holds no keyframes"):
        split_map(tmp_path / "empty", tmp_path / "out", from_ns=0)
    with refused(tmp_path, "is read from"):
        split_map(source, source, sessions=["one"], overwrite=True)
    with refused(tmp_path, "exists"):
        split_map(source, tmp_path / "empty", sessions=["one"])
