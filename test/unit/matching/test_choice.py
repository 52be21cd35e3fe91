"""Which keyframe stands for a place that the filter believes in."""

import numpy as np
import pytest
from test_matcher import DIM, S, World

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.choice import choose
from hashvpr_ros.matching.distinct import SamePlaces
from hashvpr_ros.matching.finder import Finder, Recent
from hashvpr_ros.matching.odometer import Odometer
from hashvpr_ros.matching.track import Place

PLACES = 60


@pytest.fixture
def asked():
    """A function that chooses for an image of the 62nd place, the second of another session."""
    world = World(2 * PLACES, seed=2)
    with PlaceMap.open("", "ab" * 32, DIM, session="one") as place_map:
        for place in range(2 * PLACES):
            if place == PLACES:
                place_map.start_session("two")
            place_map.add(
                camera="camera", stamp_ns=place * S, pose=None, descriptor=world.view(place)
            )
        finder, image = Finder(place_map, Odometer(0.05)), world.view(61)
        found = finder.find(image, "camera", 2 * PLACES, Recent())
        sessions = np.where(found.places > PLACES, 2, 1)

        def ask(*places, impossible=()):
            where = np.where(np.isin(found.places, impossible), -1, sessions)
            return [
                c.keyframe.id
                for c in choose(found, where, places, finder, SamePlaces(), len(places))
            ]

        yield ask


def test_of_all_views_of_a_place_the_most_alike_stands_for_it(asked):
    assert asked(Place(66, 0.9, 2, 62, 70)) == [62]
    assert asked(Place(70, 0.9, 2, 66, 74)) == [66]
    assert asked(Place(70, 0.9, 2, 61, 74)) == [62]  # believed in as widely
    assert asked(Place(66, 0.9, 2, 62, 70), impossible=[62]) == [63]


def test_what_another_session_shows_stands_for_no_place_of_this_one(asked):
    assert asked(Place(58, 0.9, 1, 54, 66)) == [60]
    assert asked(Place(63, 0.6, 2, 55, 67), Place(58, 0.3, 1, 54, 66)) == [62, 60]


def test_a_place_without_candidates_shows_itself(asked):
    assert asked(Place(66, 0.9, 2, 62, 70), impossible=range(50, 80)) == [66]
