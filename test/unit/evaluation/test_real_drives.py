"""What must hold on real images with whatever model is shipped: invariants, not its digits."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from hashvpr_ros.config import Config
from hashvpr_ros.datasets.drive import DriveFolder
from hashvpr_ros.datasets.folder import image_paths, read_image
from hashvpr_ros.engine.factory import create_engine
from hashvpr_ros.engine.preprocess import describe_image
from hashvpr_ros.evaluation.evaluate import evaluate
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode

DATA = Path(__file__).parents[3].parent / "shared" / "data"
SHORT_DRIVE, TOWER = DATA / "rtabmap_corridor", DATA / "tower"
# Held out from training; they have the most pairs that geometric verification takes for loops.
FLOORS = ("floor9", "floor20")


@pytest.fixture(scope="module")
def engine():
    return create_engine(threads=1)


@pytest.mark.skipif(not SHORT_DRIVE.is_dir(), reason="needs ../shared/data/rtabmap_corridor")
def test_a_short_drive_closes(engine):
    closures = evaluate(DriveFolder(SHORT_DRIVE), engine).summary()["closures"]
    assert closures["closed_percent"] > 30
    assert closures["correct"] == closures["accepted"]


@pytest.mark.skipif(not TOWER.is_dir(), reason="needs ../shared/data/tower")
def test_floors_that_look_alike_do_not_fold(engine):
    with (TOWER / "frames.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["floor"] in FLOORS]
    rows.sort(key=lambda row: FLOORS.index(row["floor"]))  # stable
    floor_of = {}
    with PlaceMap.open("", engine.info.fingerprint, engine.info.feature_dim) as place_map:
        recognizer = Recognizer(engine, place_map, Config(), mode=Mode.SLAM)
        for second, row in enumerate(rows):
            decision = recognizer.process(read_image(TOWER / row["path"]), second * 10**9)
            floor_of[decision.keyframe_id] = row["floor"]
            if decision.accepted:
                assert floor_of[decision.hypotheses[0].keyframe.id] == row["floor"]


@pytest.mark.skipif(not SHORT_DRIVE.is_dir(), reason="needs ../shared/data/rtabmap_corridor")
def test_a_shifted_view_is_nearer_to_its_place_than_other_places_are(engine):
    """The left and the right three quarters of an image: a camera that moved or turned."""
    images = [read_image(p) for p in image_paths(SHORT_DRIVE / "ref")[:40:4]]

    def describe(image, columns):
        height = image.shape[0]
        part = image[:, columns]
        return describe_image(engine, cv2.resize(part, (height * 4 // 3, height))).feature

    width = images[0].shape[1]
    left = np.array([describe(i, slice(0, width * 3 // 4)) for i in images])
    right = np.array([describe(i, slice(width // 4, width)) for i in images])
    assert ((left @ right.T).argmax(1) == np.arange(len(images))).mean() >= 0.8
