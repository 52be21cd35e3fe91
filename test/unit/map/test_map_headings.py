"""Headings of cameras in the map's file: what is malformed is refused."""

import math
import sqlite3
from contextlib import closing

import pytest
from map_helpers import open_map

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.headings import from_text, to_text


def test_headings_survive():
    headings = {"front": 0.0, "rear \n": -math.pi}
    assert from_text(to_text(headings)) == headings


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "null", '{"a": "b"}', '{"a": null}', '{"a": NaN}', '{"a": 1e999}',
             "[" * 100_000, '{"a": [1]}', '{"a": 1' + "0" * 400 + "}"],
)  # fmt: skip
def test_what_is_malformed_is_a_value_error(text):
    with pytest.raises(ValueError):
        from_text(text)


def test_headings_that_could_not_be_written_are_tried_again(tmp_path):
    with open_map(tmp_path / "m") as place_map:
        with closing(sqlite3.connect(tmp_path / "m", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(MapError, match="another process holds it"):
                place_map.add_headings({"rear": 3.0})
            db.execute("ROLLBACK")
        assert place_map.headings_rad == {"rear": 3.0}  # they count all the same
        place_map.add_headings({"rear": 3.0})
        assert place_map.verify() == []
    with open_map(tmp_path / "m") as place_map:
        assert place_map.headings_rad == {"rear": 3.0}


def test_headings_are_written_where_they_are_others(tmp_path):
    with open_map(tmp_path / "m") as place_map:
        place_map.add_headings({"rear": 3.0})
    before = (tmp_path / "m").read_bytes()
    with open_map(tmp_path / "m") as place_map:
        place_map.add_headings({"rear": 3.0})
        place_map.add_headings({})
    assert (tmp_path / "m").read_bytes() == before
