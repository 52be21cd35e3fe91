"""Decisions as lines: the same of a decision and of its message; digests and differences."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.evaluation.decisions import (
    digest,
    first_difference,
    line_of_decision,
    line_of_message,
    read_lines,
)
from hashvpr_ros.types import Decision, Descriptor, Hypothesis, Keyframe, Reason

BEST = Hypothesis(Keyframe(7, "s", "front", 5), 40, 0.1 + 0.2, 1 / 3, 0.99, 0.8)
DECISION = Decision(
    10**18 + 1,
    "front",
    "map",
    Descriptor(np.zeros(64, np.uint8), np.zeros(4, np.float32)),
    Reason.ACCEPTED,
    keyframe_id=9,
    hypotheses=(BEST,),
)


def message():
    names = ("similarity", "distinctness", "probability", "sequence_support")
    scores = {k: np.float32(getattr(BEST, k)) for k in names}
    return SimpleNamespace(
        camera="front",
        reason="accepted",
        keyframe_id=9,
        hypotheses=[SimpleNamespace(place_id=7, distance=np.uint16(40), **scores)],
    )


def test_a_message_and_its_decision_give_one_line():
    assert line_of_message(10**18 + 1, message()) == line_of_decision(DECISION)


def test_digests_are_equal_for_equal_runs_alone(tmp_path):
    line = line_of_decision(DECISION)
    other = line_of_decision(dataclasses.replace(DECISION, reason=Reason.BELOW_TARGET))
    assert digest([line, other]) == digest([line, other])
    assert len({digest(d) for d in ([line, other], [other, line], [line], [])}) == 4
    path = tmp_path / "decisions.jsonl"
    path.write_text(f"{line}\n{other}\n")
    assert read_lines(path) == [line, other]


def test_where_two_runs_part_is_named():
    line = line_of_decision(DECISION)
    assert first_difference([line], [line]) == ""
    other = line_of_decision(dataclasses.replace(DECISION, reason=Reason.BELOW_TARGET))
    assert "image 1 at 1000000000.000 s: reason accepted and below_target" in first_difference(
        [line, line], [line, other]
    )
    nearer = dataclasses.replace(BEST, distance_bits=41)
    other = line_of_decision(dataclasses.replace(DECISION, hypotheses=(nearer,)))
    assert "hypotheses" in first_difference([line], [other])
    assert first_difference([line], [line, line]) == "1 images and 2, equal as far as both go"


@pytest.mark.parametrize("text", ["no json", "[1]", '{"a": 1}', '{"stamp_ns": "1"}', "null"])
def test_what_is_no_file_of_decisions_is_named(tmp_path, text):
    path = tmp_path / "decisions.jsonl"
    path.write_text(f"{json.dumps({'stamp_ns': 1})}\n{text}\n")
    with pytest.raises(DatasetError, match=r"decisions.jsonl: is no file of decisions"):
        read_lines(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_lines(tmp_path / "none")
