"""One drive: images in order, and which of them show the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.folder import check_folder, image_paths, not_read
from hashvpr_ros.datasets.npy import read_npy
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import MB

IMAGES, LOOPS, PLACES = "images", "loops.npy", "places.npy"
_MOST_BYTES = 2_000 * MB  # 15,000 images in all pairs of float64


class DriveFolder:
    """A drive that visits places again, with its ground truth.

    Args:
        folder: with `images/`, in the natural order of their names, and one of two files:
            `loops.npy` [N, N], bool or numeric: non-zero where two of the N images show the same
            place. It counts in both directions, and its diagonal does not count.
            `places.npy` [N], integers or strings: the place of each image. Images with different
            labels show different places.

    Attributes:
        images: paths of the N images.
        notes: what is to be said of the set, a sentence each.

    Raises:
        DatasetError: something is missing or malformed, or both files are there.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        self.folder = folder
        if not (folder / IMAGES).is_dir():
            raise DatasetError(
                f"{folder}: has no folder {IMAGES}/; put the images of the drive there, with "
                "names in the order of time"
            )
        loops, places = (folder / LOOPS).exists(), (folder / PLACES).exists()
        if loops and places:
            raise DatasetError(
                f"{folder}: has both {LOOPS} and {PLACES}, which may contradict; remove one"
            )
        if not loops and not places:
            raise DatasetError(
                f"{folder}: has neither {LOOPS} nor {PLACES}, so the ground truth is missing; "
                "add one of them"
            )
        self.images = image_paths(folder / IMAGES)
        self.notes = not_read(folder / IMAGES)
        count = len(self.images)
        if loops:
            same = _read_loops(folder / LOOPS, count)
            self._earlier = [set(np.flatnonzero(same[i, :i]).tolist()) for i in range(count)]
            self._revisits = [bool(earlier) for earlier in self._earlier]
        else:
            labels = _read_places(folder / PLACES, count)
            self._earlier, self._revisits = _visits(labels)

    def earlier(self, tolerance: int = 0) -> list[set[int]]:
        """For each image, the indices of earlier images that are correct matches.

        Args:
            tolerance: earlier images within so many indices of a correct one count, too.
        """
        return [
            {k for j in right for k in range(max(0, j - tolerance), min(i, j + tolerance + 1))}
            for i, right in enumerate(self._earlier)
        ]

    def revisits(self) -> list[bool]:
        """For each image, whether the robot is back at a place.

        With `loops.npy`: an earlier image shows the place. With `places.npy`: an earlier visit
        does; images of the current visit do not make a revisit.
        """
        return list(self._revisits)


def is_drive(folder: Path) -> bool:
    """Whether a folder has the images and the ground truth of a drive."""
    truth = (folder / LOOPS).exists() or (folder / PLACES).exists()
    return truth and (folder / IMAGES).is_dir()


def _visits(labels: list[Any]) -> tuple[list[set[int]], list[bool]]:
    """Earlier images with the label of each image, and whether one is of an earlier visit."""
    seen: dict[Any, list[int]] = {}
    earlier, revisits = [], []
    begin = 0  # of the current visit
    for i, label in enumerate(labels):
        if i and label != labels[i - 1]:
            begin = i
        same = seen.setdefault(label, [])
        earlier.append(set(same))
        revisits.append(bool(same) and same[0] < begin)
        same.append(i)
    return earlier, revisits


def _read_loops(path: Path, images: int) -> NDArray[np.bool_]:
    array = _load(path)
    if array.shape != (images, images):
        raise DatasetError(
            f"{path}: has the shape {list(array.shape)}, but {IMAGES}/ holds {images} images; "
            f"write an array [{images}, {images}]"
        )
    if array.dtype.kind not in "biuf":
        raise DatasetError(
            f"{path}: holds {array.dtype}, not bool or real numbers; convert it with astype(bool)"
        )
    if not np.isfinite(array).all():
        raise DatasetError(
            f"{path}: holds NaN or infinity, which says nothing about a pair; write 0 or 1"
        )
    same: NDArray[np.bool_] = (array != 0) | (array.T != 0)
    np.fill_diagonal(same, False)
    return same


def _read_places(path: Path, images: int) -> list[Any]:
    array = _load(path)
    if array.shape != (images,):
        raise DatasetError(
            f"{path}: has the shape {list(array.shape)}, but {IMAGES}/ holds {images} images; "
            f"write an array [{images}] with one label per image"
        )
    if array.dtype.kind not in "iuUS":
        raise DatasetError(
            f"{path}: holds {array.dtype}, but labels are integers or strings; convert it with "
            "astype(int) or astype(str)"
        )
    try:
        labels: list[Any] = array.tolist()
    except (ValueError, SystemError) as e:  # of a text that is no Unicode
        raise DatasetError(f"{path}: has a damaged label: {e}; write the file again") from e
    return labels


def _load(path: Path) -> NDArray[Any]:
    """An array of a .npy file without objects."""
    try:
        return read_npy(path, _MOST_BYTES).array()
    except ValueError as e:
        raise DatasetError(
            f"{path}: is not a readable array without objects: {e}; write the file again with "
            "numpy.save"
        ) from e
