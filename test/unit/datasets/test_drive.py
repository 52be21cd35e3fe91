"""A drive that visits places again: its two ground truths, and files that are refused."""

import os
import pickle

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.drive import IMAGES, LOOPS, PLACES, DriveFolder, is_drive
from hashvpr_ros.errors import DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


@pytest.fixture
def make(tmp_path):
    """Writes a drive of some images, with one array or several."""

    def write(images, **arrays):
        (tmp_path / IMAGES).mkdir()
        for i in range(images):
            assert cv2.imwrite(str(tmp_path / IMAGES / f"{i}.png"), RGB)
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        return tmp_path

    return write


def refused(folder, *words):
    with pytest.raises(DatasetError) as e:
        DriveFolder(folder)
    text = str(e.value)
    assert str(folder) in text and "\n" not in text and "; " in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.int64])
def test_loops_count_in_both_directions_and_not_with_themselves(make, dtype):
    loops = np.eye(4, dtype=dtype)
    loops[0, 3] = loops[2, 1] = 1
    drive = DriveFolder(make(4, loops=loops))
    assert [p.name for p in drive.images] == ["0.png", "1.png", "2.png", "3.png"]
    assert drive.earlier() == [set(), set(), {1}, {0}]
    assert drive.revisits() == [False, False, True, True]


def test_a_tolerance_reaches_no_later_image(make):
    loops = np.zeros((5, 5), bool)
    loops[3, 1] = loops[4, 3] = True
    drive = DriveFolder(make(5, loops=loops))
    assert drive.earlier(1) == [set(), set(), set(), {0, 1, 2}, {2, 3}]
    assert drive.earlier(9) == [set(), set(), set(), {0, 1, 2}, {0, 1, 2, 3}]
    assert drive.revisits() == [False, False, False, True, True]


def test_a_drive_without_a_loop(make):
    drive = DriveFolder(make(3, loops=np.zeros((3, 3))))
    assert drive.earlier() == [set()] * 3 and drive.revisits() == [False] * 3


@pytest.mark.parametrize("labels", [[7, 7, 3, 7, 7, 3], ["a", "a", "b", "a", "a", "b"]])
def test_a_visit_is_no_revisit_of_itself(make, labels):
    drive = DriveFolder(make(6, places=np.array(labels)))
    assert drive.earlier() == [set(), {0}, set(), {0, 1}, {0, 1, 3}, {2}]
    assert drive.revisits() == [False, False, False, True, True, True]
    assert drive.earlier(1)[3] == {0, 1, 2}


def test_its_signs(make, tmp_path):
    assert not is_drive(tmp_path)
    folder = make(2, places=np.array([0, 1]))
    assert is_drive(folder)
    (folder / PLACES).unlink()
    assert not is_drive(folder)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (4,), (2, 2, 1), ()])
def test_loops_of_another_shape(make, shape):
    refused(make(2, loops=np.zeros(shape)), LOOPS, str(list(shape)), "holds 2 images", "[2, 2]")


@pytest.mark.parametrize("shape", [(3,), (1, 2), ()])
def test_places_of_another_shape(make, shape):
    refused(make(2, places=np.zeros(shape, int)), PLACES, str(list(shape)), "one label per image")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loops_that_are_no_numbers(make, value):
    loops = np.zeros((2, 2))
    loops[1, 0] = value
    refused(make(2, loops=loops), LOOPS, "NaN or infinity", "write 0 or 1")


@pytest.mark.parametrize("dtype", [complex, "U1"])
def test_loops_of_another_type(make, dtype):
    refused(make(2, loops=np.zeros((2, 2), dtype)), LOOPS, "astype(bool)")


@pytest.mark.parametrize("dtype", ["M8[s]", [("a", int)]])
def test_loops_of_no_numbers(make, dtype):
    refused(make(2, loops=np.zeros((2, 2), dtype)), LOOPS, "neither numbers", "numpy.save")


def test_a_label_that_is_no_text(make):
    labels = np.array(["a", "b"])
    labels.view(np.uint32)[1] = 0x7FFFFFFF
    refused(make(2, places=labels), PLACES, "damaged label")


@pytest.mark.parametrize("labels", [[0.5, np.nan], [1.0, 2.0], [True, False], [1j, 2j]])
def test_labels_of_another_type(make, labels):
    refused(make(2, places=np.array(labels)), PLACES, "integers or strings", "astype(int)")


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["loops", "places"])
def test_objects_are_refused_and_run_nothing(make, tmp_path, name):
    mark = tmp_path / "executed"
    array = np.empty((2, 2) if name == "loops" else (2,), object)
    array.fill(Hostile(str(mark)))
    folder = make(2, **{name: array})
    refused(folder, f"{name}.npy", "without objects", "numpy.save")
    (folder / f"{name}.npy").write_bytes(pickle.dumps(Hostile(str(mark))))
    refused(folder, f"{name}.npy", "numpy.save")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(99)])
def test_files_of_another_kind(make, content):
    folder = make(2)
    (folder / LOOPS).write_bytes(content)
    refused(folder, LOOPS, "not a readable array", "numpy.save")


def test_any_truncation_is_one_error(make):
    folder = make(2, loops=np.zeros((2, 2)))
    whole = (folder / LOOPS).read_bytes()
    for length in range(len(whole)):
        (folder / LOOPS).write_bytes(whole[:length])
        refused(folder, LOOPS)


def test_a_header_that_promises_too_much(make):
    folder = make(2)
    with (folder / LOOPS).open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (10**9, 10**4)}
        np.lib.format.write_array_header_1_0(file, header)
    refused(folder, LOOPS, "numpy.save")


def test_a_folder_that_is_incomplete_or_says_two_things(make, tmp_path):
    refused(tmp_path, "no folder images/", "names in the order of time")
    folder = make(2)
    refused(folder, "neither loops.npy nor places.npy", "add one")
    np.save(folder / LOOPS, np.zeros((2, 2)))
    np.save(folder / PLACES, np.zeros(2, int))
    refused(folder, "both loops.npy and places.npy", "remove one")
    (folder / PLACES).unlink()
    for image in (folder / IMAGES).iterdir():
        image.unlink()
    refused(folder, "holds no images")
    with pytest.raises(DatasetError, match="no such folder"):
        DriveFolder(tmp_path / "no")


def test_the_real_drive(data):
    folder = data / "rtabmap_corridor"
    if not (folder / LOOPS).is_file():
        pytest.skip(f"{folder} has no {LOOPS}")
    drive = DriveFolder(folder)
    assert len(drive.images) == 84 and sum(drive.revisits()) == 44
    assert drive.revisits().index(True) == 40
