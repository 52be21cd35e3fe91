"""Traverses whose frames correspond: by number, by order, and those that do not."""

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.datasets.nordland import FrameTraverses
from hashvpr_ros.errors import ConfigError, DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


def make(folder, query, ref, names=("query", "ref")):
    for part, images in zip(names, (query, ref), strict=True):
        (folder / part).mkdir(parents=True)
        for name in images:
            assert cv2.imwrite(str(folder / part / name), RGB)
    return folder


def numbered(*numbers, text="images-{:05d}.png"):
    return [text.format(i) for i in numbers]


def refused(folder, *words, **options):
    with pytest.raises(DatasetError) as e:
        FrameTraverses(folder, **options)
    text = str(e.value)
    assert str(folder) in text and "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("query", ["query", "queries"])
@pytest.mark.parametrize("ref", ["ref", "reference", "database"])
def test_frames_of_the_same_number(tmp_path, query, ref):
    make(tmp_path, numbered(0, 1, 2, 3), numbered(0, 1, 2, 3, text="{}.jpg"), (query, ref))
    dataset = FrameTraverses(tmp_path)
    assert dataset.by_number
    assert [p.name for p in dataset.queries] == numbered(0, 1, 2, 3)
    assert [p.parent.name for p in dataset.references] == [ref] * 4
    assert all(read_image(p).shape == RGB.shape for p in dataset.queries + dataset.references)
    assert dataset.positives() == [{0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3}]
    assert FrameTraverses(tmp_path, 0).positives() == [{0}, {1}, {2}, {3}]
    assert FrameTraverses(tmp_path, 10).positives() == [{0, 1, 2, 3}] * 4


def test_every_tenth_frame_as_a_query(tmp_path):
    make(tmp_path, numbered(10, 20, 90), numbered(*range(8, 22)))
    dataset = FrameTraverses(tmp_path)
    assert list(dataset.query_frames) == [10, 20, 90]
    assert list(dataset.reference_frames) == list(range(8, 22))
    assert dataset.positives() == [{1, 2, 3}, {11, 12, 13}, set()]


def test_frames_that_were_left_out_still_count(tmp_path):
    make(tmp_path, numbered(2, 7), numbered(1, 2, 5, 8, 9))
    assert FrameTraverses(tmp_path).positives() == [{0, 1}, {3}]
    assert FrameTraverses(tmp_path, 2).positives() == [{0, 1}, {2, 3, 4}]


def test_tolerance_is_of_frames(tmp_path):
    dataset = FrameTraverses(make(tmp_path, numbered(2, 7), numbered(1, 2, 5, 8, 9)), 0)
    assert dataset.positives() == [{1}, set()]
    assert dataset.positives(1) == FrameTraverses(tmp_path, 1).positives()
    assert dataset.positives(100) == [set(range(5))] * 2


def test_the_last_number_of_a_name_whatever_the_order(tmp_path):
    # Natural order is by the first number, so that frames do not ascend.
    make(tmp_path, ["run2_5.png", "run1_6.png"], ["a9_6.jpg", "b1_5.jpg", "b1_7.mp4.jpg"])
    dataset = FrameTraverses(tmp_path, 0)
    assert [p.name for p in dataset.queries] == ["run1_6.png", "run2_5.png"]
    assert dataset.positives()[:1] == [{0}] and dataset.positives()[1] == {1}
    assert list(dataset.reference_frames) == [6, 5, 4]


def test_numbers_of_any_length(tmp_path):
    numbers = [10**40, 10**40 + 1, 10**40 + 3]
    make(tmp_path, numbered(*numbers, text="{}.png"), numbered(*numbers, text="{}.png"))
    assert FrameTraverses(tmp_path).positives() == [{0, 1}, {0, 1}, {2}]


@pytest.mark.parametrize(
    ("query", "ref"),
    [
        (["a.png", "b.png", "c.png"], ["a.png", "b.png", "c.png"]),
        (["a.png", "b.png", "c.png"], numbered(7, 8, 9)),
        (["1.png", "2.png", "last.png"], numbered(1, 2, 3)),
        (["1_cam2.png", "2_cam2.png", "10_cam2.png"], ["1_cam1.png", "2_cam1.png", "10_cam1.png"]),
        (["1.png", "01.png", "2.png"], numbered(1, 2, 3)),
    ],
)
def test_by_order_where_numbers_do_not_tell(tmp_path, query, ref):
    dataset = FrameTraverses(make(tmp_path, query, ref))
    assert not dataset.by_number and list(dataset.query_frames) == [0, 1, 2]
    assert dataset.positives() == [{0, 1}, {0, 1, 2}, {1, 2}]
    assert dataset.positives(1) == [{0, 1, 2}] * 3
    assert FrameTraverses(tmp_path, 0).positives() == [{0}, {1}, {2}]


def test_unequal_traverses_need_a_number_for_each(tmp_path):
    counts = "query/ has 2 images and ref/ has 3"
    folder = make(tmp_path / "none", ["a.png", "b1.png"], numbered(1, 2, 3))
    refused(folder, counts, "query/a.png has none", "number all")
    folder = make(tmp_path / "double", numbered(1, 2), ["1.png", "1.jpg", "2.png"])
    refused(folder, counts, "1.jpg and 1.png in ref/ have the same one", "without a partner")


def test_numbers_that_have_nothing_in_common(tmp_path):
    make(tmp_path, numbered(1418381798086398), numbered(1418381798, 1418381799))
    refused(tmp_path, "no number in query/ is within 1 of one in ref/", "by the same number")
    folder = make(tmp_path / "near", numbered(0), numbered(3, 4))
    refused(folder, "within 2", frames=2)
    assert FrameTraverses(folder, 3).positives() == [{0}]


def test_frames_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="frames is -1; give 0 or more"):
        FrameTraverses(make(tmp_path, numbered(1), numbered(1)), -1)


def test_folders_that_do_not_fit(tmp_path):
    refused(tmp_path / "no", "no such folder", "correct the path")
    refused(tmp_path, "has no folder query/ or queries/", "query/ and ref/")
    (tmp_path / "query").write_text("a file")
    refused(tmp_path, "has no folder query/ or queries/")
    refused(tmp_path / "query", "is a file, not a folder")
    folder = make(tmp_path / "one-sided", numbered(1), numbered(1), ("query", "references"))
    refused(folder, "has no folder ref/ or reference/ or database/")
    folder = make(tmp_path / "double", numbered(1), numbered(1), ("query", "database"))
    (folder / "ref").mkdir()
    refused(folder, "has ref/ and database/", "remove all but one")
    for empty in ("query", "ref"):
        folder = tmp_path / f"no images in {empty}"
        make(folder, *([] if part == empty else numbered(1) for part in ("query", "ref")))
        (folder / empty / "1.txt").write_text("text")
        refused(folder, f"{folder / empty}: holds no images")


def test_the_real_images(data):
    for name, count in (("corridor", 111), ("sped", 589)):
        dataset = FrameTraverses(data / name, 0)
        assert dataset.by_number and dataset.positives() == [{i} for i in range(count)]
