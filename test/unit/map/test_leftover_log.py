"""The log that a killed writer left: folded in where it is that of the file, else kept."""

import logging
import shutil
from pathlib import Path

import pytest
from map_helpers import add_places, folder_state, make_map, open_map
from test_store import crash

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import integrity
from hashvpr_ros.map.place_map import PlaceMap


@pytest.fixture
def path(tmp_path):
    """A map of 20 places whose writer was killed with 10 more in its log."""
    path = make_map(tmp_path / "m", 20)
    crash(path, 21, 31)
    return path


def log_of(path):
    return Path(f"{path}-wal")


def without_index(folder):
    """The files of a folder but for the one that SQLite makes to read a log."""
    return {name: held for name, held in folder_state(folder).items() if name[-4:] != "-shm"}


def test_the_log_of_the_file_is_folded_in_and_only_it_is_looked_at(path, monkeypatch, caplog):
    looked = []
    find_problems = integrity.find_problems
    monkeypatch.setattr(
        integrity, "find_problems", lambda *a: looked.append(a) or find_problems(*a)
    )
    for _ in range(2):
        with open_map(path) as place_map:
            assert len(place_map) == 30 and place_map.verify() == []
    assert len(looked) == 1  # the second time there was no log
    assert not caplog.records and list(folder_state(path.parent)) == ["m"]


@pytest.mark.parametrize("same_map", [False, True])
def test_a_log_beside_another_file_is_not_folded_in(path, tmp_path, same_map):
    if same_map:  # of before
        with open_map(path) as place_map:
            place_map.copy_to(tmp_path / "copy")
            add_places(place_map, 31, 200)
        crash(path, 200, 210)
        held = 30
    else:
        make_map(tmp_path / "copy", 300)
        held = 300
    shutil.copy(tmp_path / "copy", path)
    log = log_of(path).read_bytes()
    before = without_index(tmp_path)
    with pytest.raises(
        MapError, match=f"m-wal.*without the WAL is valid, with {held} keyframes: move"
    ):
        open_map(path)
    assert without_index(tmp_path) == before
    log_of(path).rename(tmp_path / "elsewhere")
    Path(f"{path}-shm").unlink()
    with open_map(path) as place_map:
        assert len(place_map) == held and place_map.verify() == []
    assert (tmp_path / "elsewhere").read_bytes() == log


def test_a_log_that_damages_a_damaged_file_names_the_good_copy(path):
    with open_map(path) as place_map:
        add_places(place_map, 31, 301)
        place_map.keep_good_copy()
    crash(path, 301, 311)
    path.write_bytes(path.read_bytes().replace(b"thumbnail 8", b"thumbnail 9"))
    with pytest.raises(MapError, match=r"\(keyframe 8: .*\); `hashvpr map restore .* with 300 k"):
        open_map(path)


def damage(log):
    """Flip a bit in the midst of a log; what the log is then."""
    damaged = bytearray(log.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    log.write_bytes(damaged)
    return bytes(damaged)


def test_a_log_that_is_cut_short_is_said_and_kept(path, tmp_path, caplog):
    damaged = damage(log_of(path))
    with open_map(path) as place_map:  # as after a power cut, a robot goes on
        assert len(place_map) == 20 and place_map.verify() == []
        add_places(place_map, 21, 23)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "frames after it are lost" in record.message
    kept = [p for p in tmp_path.iterdir() if p.name.startswith("m-wal.damaged-20")]
    assert len(kept) == 1 and kept[0].read_bytes() == damaged and str(kept[0]) in record.message
    assert PlaceMap.read_info(path).keyframes == 22


def test_a_log_that_cannot_be_kept_is_not_folded_in(path, tmp_path, monkeypatch):
    damage(log_of(path))
    before = without_index(tmp_path)
    monkeypatch.setattr(integrity.files, "dated", lambda *_: tmp_path / "none" / "m")
    with pytest.raises(MapError, match="none/m cannot be written to keep it: No such file"):
        open_map(path)
    assert without_index(tmp_path) == before
