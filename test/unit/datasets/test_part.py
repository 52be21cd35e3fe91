"""A range of queries keeps the references that belong to it."""

from pathlib import Path

import pytest

from hashvpr_ros.datasets.part import Part
from hashvpr_ros.errors import ConfigError


class Whole:
    """Six queries, eight references; query i is at reference i, query 4 also at 7, 5 nowhere."""

    def __init__(self):
        self.queries = [Path(f"q{i}") for i in range(6)]
        self.references = [Path(f"r{i}") for i in range(8)]
        self.notes = ["one file is not read"]

    def positives(self, tolerance=0):
        correct = [{0}, {1}, {2}, {3}, {4, 7}, set()]
        return [
            {j for k in right for j in range(max(0, k - tolerance), min(7, k + tolerance) + 1)}
            for right in correct
        ]


def test_references_of_the_range_and_correct_ones_stay():
    part = Part(Whole(), 3, 6)
    assert part.queries == Whole().queries[3:6]
    assert [p.name for p in part.references] == ["r3", "r4", "r5", "r7"]
    assert part.positives() == [{0}, {1, 3}, set()] and part.notes == Whole().notes
    assert part.positives(1) == [{0, 1}, {0, 1, 2, 3}, set()]  # r2 and r6 are left out


def test_all_of_it():
    part = Part(Whole(), 0, 6)
    assert part.queries == Whole().queries and part.positives()[:4] == [{0}, {1}, {2}, {3}]
    assert [p.name for p in part.references] == ["r0", "r1", "r2", "r3", "r4", "r5", "r7"]


@pytest.mark.parametrize(("first", "last"), [(0, 7), (3, 3), (4, 2), (-1, 3), (9, 12)])
def test_a_range_that_does_not_fit(first, last):
    with pytest.raises(ConfigError, match=r"does not fit 6 queries; give FIRST:LAST"):
        Part(Whole(), first, last)


def test_the_last_places_of_a_real_set(data):
    from hashvpr_ros.datasets.vpr_bench import VprBench

    part = Part(VprBench(data / "sped"), 439, 589)
    assert len(part.queries) == len(part.references) == 150
    assert part.positives() == [{i} for i in range(150)]
    assert part.references[0].name == "0000439.jpg"
