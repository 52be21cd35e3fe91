"""Which images become keyframes."""

import math

import numpy as np
import pytest

from hashvpr_ros.config import KeyframeConfig
from hashvpr_ros.mapping.keyframes import KeyframeSelector, turned_rad
from hashvpr_ros.types import Pose

S = 1_000_000_000
CODE = np.zeros(64, np.uint8)
CONFIG = KeyframeConfig(
    min_distance_m=0.5, min_angle_rad=0.35, min_period_s=0.5, min_novelty_bits=40, max_period_s=10
)
NAN = float("nan")


def code(bits: int) -> np.ndarray:
    """A code that differs from CODE by so many bits."""
    return np.packbits(np.arange(512) < bits)


def pose(x: float = 0.0, yaw: float = 0.0, frame: str = "odom", y: float = 0.0) -> Pose:
    return Pose((x, y, 0.0), (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2)), frame)


@pytest.fixture
def selector():
    made = KeyframeSelector(CONFIG)
    made.added(100 * S, pose(), CODE)
    return made


def test_the_first_image_is_one():
    made = KeyframeSelector(CONFIG)
    for first in (None, pose(), pose(NAN)):
        assert made.should_add(0, first, CODE)
    made.added(0, None, CODE)
    assert not made.should_add(0, None, CODE)


@pytest.mark.parametrize(
    ("x", "y", "yaw", "wanted"),
    [
        (0.0, 0.0, 0.0, False), (0.49, 0.0, 0.0, False), (0.5, 0.0, 0.0, True),
        (-0.5, 0.0, 0.0, True), (0.4, 0.4, 0.0, True), (0.3, 0.3, 0.0, False),
        (0.0, 0.0, 0.34, False), (0.0, 0.0, 0.36, True), (0.0, 0.0, -0.36, True),
        (0.0, 0.0, math.pi, True), (0.0, 0.0, 2 * math.pi, False), (0.3, 0.0, 0.3, False),
    ],
)  # fmt: skip
def test_by_distance_or_angle(selector, x, y, yaw, wanted):
    # Whatever time has passed and however new the view is: poses know better.
    for stamp, view in ((101 * S, CODE), (100 * S, CODE), (999 * S, code(512)), (5 * S, CODE)):
        assert selector.should_add(stamp, pose(x, yaw, y=y), view) is wanted


def test_distance_counts_from_the_last_keyframe_not_the_last_image(selector):
    taken = []
    for i in range(1, 31):
        here = pose(0.11 * i)
        if selector.should_add(100 * S + i, here, CODE):
            selector.added(100 * S + i, here, CODE)
            taken.append(i)
    assert taken == [5, 10, 15, 20, 25, 30]


def test_standing_still_adds_nothing(selector):
    rng = np.random.default_rng(0)
    for i in range(1, 2000):
        trembling = pose(*rng.normal(0, 0.01, 2).tolist())
        assert not selector.should_add(100 * S + i * S, trembling, code(int(rng.integers(512))))


@pytest.mark.parametrize(
    ("elapsed_s", "bits", "wanted"),
    [
        (0.0, 512, False), (0.49, 512, False), (0.5, 40, True), (0.5, 39, False),
        (9.99, 39, False), (9.99, 0, False), (10.0, 0, True), (1000.0, 0, True),
        (-0.001, 0, True), (-1000.0, 0, True),
    ],
)  # fmt: skip
def test_without_poses_by_time_and_novelty(selector, elapsed_s, bits, wanted):
    selector.added(100 * S, None, CODE)
    stamp = 100 * S + round(elapsed_s * S)
    for unknown in (None, pose(NAN), pose(5.0)):  # the keyframe has no pose to compare with
        assert selector.should_add(stamp, unknown, code(bits)) is wanted


def test_a_robot_that_stands_still_without_poses(selector):
    selector.added(100 * S, None, CODE)
    count = 0
    for i in range(1, 601):  # a minute of 10 images a second with flickering codes
        stamp = 100 * S + i * S // 10
        if selector.should_add(stamp, None, code(i % 30)):
            selector.added(stamp, None, code(i % 30))
            count += 1
    assert count == 6


def test_no_longest_time(selector):
    never = KeyframeConfig(min_period_s=0.5, min_novelty_bits=40, max_period_s=0.0)
    made = KeyframeSelector(never)
    made.added(100 * S, None, CODE)
    assert not made.should_add(10_000 * S, None, code(39))
    assert made.should_add(10_000 * S, None, code(40))


def test_a_pose_that_is_lost_falls_back_to_time_and_novelty(selector):
    for unknown in (None, pose(NAN), pose(float("inf")), Pose((0, 0, 0), (0, 0, 0, 0), "odom")):
        assert not selector.should_add(100 * S + S // 10, unknown, code(512))
        assert selector.should_add(101 * S, unknown, code(512))
        assert not selector.should_add(101 * S, unknown, CODE)
        assert selector.should_add(110 * S, unknown, CODE)
        selector.added(100 * S, pose(), CODE)


def test_a_keyframe_with_a_nan_pose_is_remembered_without(selector):
    selector.added(100 * S, pose(NAN), CODE)
    assert not selector.should_add(101 * S, pose(100.0), CODE)
    assert selector.should_add(101 * S, pose(0.0), code(40))


def test_poses_of_another_frame_are_not_compared(selector):
    assert not selector.should_add(101 * S, pose(100.0, frame="map"), CODE)
    assert selector.should_add(101 * S, pose(0.0, frame="map"), code(40))


def test_with_everything_at_zero_every_image_is_one(selector):
    made = KeyframeSelector(
        KeyframeConfig(min_distance_m=0.0, min_period_s=0.0, min_novelty_bits=0)
    )
    made.added(100 * S, pose(), CODE)
    assert made.should_add(100 * S, pose(), CODE) and made.should_add(100 * S, None, CODE)


def test_turns():
    assert turned_rad(pose(), pose(yaw=1.0)) == pytest.approx(1.0)
    assert turned_rad(pose(yaw=-3.0), pose(yaw=3.0)) == pytest.approx(2 * math.pi - 6)
    assert turned_rad(pose(yaw=0.3), pose(yaw=0.3)) == pytest.approx(0.0, abs=1e-6)
    one = Pose((0, 0, 0), (0.0, 0.0, 0.6, 0.8))
    for factor in (-1.0, 7.0, 1e-5, 1e200):  # the same turn, not normalised
        other = Pose((0, 0, 0), tuple(factor * v for v in one.orientation))
        assert turned_rad(one, other) == pytest.approx(0.0, abs=1e-6)
        assert turned_rad(pose(), other) == pytest.approx(2 * math.acos(0.8))
