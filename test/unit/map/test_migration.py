"""Maps of schema 1 are read as they are, and brought up to the present schema by writing."""

import sqlite3
from contextlib import closing

import pytest
from edit_helpers import content
from map_helpers import add_places, folder_state, make_map, open_map, start

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.split import split_map
from hashvpr_ros.map.verdicts import StoredVerdict


@pytest.fixture
def path(tmp_path):
    """A map as schema 1 had it: without sums over its tables."""
    path = make_map(tmp_path / "m", 20)
    with open_map(path) as place_map:
        place_map.add_verdict(StoredVerdict(5, 2, "rejected", None))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("DROP TABLE checks")
        db.execute("PRAGMA user_version = 1")
    return path


def test_reading_leaves_it_as_it_is(path, tmp_path):
    before = folder_state(tmp_path)
    with open_map(path, read_only=True) as place_map:
        assert place_map.verify() == []
        assert place_map.info().schema_version == 1
    with MapReader(path) as reader:
        assert len(list(reader.rows())) == 20
    assert folder_state(tmp_path) == before


def test_writing_brings_it_up_to_the_present_schema(path):
    held = content(path)
    with open_map(path) as place_map:
        assert place_map.verify() == []
        assert place_map.info().schema_version == 2
        assert len(place_map.read_verdicts()) == 1
    assert content(path) == held
    with open_map(path) as place_map:
        assert add_places(place_map, 21, 31)[0] == 21
        assert place_map.verify() == []
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE sessions SET name = 'S' WHERE id = 1")
        db.commit()
    with open_map(path, read_only=True) as place_map:
        assert place_map.verify() == ["table sessions: its 2 rows do not match their checksum"]


def test_what_is_made_of_it_has_the_present_schema(path, tmp_path):
    split_map(path, tmp_path / "part", sessions=["s"])
    assert PlaceMap.read_info(tmp_path / "part").schema_version == 2
    assert PlaceMap.read_info(path).schema_version == 1


def test_a_damaged_one_is_left_alone(path, tmp_path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE keyframes SET camera = 'camera7' WHERE id = 3")
        db.commit()
    before = folder_state(tmp_path)
    with pytest.raises(MapError, match=r"keyframe 3.*not brought up to schema 2"):
        open_map(path)
    assert folder_state(tmp_path) == before
    with open_map(path, read_only=True) as place_map:
        assert place_map.info().schema_version == 1 and len(place_map.verify()) == 1


def test_killed_on_the_way_it_is_still_a_map(path):
    script = """
from hashvpr_ros.map import checks
count_all = checks.count_all
def die(db):
    count_all(db)
    os.kill(os.getpid(), signal.SIGKILL)
checks.count_all = die
open_map(sys.argv[1])
"""
    process = start(script, path)
    process.communicate(timeout=20)
    assert process.returncode == -9
    with open_map(path, read_only=True) as place_map:
        assert place_map.verify() == [] and place_map.info().schema_version == 1
    with open_map(path) as place_map:
        assert place_map.verify() == [] and place_map.info().schema_version == 2


@pytest.mark.parametrize(
    "change", ["CREATE TABLE checks (name)", "CREATE TABLE checks (n); DROP TABLE meta"]
)
def test_schema_1_has_no_sums(path, change):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(change)
    with pytest.raises(MapError, match="missing or altered: checks"):
        open_map(path)
