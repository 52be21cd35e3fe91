"""A folder of images, in the natural order of their names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros import imaging
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.file_io import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # what imaging decodes

_hints = imaging.HintOnce(
    lambda folder, hint: logging.getLogger(__name__).warning("%s: %s", folder, hint)
)


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image file as RGB, uint8 [H, W, 3].

    Raises:
        DatasetError: missing, no regular file, too large, or damaged.
    """
    data = read_bytes(path, imaging.MAX_BYTES, error=DatasetError)
    if not data:
        raise DatasetError(f"{path}: is an empty file; replace or remove it")
    try:
        return imaging.decode_compressed(data, on_hint=_hints.of(str(path.parent)))
    except ImageError as e:
        raise DatasetError(f"{path}: {e}; replace or remove the file") from e


def image_paths(folder: Path) -> list[Path]:
    """Image files of a folder, `2.jpg` before `10.jpg`; hidden files are not read.

    Raises:
        DatasetError: no such folder, or no images in it.
    """
    check_folder(folder)
    try:
        paths = [p for p in folder.iterdir() if is_image(p)]
    except OSError as e:
        raise DatasetError(f"{folder}: cannot be read: {e.strerror}; correct the path") from e
    if not paths:
        raise DatasetError(
            f"{folder}: holds no images ({', '.join(SUFFIXES)}); give the folder in which they lie"
        )
    return sorted(paths, key=_natural)


def check_folder(folder: Path) -> None:
    """Raise DatasetError unless this is a folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise DatasetError(f"{folder}: is a file, not a folder; give the folder it lies in")
    raise DatasetError(f"{folder}: no such folder; correct the path")


def is_image(path: Path) -> bool:
    """Whether a file is read as an image: by its name, and it is a regular file."""
    # File managers and macOS leave `._0001.jpg` and the like, which hold no image.
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Text and numbers take turns; the name itself decides between `1.jpg` and `01.jpg`."""
    parts = re.split(r"(\d+)", path.name)
    return [int(s) if i % 2 else s for i, s in enumerate(parts)], path.name


def not_read(folder: Path, paths: Iterable[Path] | None = None) -> list[str]:
    """A sentence on what else is in a folder of images; none where there is nothing.

    Hidden files and folders do not count.

    Args:
        paths: all that is in the folder, where it has folders within.
    """
    try:
        other = Counter(
            p.suffix.lower() or "no suffix"
            for p in (folder.iterdir() if paths is None else paths)
            if not p.name.startswith(".") and not p.is_dir() and not is_image(p)
        )
    except OSError:
        return []
    if not other:
        return []
    kinds = ", ".join(f"{count} with {suffix}" for suffix, count in sorted(other.items()))
    return [
        f"{folder}: {other.total()} files are not read ({kinds}); images end in "
        f"{', '.join(SUFFIXES)}"
    ]


class FolderFrames:
    """Frames of a folder; stamps count from 1 s in steps of a period.

    Images that cannot be read are left out; the others keep their stamps.

    Args:
        folder: with images directly in it.
        period_s: between stamps, since a folder has none.

    Attributes:
        skipped: why images were left out of the last pass, one line each.
        notes: what else is to be said of the folder.
    """

    def __init__(self, folder: Path, period_s: float = 1.0) -> None:
        self.paths = image_paths(folder)
        self.period_s = period_s
        self.skipped: list[str] = []
        self.notes = not_read(folder)

    @property
    def lost(self) -> int:
        """Images that were left out of the last pass."""
        return len(self.skipped)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        for i, path in enumerate(self.paths):
            try:
                rgb = read_image(path)
            except DatasetError as e:
                self.skipped.append(str(e))
                continue
            yield Frame(rgb, round((1 + i * self.period_s) * 1e9), None, path.name)
