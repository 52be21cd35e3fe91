"""Which images are of one instant, and how long the first waits for the others."""

from dataclasses import dataclass

import pytest

from hashvpr_ros.mapping.instants import Instants, is_together

SYNC_S = 0.05


@dataclass
class Image:
    stamp_ns: int
    arrived_s: float = 10.0
    run: int = 0


@pytest.fixture
def instants():
    """Two cameras, both of which sent an image at 10 s."""
    instants = Instants(["front", "rear"], SYNC_S)
    for camera in ("front", "rear"):
        instants.arrived(camera, 10.0)
    return instants


def test_images_of_one_stamp_are_served_together_in_their_order(instants):
    waiting = {"rear": Image(0), "front": Image(30_000_000)}
    assert instants.gather(waiting, 10.0) == (["rear", "front"], 0.0)


def test_the_first_waits_for_the_rest_of_the_time_and_no_longer(instants):
    waiting = {"front": Image(0)}
    cameras, left_s = instants.gather(waiting, 10.02)
    assert not cameras and left_s == pytest.approx(0.03)
    assert instants.gather(waiting, 10.06) == (["front"], 0.0)


def test_nobody_waits_for_a_camera_that_is_silent(instants):
    assert instants.gather({"front": Image(0, arrived_s=13.0)}, 13.0) == (["front"], 0.0)
    fresh = Instants(["front", "rear"], SYNC_S)
    assert fresh.gather({"front": Image(0)}, 10.0) == (["front"], 0.0)


@pytest.mark.parametrize("other", [Image(60_000_000), Image(0, run=1)])
def test_other_stamps_and_other_runs_are_other_instants(instants, other):
    assert instants.gather({"front": Image(0), "rear": other}, 10.0) == (["front"], 0.0)


def test_without_a_time_each_image_is_an_instant(instants):
    instants.sync_s = 0.0
    assert instants.gather({"front": Image(0), "rear": Image(0)}, 10.0) == (["front"], 0.0)
    assert not is_together(5, 5, 0.0)
