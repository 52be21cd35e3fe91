"""A small part of what `make soak` does to a node: hostile requests and damaged messages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "soak"))

from soak_node import cdr, services


def test_requests_of_every_kind_are_answered(start, tmp_path):
    outcomes = services(40, 7, tmp_path, start)
    assert outcomes["cases"] == 40
    assert sum(n for name, n in outcomes.items() if name.endswith("done")) > 0
    assert sum(n for name, n in outcomes.items() if name.endswith("refused")) > 0


def test_damaged_messages_on_every_topic_do_no_harm(start, tmp_path):
    assert cdr(300, 7, tmp_path, start)["cases"] == 300
