"""Candidates of a map in which one place was passed very often."""

import pytest
from test_matcher import DIM, S, World

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.finder import Finder, Recent
from hashvpr_ros.matching.odometer import Odometer

PLACES, STAYED = 150, 200
FINGERPRINT = "ab" * 32


@pytest.fixture
def world():
    return World(PLACES, seed=1)


@pytest.fixture
def found_by(world):
    """A function that makes a finder of a map: each place once, then the first for long."""
    odometer = Odometer(0.05)
    with PlaceMap.open("", FINGERPRINT, DIM, session="one") as place_map:
        for second, place in enumerate([*range(PLACES), *([0] * STAYED)]):
            stamp_ns, pose = second * S, world.pose(place)
            odometer.move(pose)
            added = place_map.add(
                camera="camera", stamp_ns=stamp_ns, pose=pose, descriptor=world.view(place)
            )
            odometer.mark(added, stamp_ns)
            if second == PLACES:
                odometer.close(stamp_ns, match_place=1)
        yield lambda: Finder(place_map, odometer)


def test_other_places_are_among_the_candidates_of_one_that_was_passed_often(found_by, world):
    found = found_by().find(world.view(0), "c", 100, Recent())
    elsewhere = [20 <= c.keyframe_id <= PLACES - 20 for c in found.candidates]
    assert len(elsewhere) == 100 and 20 <= sum(elsewhere) <= 40


def test_what_was_asked_before_changes_no_candidate(found_by, world):
    finder = found_by()
    for place in [0, 0, 75, 0, 75, 75, 0]:
        view = world.view(place)
        assert finder.find(view, "c", 100, Recent()).candidates == (
            found_by().find(view, "c", 100, Recent()).candidates
        )


def test_the_map_is_scanned_once_for_each_of_many_images_of_such_a_place(found_by, world):
    finder, asked = found_by(), []
    search = finder._map.search
    finder._map.search = lambda code, k, **past: asked.append(k) or search(code, k, **past)
    for camera, place in [("front", 0), ("rear", 75)] * 3:
        finder.find(world.view(place), camera, 100, Recent())
    assert asked == [100, 1000, 100] + [1000, 100] * 2
