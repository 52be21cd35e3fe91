"""How the belief follows the robot with and without odometry; codes differ by bits counted out."""

import itertools

import numpy as np
import pytest

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.matching.track import Track

SECOND = 1_000_000_000


def code(bits):
    """That differs from those of other numbers by their difference."""
    assert bits <= 512
    return np.packbits(np.arange(512) < round(bits))


class Robot:
    """Who has come to place 50, and then sees nothing that tells where it is."""

    def __init__(self, **moved):
        self.track = Track(15, KeyframeConfig(), lambda ids: np.where(ids > 0, 0, -1))
        self.seconds, self.bits = 0, 0
        for place in range(47, 51):
            self.look(changes=50, **moved)
            self.track.filter.update(np.array([place]), np.array([30.0]), 1.0)
        assert abs(self.place - 50) < 0.5 and self.mass > 0.9

    def look(self, *, changes=0, seconds=1, moved=None, camera="front"):
        self.seconds, self.bits = self.seconds + seconds, self.bits + changes
        self.track.begin(round(self.seconds * SECOND), {camera: code(self.bits)}, moved)

    def weight(self, camera):
        return self.track._witnesses[camera].weight

    @property
    def place(self):
        """In the mean."""
        ids = self.track.filter.support
        belief = self.track.filter.belief(ids)
        return float(ids @ belief / belief.sum())

    @property
    def mass(self):
        return self.track.filter.best().mass


def test_the_belief_moves_with_what_is_seen_though_it_is_no_witness_of_its_own():
    robot = Robot()
    places = []
    for _ in range(6):
        robot.look(changes=50)
        places.append(robot.place)
    assert all(0.8 < step < 1.1 for step in np.diff(places))


@pytest.mark.parametrize("hertz", [1, 2, 5, 10, 25])
def test_how_many_images_there_are_does_not_count(hertz):
    """Half a metre a second, and as many keyframes of the map."""
    robot = Robot()
    for _ in range(6 * hertz):
        robot.look(changes=50 / hertz, seconds=1 / hertz)
    assert 55 < robot.place < 56.5 and robot.mass > 0.8


@pytest.mark.parametrize("away", [0, 20, 31, 40])
def test_a_robot_that_has_stood_for_minutes_is_still_where_it_was(away):
    robot = Robot()
    robot.look(changes=away)
    for i in range(200):
        robot.look(changes=(3, -3)[i % 2])  # as noise makes it
    assert abs(robot.place - 50) < 0.5
    robot.look(changes=60)
    assert robot.mass > 0.8 and abs(robot.place - 51) < 0.5


def test_a_fast_robot_passes_as_many_keyframes_as_it_would_make():
    """Two a second by `keyframes.min_period_s`, however much each image differs from the last."""
    robot = Robot()
    for _ in range(30):
        robot.look(changes=10, seconds=0.1)
    assert 55 < robot.place < 56.5


@pytest.mark.parametrize("images", [1, 5])
def test_images_without_odometry_amid_others_lose_nothing(images):
    robot = Robot(moved=(0.5, 0.0))
    for _ in range(60):
        robot.look(changes=1, moved=(0.01, 0.0))
    for _ in range(images):
        robot.look(changes=30)
    # The odometer says how far it has come since the last image with a pose.
    robot.look(changes=30, moved=(0.5 * (images + 1), 0.0))
    assert robot.mass > 0.5 and abs(robot.place - 52.2 - images) < 0.5


def test_a_robot_that_stands_while_odometry_fails_is_no_surer():
    robot = Robot(moved=(0.5, 0.0))
    robot.look(changes=5)
    assert robot.weight("front") == 0.0 and abs(robot.place - 50) < 0.5


def test_cameras_that_take_turns_see_one_motion():
    robot = Robot()
    for i in range(24):
        robot.look(changes=12.5, seconds=0.25, camera=("front", "rear")[i % 2])
    assert 54 < robot.place < 56.5


def test_a_second_camera_that_begins_is_no_motion():
    robot = Robot()
    for _ in range(3):
        robot.look()
        robot.seconds += 5
        codes = {"front": code(robot.bits), "rear": code(0)}
        robot.track.begin(robot.seconds * SECOND, codes, None)
    assert abs(robot.place - 50) < 0.5 and robot.mass > 0.9


def nowhere(ids):
    return np.full((len(ids), 3), np.nan)


def test_places_share_nothing_and_end_with_their_session():
    robot = Robot()
    robot.track = Track(15, KeyframeConfig(), lambda ids: np.where(ids > 100, 1, 0))
    robot.look()
    robot.track.filter.update(np.arange(95, 107), np.full(12, 30.0), 1.0)
    first, second = robot.track.places(2, nowhere)
    assert {first.session, second.session} == {0, 1}
    robot.track = Track(15, KeyframeConfig(), lambda ids: np.zeros(len(ids), np.int64))
    robot.look()
    robot.track.filter.update(np.arange(48, 78), np.full(30, 30.0), 1.0)
    places = sorted(robot.track.places(3, nowhere), key=lambda place: place.number)
    for a, b in itertools.pairwise(places):
        assert a.last - 4 <= b.number and b.first + 4 >= a.number


def test_a_place_is_as_wide_as_the_belief_in_it():
    robot = Robot()
    (sure,) = robot.track.places(1, nowhere)
    assert sure.last - sure.first <= 12 and sure.first < 50 < sure.last
    ids = np.arange(48, 60)
    robot.track.filter.update(ids, np.full(len(ids), 30.0), 1.0)
    for _ in range(3):
        robot.look(changes=50, seconds=4)
    unsure = robot.track.places(1, nowhere)[0]
    assert unsure.last - unsure.first > sure.last - sure.first + 2
    assert unsure.first <= unsure.number - 4 and unsure.last >= unsure.number + 4
