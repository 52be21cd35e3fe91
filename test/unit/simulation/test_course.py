"""The rendered course: the same everywhere, with exact poses."""

import hashlib
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.simulation.course import DAY, EVENING, Course, Light

SIZE = (60, 80)
LAPS = [(DAY, 0.0, 0.0), (EVENING, 0.5, 0.05)]
DIGEST = """
import hashlib
from itertools import islice
from hashvpr_ros.simulation.course import DAY, EVENING, Course
digest = hashlib.sha256()
for shot in islice(Course(60.0, seed=3, size=(60, 80)).drive([(DAY, 0.0, 0.0)]), 12):
    digest.update(shot.rgb.tobytes())
    digest.update(repr((shot.stamp_ns, shot.x_m, shot.y_m, shot.yaw_rad)).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def course():
    return Course(60.0, seed=3, size=SIZE)


@pytest.fixture(scope="module")
def shots(course):
    return list(course.drive(LAPS))


def test_the_same_seed_gives_the_same_bytes_in_any_process(course, shots):
    digest = hashlib.sha256()
    for shot in shots[:12]:
        digest.update(shot.rgb.tobytes())
        digest.update(repr((shot.stamp_ns, shot.x_m, shot.y_m, shot.yaw_rad)).encode())
    for _ in range(2):
        again = Course(60.0, seed=3, size=SIZE)
        for a, b in zip(shots[:12], islice(again.drive(LAPS), 12), strict=True):
            np.testing.assert_array_equal(a.rgb, b.rgb)
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest.hexdigest()


def test_another_seed_gives_another_course(course):
    other = Course(60.0, seed=4, size=SIZE)
    n = min(len(course.centre), len(other.centre))
    assert not np.allclose(course.centre[:n], other.centre[:n])
    assert mean_difference(course.render(*course.pose_at(5)), other.render(*other.pose_at(5))) > 5


def mean_difference(a, b):
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_the_images(shots):
    for shot in shots:
        assert shot.rgb.shape == (*SIZE, 3) and shot.rgb.dtype == np.uint8
        assert shot.rgb.std() > 10  # something is seen


@pytest.mark.parametrize(("length", "speed", "rate"), [(60.0, 2.0, 5.0), (45.5, 3.0, 4.0)])
def test_length_and_number_of_images(length, speed, rate):
    course = Course(length, seed=1, size=(12, 16))
    assert course.length_m == pytest.approx(length, rel=0.01)
    for laps in (1, 2):
        shots = list(course.drive([(DAY, 0.0, 0.0)] * laps, speed_mps=speed, rate_hz=rate))
        assert len(shots) == course.count(laps, speed, rate)
        assert len(shots) == pytest.approx(laps * length / speed * rate, rel=0.02)
        gaps = np.diff([s.stamp_ns for s in shots])
        assert (gaps == round(1e9 / rate)).all()


def test_poses_are_where_the_images_were_taken(course, shots):
    one_lap = len(shots) // 2
    for i, shot in enumerate(shots):
        lateral, yaw = LAPS[i // one_lap][1:]
        assert (shot.x_m, shot.y_m, shot.yaw_rad) == course.pose_at(shot.distance_m, lateral, yaw)
        assert shot.distance_m == pytest.approx(i * 0.4 % course.length_m, abs=1e-9)
    # Rendering there once more gives the image again, but for the noise of the camera.
    quiet = Light(noise=0.0)
    for shot in shots[:one_lap:7]:
        again = course.render(shot.x_m, shot.y_m, shot.yaw_rad, quiet)
        assert mean_difference(shot.rgb, again) < 4


def test_poses_are_consistent_with_motion(shots):
    lap = shots[: len(shots) // 2]
    points = np.array([(s.x_m, s.y_m) for s in lap])
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose(np.hypot(*steps.T), 0.4, atol=0.02)
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    yaw = np.array([s.yaw_rad for s in lap[:-1]])
    assert np.abs(np.angle(np.exp(1j * (heading - yaw)))).max() < 0.3
    turned = np.angle(np.exp(1j * np.diff(np.append(yaw, yaw[0])))).sum()
    assert turned == pytest.approx(2 * np.pi, abs=0.3)  # once round, counter-clockwise


def test_the_course_is_closed(course):
    for lateral in (0.0, 1.0):
        start, end = course.pose_at(0, lateral), course.pose_at(course.length_m, lateral)
        np.testing.assert_allclose(start, end, atol=1e-6)
        assert course.pose_at(-1.0, lateral) == pytest.approx(
            course.pose_at(course.length_m - 1.0, lateral)
        )
    here, left = course.pose_at(10.0), course.pose_at(10.0, 1.0)
    offset = np.array(left[:2]) - here[:2]
    assert np.hypot(*offset) == pytest.approx(1.0)
    assert offset @ (-np.sin(here[2]), np.cos(here[2])) == pytest.approx(1.0)


def test_places_look_unlike_one_another_and_alike_from_near(course):
    views = [course.render(*course.pose_at(d)) for d in (0.0, 0.1, 15.0, 30.0, 45.0)]
    near = mean_difference(views[0], views[1])
    assert all(mean_difference(views[0], v) > near for v in views[2:])


def test_light_changes_the_pixels(course):
    pose = course.pose_at(14.0)  # where both walls are seen
    day = course.render(*pose, DAY)
    np.testing.assert_array_equal(day, course.render(*pose))
    for light in (
        EVENING,
        Light(gain=0.7),
        Light(gamma=1.5),
        Light(temperature=1.0),
        Light(sun_side=1.0),
        Light(sun_side=-1.0),
        Light(noise=12.0),
    ):
        assert mean_difference(day, course.render(*pose, light)) > 2, light
    dark = course.render(*pose, Light(gain=0.3))
    assert dark.mean() < 0.5 * day.mean()
    red = course.render(*pose, Light(temperature=1.0)).mean((0, 1))
    assert red[0] / red[2] > day.mean((0, 1))[0] / day.mean((0, 1))[2]


def test_repeats_look_alike():
    course = Course(80.0, seed=2, size=SIZE, repeats=2)
    assert course.length_m == pytest.approx(80.0, rel=0.01)
    for _, along, texture, px_per_m in course._walls:
        half = texture.shape[1] // 2
        np.testing.assert_array_equal(texture[:, :half], texture[:, half:])
        assert texture.shape[1] == pytest.approx(along[-1] * px_per_m)


@pytest.mark.parametrize(
    "arguments",
    [
        {"length_m": 10.0},
        {"length_m": -60.0},
        {"length_m": float("nan")},
        {"length_m": float("inf")},
        {"repeats": 0},
        {"size": (0, 80)},
    ],
)
def test_what_cannot_be_rendered_is_refused(arguments):
    with pytest.raises(ConfigError):
        Course(**arguments)
