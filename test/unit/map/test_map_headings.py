"""Headings of cameras in the map's file: what is malformed is refused."""

import math

import pytest

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
