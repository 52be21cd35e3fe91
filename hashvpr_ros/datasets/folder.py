"""A folder of images, in the natural order of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros import imaging
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image file as RGB, uint8 [H, W, 3].

    Raises:
        DatasetError: missing or damaged.
    """
    try:
        return imaging.decode_compressed(path.read_bytes())
    except OSError as e:
        raise DatasetError(f"{path}: cannot be read: {e.strerror}; correct the path") from e
    except ImageError as e:
        raise DatasetError(f"{path}: {e}; replace or remove the file") from e


def image_paths(folder: Path) -> list[Path]:
    """Image files of a folder, `2.jpg` before `10.jpg`.

    Raises:
        DatasetError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; correct the path")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not paths:
        raise DatasetError(f"{folder}: holds no images ({', '.join(SUFFIXES)})")
    return sorted(paths, key=lambda p: [int(s) if s.isdigit() else s for s in _split(p.name)])


def _split(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


class FolderFrames:
    """Frames of a folder; stamps count from 1 s in steps of a period.

    Args:
        folder: with images directly in it.
        period_s: between stamps, since a folder has none.
    """

    def __init__(self, folder: Path, period_s: float = 1.0) -> None:
        self.paths = image_paths(folder)
        self.period_s = period_s

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for i, path in enumerate(self.paths):
            yield Frame(read_image(path), round((1 + i * self.period_s) * 1e9), None, path.name)
