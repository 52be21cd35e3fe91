"""Which layout a folder has, and what is said of one that has none."""

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.drive import LOOPS, DriveFolder
from hashvpr_ros.datasets.nordland import FrameTraverses
from hashvpr_ros.datasets.registry import (
    LAYOUTS,
    layouts_of,
    open_dataset,
    open_traverses,
    recognize,
)
from hashvpr_ros.datasets.utm import UtmTraverses
from hashvpr_ros.datasets.vpr_bench import GROUND_TRUTH, VprBench
from hashvpr_ros.errors import ConfigError, DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
UTM = ["@1@2@.jpg", "@300@4@.jpg"]
PLAIN = ["0.jpg", "1.jpg"]


def make(folder, names=PLAIN, parts=("query", "ref"), truth=()):
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            assert cv2.imwrite(str(folder / part / name), RGB)
    for name in truth:
        np.save(folder / name, np.array([[0, 1], [1, 0]]))
    return folder


def refused(folder, *words, layout="auto"):
    with pytest.raises(DatasetError) as e:
        open_traverses(folder, layout)
    text = str(e.value)
    assert str(folder) in text and "\n" not in text
    for word in words:
        assert word in text, text


UTM_PARTS = ("database", "queries")
CASES = {
    "vpr-bench": ({"truth": [GROUND_TRUTH]}, VprBench, [{1}, {0}]),
    "utm": ({"names": UTM, "parts": UTM_PARTS}, UtmTraverses, [{0}, {1}]),
    "nordland": ({}, FrameTraverses, [{0, 1}, {0, 1}]),
    "drive": ({"parts": ["images"], "truth": [LOOPS]}, DriveFolder, [set(), {0}]),
}


def test_every_layout_has_a_case():
    assert list(CASES) == list(LAYOUTS)


@pytest.mark.parametrize("layout", CASES)
def test_a_folder_is_known_by_what_it_holds(tmp_path, layout):
    options, kind, positives = CASES[layout]
    folder = make(tmp_path, **options)
    if layout == "nordland":  # that cannot be seen
        refused(folder, GROUND_TRUTH, "is missing", "--layout nordland")
    else:
        assert recognize(folder) == layout
    for asked in (layout,) if layout == "nordland" else ("auto", layout):
        dataset = open_dataset(folder, asked)
        assert type(dataset) is kind
        if kind is DriveFolder:
            assert dataset.earlier() == positives and len(dataset.images) == 2
            continue
        assert dataset.positives() == positives
        assert len(dataset.queries) == len(dataset.references) == 2


def test_the_layouts_where_two_might_fit(tmp_path):
    deep = make(tmp_path / "b" / "images" / "test", UTM, UTM_PARTS).parents[1]
    assert recognize(deep) == "utm"
    assert recognize(make(tmp_path / "c", UTM, truth=[GROUND_TRUTH])) == "vpr-bench"
    both = make(make(tmp_path / "d", truth=[GROUND_TRUTH, LOOPS]), parts=["images"])
    assert recognize(both) == "vpr-bench" and layouts_of(both) == ["vpr-bench", "drive"]
    assert type(open_dataset(both, "drive")) is DriveFolder
    folder = make(make(tmp_path / "e", UTM, UTM_PARTS), PLAIN, UTM_PARTS)
    refused(folder, "0.jpg", "@utm_east@utm_north@")  # not taken for frames of a video


def test_a_layout_that_is_asked_for_is_not_guessed(tmp_path):
    folder = make(tmp_path / "a", truth=[GROUND_TRUTH])
    assert type(open_traverses(folder, "nordland")) is FrameTraverses
    refused(folder, "has no folders database/ and queries/", layout="utm")
    refused(make(tmp_path / "b"), GROUND_TRUTH, "is missing", layout="vpr-bench")
    refused(make(tmp_path / "c", parts=UTM_PARTS), "0.jpg", "its position", layout="utm")


@pytest.mark.parametrize(
    "options",
    [{"parts": ()}, {"parts": ("query",)}, {"parts": ("ref",)}, {"parts": ("images",)},
     {"names": UTM, "parts": ("database",)}, {"names": UTM, "parts": ("queries",)},
    ],
)  # fmt: skip
def test_what_fits_none_is_told_what_each_needs(tmp_path, options):
    folder = make(tmp_path, **options)
    told = (
        "vpr-bench needs query/, ref/ and ground_truth_new.npy, utm needs database/ and queries/"
    )
    refused(folder, "drive needs images/ and loops.npy or places.npy")
    refused(folder, told, "--layout nordland", "complete the folder")


def test_folders_that_are_none(tmp_path):
    for layout in ("auto", *LAYOUTS):
        refused(tmp_path / "no", "no such folder", "correct the path", layout=layout)
        refused(tmp_path / ("long" * 100), "cannot be read: File name too long", layout=layout)
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "is a file, not a folder")


def test_a_damaged_ground_truth_is_not_passed_over(tmp_path):
    folder = make(tmp_path, truth=[GROUND_TRUTH])
    (folder / GROUND_TRUTH).write_bytes(b"\x93NUMPY")
    refused(folder, GROUND_TRUTH, "write it again")


@pytest.mark.parametrize("layout", ["", "vpr_bench", "UTM"])
def test_a_layout_that_does_not_exist(tmp_path, layout):
    with pytest.raises(
        ConfigError, match=r"no layout '.*'.*give vpr-bench, utm, nordland, drive or auto"
    ):
        open_traverses(make(tmp_path), layout)


def test_a_drive_is_no_pair_of_traverses(tmp_path):
    folder = make(tmp_path, parts=["images"], truth=[LOOPS])
    refused(folder, "is one drive", "give a folder with queries and references")


def test_the_real_sets(data):
    for name in ("corridor", "sped"):
        assert type(open_traverses(data / name)) is VprBench
