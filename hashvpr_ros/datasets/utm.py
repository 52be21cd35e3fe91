"""The layout of the VPR benchmarks: database/, queries/, and positions in the files' names.

Berton et al., "Deep Visual Geo-localization Benchmark" (CVPR 2022, section 3), and their
VPR-datasets-downloader and VPR-methods-evaluation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.folder import SUFFIXES, check_folder, is_image, not_read
from hashvpr_ros.errors import ConfigError, DatasetError

_DATABASE, _QUERIES = "database", "queries"
_COUNTRY_DEG = 10.0  # more than any set of one country extends
_LIMIT_M = 1e8  # ten times what UTM has


class UtmTraverses:
    """Images with names `@utm_east@utm_north@…@.jpg`, in the order of their paths.

    As in the benchmark, coordinates are compared whatever their UTM zone.

    Args:
        folder: with database/ and queries/, or with images/test/ that has both. They are searched
            with all folders in them but hidden ones; links are followed, and each folder counts
            once.
        radius_m: a reference is correct up to this distance from the query, the limit included.

    Attributes:
        query_xy, reference_xy: float64 [n, 2], east and north in metres.

    Raises:
        DatasetError: a folder is missing or without images, or a name has no position.
        ConfigError: the radius is negative or not finite.
    """

    def __init__(self, folder: Path, radius_m: float = 25.0) -> None:
        if not math.isfinite(radius_m) or radius_m < 0:
            raise ConfigError(f"radius_m is {radius_m}; give a distance in metres, 25 as a rule")
        check_folder(folder)
        place = _place(folder)
        if place is None:
            raise DatasetError(
                f"{folder}: has no folders {_DATABASE}/ and {_QUERIES}/; give the folder that "
                "holds both, with images named @utm_east@utm_north@…@.jpg"
            )
        self.folder, self.radius_m = folder, radius_m
        self.queries, self.references = _sorted(place / _QUERIES), _sorted(place / _DATABASE)
        self.notes = [
            note
            for part in (_QUERIES, _DATABASE)
            for note in not_read(place / part, _files(place / part))
        ]
        self.query_xy = np.array([_position(p) for p in self.queries], np.float64)
        self.reference_xy = np.array([_position(p) for p in self.references], np.float64)

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """The references of each query within the radius.

        Args:
            tolerance: 0; the order of names is not that of places, and neighbours in it may be
                views of one panorama or streets apart.

        Raises:
            ConfigError: another tolerance.
            DatasetError: no query has any, or the positions are in degrees.
        """
        if tolerance:
            raise ConfigError(
                f"{self.folder}: takes no --tolerance, since its images are in the order of their "
                "names and not of places; leave it out and set --radius"
            )
        self._refuse_degrees()
        found = self._near(self.query_xy)
        if not any(found):
            swapped = sum(bool(near) for near in self._near(self.query_xy[:, ::-1]))
            raise DatasetError(
                f"{self.folder}: no query is within {self.radius_m:g} m of a reference; "
                + (
                    f"{swapped} of {len(found)} are with east and north exchanged: rename the "
                    "images of one folder"
                    if swapped
                    else "check that the names of both folders have UTM coordinates of one zone, "
                    "or set --radius"
                )
            )
        return found

    def _refuse_degrees(self) -> None:
        """Refuse latitudes and longitudes: each reference would be correct for each query."""
        both = np.concatenate([self.query_xy, self.reference_xy])
        extent = np.ptp(both, axis=0)
        size = np.abs(both).max(axis=0)
        are_degrees = size.min() <= 90 and size.max() <= 180 and 0 < extent.max() < _COUNTRY_DEG
        if are_degrees and np.hypot(*extent) <= self.radius_m:
            raise DatasetError(
                f"{self.folder}: all images are within {self.radius_m:g} m of one another, so "
                "each reference would be correct for each query; where the names have latitude "
                "and longitude, rename the images with UTM coordinates in metres, else set a "
                "smaller --radius"
            )

    def _near(self, query_xy: NDArray[np.float64]) -> list[set[int]]:
        """The references within the radius of some positions, float64 [n, 2]."""
        # Sorted along the axis in which they lie furthest apart, so that few are looked at.
        axis = int(np.ptp(self.reference_xy, axis=0).argmax())
        order = np.argsort(self.reference_xy[:, axis], kind="stable")
        ordered = self.reference_xy[order]
        reach_m = self.radius_m + 1  # so that rounding leaves out none at the limit
        first = np.searchsorted(ordered[:, axis], query_xy[:, axis] - reach_m, "left")
        last = np.searchsorted(ordered[:, axis], query_xy[:, axis] + reach_m, "right")
        found = []
        for xy, begin, end in zip(query_xy, first, last, strict=True):
            away = ordered[begin:end] - xy
            near = np.hypot(away[:, 0], away[:, 1]) <= self.radius_m
            found.append(set(order[begin:end][near].tolist()))
        return found


def is_utm(folder: Path) -> bool:
    """Whether a folder has both parts, and an image with an @ in its name.

    Raises:
        DatasetError: a folder cannot be read.
    """
    place = _place(folder)
    if place is None:
        return False
    return any(
        "@" in p.name and is_image(p)
        for part in (_DATABASE, _QUERIES)
        for p in _files(place / part)
    )


def _place(folder: Path) -> Path | None:
    """Where both parts lie."""
    for place in (folder, folder / "images" / "test"):
        if (place / _DATABASE).is_dir() and (place / _QUERIES).is_dir():
            return place
    return None


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder and those within, but for hidden folders; links are followed."""

    def refuse(e: OSError) -> None:
        raise e  # which os.walk would pass over

    seen: set[tuple[int, int]] = set()  # a link can lead back to a folder that holds it
    try:
        for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(root, name) for name in names)
    except OSError as e:
        raise DatasetError(
            f"{e.filename}: cannot be read: {e.strerror}; correct its rights"
        ) from e


def _sorted(folder: Path) -> list[Path]:
    paths = sorted(p for p in _files(folder) if is_image(p))
    if not paths:
        raise DatasetError(
            f"{folder}: holds no images ({', '.join(SUFFIXES)}); put them there or correct the "
            "path"
        )
    return paths


def _position(path: Path) -> tuple[float, float]:
    try:
        _, east, north, *_ = path.stem.split("@")
        x_m, y_m = float(east), float(north)
    except ValueError:
        x_m = y_m = math.nan
    if not (abs(x_m) <= _LIMIT_M and abs(y_m) <= _LIMIT_M):  # what is NaN, too
        raise DatasetError(
            f"{path}: its name does not tell its position in metres, @utm_east@utm_north@…@.jpg; "
            "rename or remove the file"
        )
    return x_m, y_m
