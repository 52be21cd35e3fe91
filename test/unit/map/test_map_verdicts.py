"""Verdicts in a map: kept, counted, calibrated by, checked."""

import sqlite3
from contextlib import closing

import pytest
from map_helpers import open_map

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.verdicts import StoredVerdict

FIRST = StoredVerdict(10**18, 7, "accepted", 4.5)
SECOND = StoredVerdict(2 * 10**18, 8, "rejected_by_graph", None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.vprmap"
    with open_map(path) as place_map:
        assert place_map.read_verdicts() == [] and place_map.info().verdicts == {}
        place_map.add_verdict(SECOND)
        place_map.add_verdict(FIRST)
    return path


def test_they_are_kept_and_counted(path):
    with PlaceMap.open(path) as place_map:
        assert place_map.read_verdicts() == [FIRST, SECOND]
        assert place_map.info().verdicts == {"accepted": 1, "rejected_by_graph": 1}
        # Of a second verdict on the same closure the last counts.
        place_map.add_verdict(StoredVerdict(10**18, 7, "rejected_by_geometry", 4.5))
        assert place_map.info().verdicts == {"rejected_by_geometry": 1, "rejected_by_graph": 1}
        assert place_map.verify() == []
        place_map.clear()
        assert place_map.read_verdicts() == []


def test_a_map_that_is_read_only_takes_none(path):
    before = path.read_bytes()
    with PlaceMap.open(path, read_only=True) as place_map:
        assert place_map.read_verdicts() == [FIRST, SECOND]
        with pytest.raises(MapError, match="read-only"):
            place_map.add_verdict(FIRST)
    assert path.read_bytes() == before


def test_a_verdict_that_is_no_text_is_an_error_of_the_map(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE verdicts SET verdict = CAST(verdict AS BLOB) WHERE match_id = 7")
        db.commit()
    with PlaceMap.open(path) as place_map:
        for read in (place_map.info, place_map.read_verdicts):
            with pytest.raises(MapError, match=r"damaged \(table verdicts: a row does not match"):
                read()


def test_no_number_is_no_log_odds(path):
    before = path.read_bytes()
    with PlaceMap.open(path) as place_map:
        with pytest.raises(MapError, match="closure at 9 ns are not a number"):
            place_map.add_verdict(StoredVerdict(9, 7, "accepted", float("nan")))
        place_map.flush()
    assert path.read_bytes() == before
    with open_map(path) as place_map:
        place_map.add_verdict(StoredVerdict(9, 7, "accepted", float("-inf")))
        assert place_map.read_verdicts()[0].log_odds == float("-inf")
        assert place_map.verify() == []


def test_damage_is_found(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE verdicts SET log_odds = 4.6 WHERE match_id = 7")
        db.commit()
    with PlaceMap.open(path) as place_map:
        (problem,) = place_map.verify()
        assert "verdict" in problem and "checksum" in problem
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE verdicts")
        db.execute("CREATE TABLE verdicts (query_ns)")
        db.commit()
    with pytest.raises(MapError, match="altered: verdicts"):
        PlaceMap.open(path)
