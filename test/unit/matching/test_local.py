"""Local descriptors: cells that are displaced alike count, others do not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hashvpr_ros.config import Config
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.local import KeyframeLocals, consistent_matches, scores
from hashvpr_ros.matching.matcher import Matcher
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.rerank import rerank_locally
from hashvpr_ros.types import Descriptor

ROWS, COLUMNS, WIDTH = 12, 16, 48


def _grid(seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS, WIDTH))
    cells /= np.linalg.norm(cells, axis=2, keepdims=True)
    return np.clip(np.rint(256 * cells), -127, 127).astype(np.int8)


def _moved(grid: np.ndarray, down: int, right: int) -> np.ndarray:
    """What a camera sees that moved: new cells come in at the border."""
    moved = _grid(99)
    source = grid[max(0, -down) : ROWS - max(0, down), max(0, -right) : COLUMNS - max(0, right)]
    moved[max(0, down) : ROWS + min(0, down), max(0, right) : COLUMNS + min(0, right)] = source
    return moved


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 5), (0, -6), (3, -2), (-4, 7), (11, 15)])
def test_cells_that_moved_together_all_count(down, right):
    grid = _grid(1)
    common = (ROWS - abs(down)) * (COLUMNS - abs(right))
    (count,) = consistent_matches(grid, _moved(grid, down, right)[np.newaxis])
    assert common <= count <= common + 12


def test_cells_that_match_at_random_places_hardly_count():
    grid = _grid(1)
    shuffled = np.random.default_rng(2).permutation(grid.reshape(-1, WIDTH)).reshape(grid.shape)
    other = _grid(3)
    moved, mixed, unlike = consistent_matches(
        grid, np.stack([_moved(grid, 0, 4), shuffled, other])
    )
    assert mixed < 0.15 * moved and unlike < 0.15 * moved


def test_neighbouring_displacements_count_together():
    """A zoom displaces cells by neighbouring amounts."""
    grid = _grid(1)
    zoomed = _moved(grid, 0, 2)
    zoomed[:, : COLUMNS // 2] = _moved(grid, 0, 1)[:, : COLUMNS // 2]
    (count,) = consistent_matches(grid, zoomed[np.newaxis])
    assert count > 0.8 * ROWS * (COLUMNS - 2)


def test_each_candidate_is_counted_by_itself():
    query, candidates = _grid(1), np.stack([_moved(_grid(1), 1, s) for s in range(5)])
    together = consistent_matches(query, candidates)
    assert together.tolist() == [
        int(consistent_matches(query, c[np.newaxis])[0]) for c in candidates
    ]


@pytest.mark.parametrize("fill", [0, 127, -127])
def test_images_without_any_structure_are_counted_without_an_error(fill):
    blank = np.full((ROWS, COLUMNS, WIDTH), fill, np.int8)
    counts = consistent_matches(blank, np.stack([blank, _grid(1)]))
    assert (counts >= 0).all() and (counts <= ROWS * COLUMNS).all()


def test_no_candidates():
    assert consistent_matches(_grid(1), np.zeros((0, ROWS, COLUMNS, WIDTH), np.int8)).shape == (0,)


def test_the_place_that_moved_wins_over_a_slightly_higher_cosine():
    grid = _grid(1)
    result = scores(
        np.array([0.62, 0.60], np.float32), grid, np.stack([_grid(5), _moved(grid, 0, 3)])
    )
    assert result[1] > result[0]


class _Engine:
    """A double: an image's local descriptors are those of its first pixel's value."""

    def __init__(self, shape=(ROWS, COLUMNS, WIDTH)):
        self.info = EngineInfo("made up", "ab" * 32, 8, 8, 4, "none", local_shape=shape)
        self.images = 0

    def descriptors(self, images):
        self.images += len(images)
        feature = np.array([1, 0, 0, 0], np.float32)
        return [
            Descriptor(np.zeros(64, np.uint8), feature, _grid(round(int(i[0, 0, 0]) / 40)))
            for i in images
        ]


@pytest.fixture
def place_map():
    """Keyframes 1 to 5 have thumbnails of one grey; 6 has none, 7 a damaged one, 8 a tiny one."""
    with PlaceMap.open("", "ab" * 32, 4) as place_map:
        descriptor = Descriptor(np.zeros(64, np.uint8), np.array([1, 0, 0, 0], np.float32))
        greys = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(1, 6)]
        jpegs = [bytes(cv2.imencode(".jpg", g)[1]) for g in greys] + [None, b"\xff\xd8damaged"]
        jpegs.append(bytes(cv2.imencode(".jpg", np.zeros((63, 63, 3), np.uint8))[1]))
        for i, jpeg in enumerate(jpegs):
            place_map.add_many([NewPlace("camera", (i + 1) * 10**9, None, descriptor, jpeg)])
        yield place_map


def test_those_of_keyframes_come_from_their_thumbnails_and_are_kept(place_map):
    engine = _Engine()
    local = KeyframeLocals(engine, place_map)
    np.testing.assert_array_equal(local.of([4, 2]), [_grid(4), _grid(2)])
    np.testing.assert_array_equal(local.of([2, 5, 4]), [_grid(2), _grid(5), _grid(4)])
    assert engine.images == 3


@pytest.mark.parametrize("ids", [[1, 6], [7], [7, 2], [1, 8]])
def test_where_a_thumbnail_is_missing_damaged_or_tiny_nothing_is_re_ranked(place_map, ids):
    local = KeyframeLocals(_Engine(), place_map)
    assert local.of(ids) is None
    order = rerank_locally(
        local,
        np.array(ids, np.int32),
        np.linspace(0.9, 0.8, len(ids), dtype=np.float32),
        Descriptor(np.zeros(64, np.uint8), np.ones(4, np.float32), _grid(2)),
    )
    assert order.tolist() == list(range(len(ids)))


def test_a_model_without_local_descriptors_is_not_asked(place_map):
    assert KeyframeLocals(_Engine(None), place_map).of([1, 2]) is None


def test_the_best_candidates_are_re_ranked_and_the_rest_stays(place_map):
    local = KeyframeLocals(_Engine(), place_map)
    ids = np.array([1, 2, 3, 4, 5], np.int32)
    query = Descriptor(np.zeros(64, np.uint8), np.ones(4, np.float32), _moved(_grid(3), 0, 2))
    similarities = np.array([0.6, 0.59, 0.58, 0.57, 0.2], np.float32)
    assert rerank_locally(local, ids, similarities, query).tolist() == [2, 0, 1, 3, 4]


def test_an_image_by_itself_is_judged_by_its_local_descriptors_too():
    """The most similar keyframe is another one, by a little."""
    with PlaceMap.open("", "ab" * 32, 4) as held:
        for i in range(1, 6):
            feature = np.array([0.9, 0.1 * (i == 2), 0.1 * (i == 3) + 0.02, 0], np.float32)
            feature /= np.linalg.norm(feature)
            grey = np.full((48, 64, 3), 40 * i, np.uint8)
            jpeg = bytes(cv2.imencode(".jpg", grey)[1])
            descriptor = Descriptor(np.zeros(64, np.uint8), feature)
            held.add_many([NewPlace("camera", i * 20 * 10**9, None, descriptor, jpeg)])
        matcher = Matcher(held, Config(), ProbabilityModel.of((10.0, -1.0)))
        query = Descriptor(
            np.zeros(64, np.uint8),
            np.array([0.99, 0.0, 0.1, 0.0], np.float32) / np.float32(np.hypot(0.99, 0.1)),
            _moved(_grid(2), 0, 2),
        )
        plain = matcher.match_alone(query, "camera", 1)
        assert plain.hypotheses[0].keyframe.id == 3
        local = matcher.match_alone(query, "camera", 1, KeyframeLocals(_Engine(), held))
        assert local.hypotheses[0].keyframe.id == 2
