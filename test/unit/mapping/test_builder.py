"""Maps built from frames."""

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.datasets.folder import FolderFrames
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.mapping.builder import BuildCounts, build_map
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode

S = 1_000_000_000
NOISE = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)


def open_map(lite, path=""):
    return PlaceMap.open(path, lite.info.fingerprint, lite.info.feature_dim)


def mapper(lite, place_map, **settings):
    config = from_flat({name.replace("__", "."): v for name, v in settings.items()})
    return Recognizer(lite, place_map, config, mode=Mode.MAPPING)


def test_counts_with_poses(lite, tmp_path):
    frames = [Frame(NOISE[i], (1 + i) * S, planar_pose(0.2 * i, 0, 0)) for i in range(10)]
    calls = []
    with open_map(lite, tmp_path / "m.vprmap") as place_map:
        counts = build_map(
            mapper(lite, place_map), frames, camera="front", progress=lambda: calls.append(1)
        )
        assert counts == BuildCounts(images=10, keyframes=4)  # 0, 0.6, 1.2 and 1.8 m
        assert len(calls) == 10 and len(place_map) == 4
    info = PlaceMap.read_info(tmp_path / "m.vprmap")
    assert (info.keyframes, info.with_pose, info.with_thumbnail) == (4, 4, 4)
    assert info.cameras == ("front",)
    with PlaceMap.open(tmp_path / "m.vprmap", read_only=True) as place_map:
        found = place_map.keyframes(place_map.ids())
        assert [k.stamp_ns for k in found] == [1 * S, 4 * S, 7 * S, 10 * S]
        assert [round(k.pose.position_m[0], 6) for k in found] == [0.0, 0.6, 1.2, 1.8]


def test_counts_without_poses(lite):
    frames = [Frame(NOISE[0], (1 + i) * S // 2) for i in range(60)]  # half a minute of one view
    with open_map(lite) as place_map:
        assert build_map(mapper(lite, place_map), frames) == BuildCounts(60, 3)


def test_every_image(lite, data):
    frames = FolderFrames(data / "corridor" / "ref")
    frames.paths = frames.paths[:12]
    settings = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}
    with open_map(lite) as place_map:
        assert build_map(mapper(lite, place_map, **settings), frames) == BuildCounts(12, 12)
        # Each image finds itself.
        for i, frame in enumerate(frames):
            best = mapper(lite, place_map).recognize(frame.rgb).hypotheses[0]
            assert best.keyframe.id == i + 1 and best.distance_bits <= 2


def test_no_frames(lite):
    with open_map(lite) as place_map:
        assert build_map(mapper(lite, place_map), []) == BuildCounts(0, 0)
        assert len(place_map) == 0


@pytest.mark.parametrize("last", ["reader", "image"])
def test_what_was_added_before_an_error_stays(lite, tmp_path, last):
    def frames():
        yield Frame(NOISE[0], S, planar_pose(0, 0, 0))
        yield Frame(NOISE[1], 2 * S, planar_pose(1, 0, 0))
        if last == "reader":
            raise DatasetError("bag: damaged")
        yield Frame(NOISE[2, ..., 0], 3 * S)

    path = tmp_path / "m.vprmap"
    with (
        pytest.raises(DatasetError if last == "reader" else ImageError),
        open_map(lite, path) as place_map,
    ):
        build_map(mapper(lite, place_map), frames())
    assert PlaceMap.read_info(path).keyframes == 2
    with PlaceMap.open(path, read_only=True) as place_map:
        assert place_map.verify() == []


def test_a_second_session_is_one_of_its_own(lite):
    with open_map(lite) as place_map:
        first = place_map.session
        build_map(mapper(lite, place_map), [Frame(NOISE[0], S)])
        second = place_map.start_session("evening")
        build_map(mapper(lite, place_map), [Frame(NOISE[0], S)])
        assert [k.session for k in place_map.keyframes([1, 2])] == [first, second]
