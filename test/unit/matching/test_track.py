"""How the belief follows the robot with and without odometry; codes differ by bits counted out."""

import numpy as np
import pytest

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.matching.track import Track

SECOND = 1_000_000_000


def code(bits):
    """That differs from those of other numbers by their difference."""
    assert bits <= 512
    return np.packbits(np.arange(512) < bits)


class Robot:
    """Who has come to place 50, and then sees nothing that tells where it is."""

    def __init__(self, **moved):
        self.track = Track(15, KeyframeConfig(), lambda ids: np.where(ids > 0, 0, -1))
        self.seconds, self.bits = 0, 0
        for place in range(47, 51):
            self.look(changes=50, **moved)
            self.track.filter.update(np.array([place]), np.array([30.0]), 1.0)
        assert abs(self.place - 50) < 0.5 and self.mass > 0.9

    def look(self, *, changes=0, seconds=1, moved=None):
        self.seconds, self.bits = self.seconds + seconds, self.bits + changes
        self.track.begin(self.seconds * SECOND, {"front": code(self.bits)}, moved)

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
    assert all(0.5 < step < 1.3 for step in np.diff(places))


def test_a_robot_that_has_stood_for_a_minute_is_still_where_it_was():
    robot = Robot()
    for i in range(70):
        robot.look(changes=(10, -10)[i % 2])  # as noise makes it
    assert abs(robot.place - 50) < 0.5
    robot.look(changes=120)
    assert robot.mass > 0.8 and abs(robot.place - 51) < 1


def test_slow_motion_adds_up():
    robot = Robot()
    for _ in range(30):
        robot.look(changes=10)
    assert 56 < robot.place < 80


@pytest.mark.parametrize("images", [1, 5])
def test_an_image_without_odometry_amid_others_loses_nothing(images):
    robot = Robot(moved=(0.5, 0.0))
    for _ in range(60):
        robot.look(changes=1, moved=(0.01, 0.0))
    for _ in range(images):
        robot.look(changes=30)
    robot.look(changes=30, moved=(0.5, 0.0))
    assert robot.mass > 0.5 and abs(robot.place - 52 - images) < 2


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
