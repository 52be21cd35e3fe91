"""Folders of images."""

import os
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


def test_an_unreadable_image_is_left_out_and_the_others_keep_their_stamps(tmp_path):
    whole = save(tmp_path / "0.png").read_bytes()
    save(tmp_path / "2.png")
    (tmp_path / "1.png").write_bytes(whole[:200])
    frames = FolderFrames(tmp_path)
    for _ in range(2):
        assert [f.stamp_ns for f in frames] == [1_000_000_000, 3_000_000_000]
        assert frames.lost == 1 and len(frames) == 3
        assert "1.png: truncated PNG" in frames.skipped[0] and frames.notes == []


def test_what_is_not_read_is_said(tmp_path):
    save(tmp_path / "0.png")
    for name in ("1.ppm", "2.ppm", "3.PGM", "README", ".hidden.ppm"):
        (tmp_path / name).write_bytes(b"P6")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "9.png")
    (note,) = FolderFrames(tmp_path).notes
    assert "5 files are not read (1 with .pgm, 1 with .png, 2 with .ppm, 1 with no suffix)" in note
    assert note.startswith(f"{tmp_path}: ")


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


def test_nearly_black_images_of_16_bits_are_said_once_for_each_folder(tmp_path, caplog):
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            depth = np.full((6, 8), 900 + i, np.uint16)
            cv2.imwrite(str(tmp_path / folder / f"{i}.png"), depth)
        assert len(list(FolderFrames(tmp_path / folder))) == 3
    said = [r.getMessage() for r in caplog.records if "nearly black" in r.getMessage()]
    assert [m.split(":")[0] for m in said] == [str(tmp_path / f) for f in ("left", "right")]
