"""Folders of images."""

import shutil

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.folder import SUFFIXES, FolderFrames, image_paths, read_image
from hashvpr_ros.errors import DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def save(path):
    done, buffer = cv2.imencode(path.suffix, RGB[..., ::-1])
    assert done
    path.write_bytes(buffer.tobytes())
    return path


def refused(call, path, *words):
    with pytest.raises(DatasetError) as e:
        call(path)
    text = str(e.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, text


def test_numbers_count_and_other_files_are_passed_over(tmp_path):
    names = ["10.png", "2.png", "1.png", "a2.png", "a10.png", "b.PNG", "2b.png"]
    for name in names:
        save(tmp_path / name)
    for name in ("notes.txt", "README", ".hidden.png", "._1.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in image_paths(tmp_path)] == [
        "1.png", "2.png", "2b.png", "10.png", "a2.png", "a10.png", "b.PNG",
    ]  # fmt: skip


def test_the_order_does_not_depend_on_the_folder(tmp_path):
    names = ["01.png", "1.png", "001.png", "²1.png", "x²3.png", "٣.png", "é1.png", "-1.png"]
    orders = []
    for turn in (names, names[::-1]):
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        (tmp_path / "images").mkdir()
        for name in turn:
            save(tmp_path / "images" / name)
        orders.append([p.name for p in image_paths(tmp_path / "images")])
    assert orders[0] == orders[1] and sorted(orders[0]) == sorted(names)
    assert orders[0].index("001.png") < orders[0].index("01.png") < orders[0].index("1.png")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_that_is_listed_can_be_read(tmp_path, suffix):
    path = save(tmp_path / f"image{suffix}")
    assert image_paths(tmp_path) == [path]
    image = read_image(path)
    assert image.shape == RGB.shape and image.dtype == np.uint8
    if suffix in (".png", ".bmp", ".tif", ".tiff"):
        np.testing.assert_array_equal(image, RGB)


def test_frames(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    frames = FolderFrames(tmp_path, period_s=0.5)
    assert len(frames) == 3
    for _ in range(2):  # as often as wanted
        read = list(frames)
        assert [f.stamp_ns for f in read] == [1_000_000_000, 1_500_000_000, 2_000_000_000]
        assert [f.name for f in read] == ["0.png", "1.png", "2.png"]
        assert all(f.pose is None for f in read)
        np.testing.assert_array_equal(read[2].rgb, RGB)


def test_the_real_images(data):
    frames = FolderFrames(data / "corridor" / "query")
    assert len(frames) == 111
    assert [f.rgb.shape for f in frames] == [(120, 160, 3)] * 111


def test_an_unreadable_image_is_named_when_its_turn_comes(tmp_path):
    whole = save(tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:200])
    frames = iter(FolderFrames(tmp_path))
    next(frames)
    with pytest.raises(DatasetError, match=r"1\.png: truncated PNG.*replace or remove"):
        next(frames)


def test_bad_files(tmp_path):
    refused(read_image, tmp_path / "no.jpg", "No such file", "check the path")
    refused(read_image, tmp_path, "is a folder", "give the path of a file")
    for name, content, word in (
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"int main() {}\n", "no JPEG, PNG, WebP, TIFF or BMP"),
        ("cut.jpg", b"\xff\xd8\xff\xe0", "truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(read_image, tmp_path / name, word, "replace or remove")


def test_bad_folders(tmp_path):
    refused(image_paths, tmp_path / "no", "no such folder", "correct the path")
    refused(image_paths, tmp_path, "holds no images", ".jpg", "give the folder")
    (tmp_path / "notes.txt").write_text("text")
    refused(image_paths, tmp_path, "holds no images")
    refused(image_paths, tmp_path / "notes.txt", "is a file, not a folder", "give the folder")
