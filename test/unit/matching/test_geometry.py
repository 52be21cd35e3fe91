"""The geometric check: corners of two views of the course, and what cannot be compared."""

import math

import numpy as np
import pytest

from hashvpr_ros.config import MatchingConfig, from_flat
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.geometry import GeometricCheck
from hashvpr_ros.matching.recognizer import Recognizer, thumbnail_jpeg
from hashvpr_ros.simulation.course import DAY, FIELD_OF_VIEW_RAD, Course
from hashvpr_ros.types import Geometry, Mode, Reason

THUMBNAIL_PX = 320


@pytest.fixture(scope="module")
def course():
    return Course(120.0, seed=3, size=(240, 320))


@pytest.fixture(scope="module")
def check():
    geometry = GeometricCheck()
    return lambda image, thumbnail: geometry.compare(image, thumbnail, FIELD_OF_VIEW_RAD)


def view(course, distance_m, lateral_m=0.0, turned_rad=0.0):
    at = course.pose_at(distance_m, lateral_m, turned_rad)
    return course.render(*at, DAY, np.random.default_rng(round(distance_m * 10)))


def compare(check, course, query, keyframe):
    return check(view(course, *query), thumbnail_jpeg(view(course, *keyframe), THUMBNAIL_PX))


@pytest.mark.parametrize("turned_rad", [0.15, -0.15])
def test_the_turn_between_two_views_of_a_place_is_measured(check, course, turned_rad):
    found = [
        compare(check, course, (d, 0.3, turned_rad), (d, 0.0, 0.0))
        for d in (10.0, 25.0, 40.0, 55.0, 70.0)
    ]
    assert np.median([g.inliers for g in found]) >= 30
    turns = [g.turn_rad for g in found if g.turn_rad is not None]
    assert np.median(turns) == pytest.approx(turned_rad, abs=0.05)


def test_the_bearing_is_where_the_query_stands_seen_from_the_keyframe(check, course):
    where = range(10, 60, 5)  # corners abound
    ahead = [compare(check, course, (d + 1.0,), (d,)).bearing_rad for d in where]
    left = [compare(check, course, (d, 1.0), (d, 0.0)).bearing_rad for d in where]
    assert abs(np.median(ahead)) < 0.5
    assert np.median(left) == pytest.approx(math.pi / 2, abs=0.5)


def test_views_of_one_place_have_more_inliers_than_those_of_two(check, course):
    same = [compare(check, course, (d, 0.3), (d, 0.0)).inliers for d in range(5, 95, 15)]
    other = [compare(check, course, (d, 0.3), (d + 25.0, 0.0)).inliers for d in range(5, 95, 15)]
    assert min(same) > max(other)


def boxes(seed, count):
    """A grey wall with coloured rectangles on it."""
    rng = np.random.default_rng(seed)
    wall = np.full((240, 320, 3), 128, np.uint8)
    for _ in range(count):
        (x, y), (width, height) = rng.integers((40, 40), (240, 160)), rng.integers(5, 30, 2)
        wall[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return wall


def test_a_plain_wall_is_not_borne_out_by_an_unrelated_rich_scene(check):
    """Many corners of the rich one have the same of the plain one's few as their nearest."""
    rich = [thumbnail_jpeg(boxes(seed, 60), THUMBNAIL_PX) for seed in range(8)]
    plain = [boxes(100 + i, 3) for i in range(12)]
    most = max(check(image, thumbnail).inliers for image in plain for thumbnail in rich)
    assert most < MatchingConfig().min_inliers


@pytest.mark.parametrize("thumbnail", [None, b"", b"\xff\xd8\xff\xd9", b"no jpeg"])
def test_what_has_no_thumbnail_or_a_damaged_one_cannot_be_compared(check, course, thumbnail):
    assert check(view(course, 5.0), thumbnail) is None


@pytest.mark.parametrize("size", [(240, 320), (1, 1), (3, 4000)])
def test_images_without_corners_have_no_inliers(check, course, size):
    thumbnail = thumbnail_jpeg(view(course, 5.0), THUMBNAIL_PX)
    assert check(np.zeros((*size, 3), np.uint8), thumbnail) == Geometry(0)
    assert check(view(course, 5.0), thumbnail_jpeg(np.zeros((*size, 3), np.uint8), 160)) in (
        Geometry(0),
        None,
    )


@pytest.fixture(scope="module")
def engine(remembering):
    return remembering


@pytest.mark.parametrize(("thumbnail_px", "closes"), [(THUMBNAIL_PX, True), (0, False)])
def test_a_match_is_accepted_only_where_corners_bear_it_out(course, engine, thumbnail_px, closes):
    config = from_flat(
        {
            "matching.exclude_recent_s": 10.0,
            "matching.target_precision": 0.5,
            "matching.min_sequence_support": 0.0,
            "matching.geometric_check": True,
            "matching.field_of_view_rad": FIELD_OF_VIEW_RAD,
            "map.thumbnail_px": thumbnail_px,
            "keyframes.min_period_s": 0.0,
            "keyframes.min_novelty_bits": 0,
        }
    )
    info = engine.info
    with PlaceMap.open("", info.fingerprint, info.feature_dim) as place_map:
        vpr = Recognizer(engine, place_map, config, mode=Mode.SLAM)
        ways = [(d, 0.0) for d in np.arange(0, 60, 1.0)] + [
            (d, 0.3) for d in np.arange(0, 30, 1.0)
        ]
        decisions = [
            vpr.process(view(course, *way), 10**11 + i * 10**9) for i, way in enumerate(ways)
        ]
    checked = [d for d in decisions if d.reason in (Reason.ACCEPTED, Reason.TOO_FEW_INLIERS)]
    assert checked
    for d in checked:
        geometry = d.hypotheses[0].geometry
        enough = geometry is not None and geometry.inliers >= config.matching.min_inliers
        assert d.accepted == enough
        assert d.times.matching_ms > d.times.geometry_ms > 0.0
    assert any(d.accepted for d in checked) == closes
