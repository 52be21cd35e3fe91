"""The layout of VPR-Bench (Zaffar et al., IJCV 2021): query/, ref/, ground_truth_new.npy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashvpr_ros.datasets.folder import check_folder, image_paths, not_read
from hashvpr_ros.datasets.npy import read_npy
from hashvpr_ros.datasets.number_pickle import Array, read_array
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import MB

GROUND_TRUTH = "ground_truth_new.npy"
_MOST_BYTES = 200 * MB
_MOST_INDICES = 20_000_000  # a file can name one list for each query


class VprBench:
    """Paths of both traverses and, for each query, the indices of its correct references.

    Args:
        folder: with query/, ref/ and ground_truth_new.npy.

    Raises:
        DatasetError: something is missing, malformed or out of range.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_folder(folder)
        for part in ("query", "ref"):
            if not (folder / part).is_dir():
                raise DatasetError(
                    f"{folder}: has no folder {part}/; give a folder in the layout of VPR-Bench: "
                    f"query/, ref/ and {GROUND_TRUTH}"
                )
        self.queries = image_paths(folder / "query")
        self.references = image_paths(folder / "ref")
        self.notes = not_read(folder / "query") + not_read(folder / "ref")
        self.correct = read_ground_truth(
            folder / GROUND_TRUTH, len(self.queries), len(self.references)
        )

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """Correct reference indices of each query, and those within `tolerance` of one."""
        last = len(self.references) - 1
        return [
            {j for i in right for j in range(max(0, i - tolerance), min(last, i + tolerance) + 1)}
            for right in self.correct
        ]


def read_ground_truth(path: Path, queries: int, references: int) -> list[list[int]]:
    """The correct references of each query.

    Args:
        path: .npy with an array [N, 2]: query index, and the indices of its correct references as
            a list or an array. Such objects are read without the module pickle, so that a hostile
            file runs nothing.

    Raises:
        DatasetError: missing, malformed, too large, or with indices that do not exist.
    """
    if not path.exists():
        raise DatasetError(
            f"{path}: is missing; it says which references are correct, an array of (query, "
            "correct references)"
        )
    try:
        rows = _rows(path)
    except ValueError as e:
        raise DatasetError(
            f"{path}: not an array of (query, correct references): {e}; write it again as an "
            "array [N, 2]"
        ) from e
    found: dict[int, list[int]] = {}
    for query, right in rows:
        if not 0 <= query < queries:
            raise DatasetError(
                f"{path}: has an entry for query {query}, but query/ has {queries} images; "
                "complete the folder or write the file anew"
            )
        if query in found:
            raise DatasetError(f"{path}: has two entries for query {query}; join them")
        wrong = [i for i in right if not 0 <= i < references]
        if wrong:
            raise DatasetError(
                f"{path}: query {query} names reference {wrong[0]}, but ref/ has {references} "
                "images; complete the folder or write the file anew"
            )
        found[query] = right
    missing = sorted(set(range(queries)) - set(found))
    if missing:
        raise DatasetError(
            f"{path}: query {missing[0]} has no entry; every query needs one, be it empty"
        )
    return [found[i] for i in range(queries)]


def _rows(path: Path) -> list[tuple[int, list[int]]]:
    """Raises ValueError, which says what is wrong with the array."""
    npy = read_npy(path, _MOST_BYTES)
    if len(npy.shape) != 2 or npy.shape[1] != 2:
        raise ValueError(f"its shape is {list(npy.shape)}, not [N, 2]")
    if npy.holds_objects:
        array = read_array(npy.content)
        if array.shape != npy.shape or len(array.items) != 2 * npy.shape[0]:
            raise ValueError("its header and content disagree")
        values = array.items
    elif npy.dtype.kind in "iuf":
        values = npy.array().ravel().tolist()
    else:
        raise ValueError(f"it holds {npy.dtype}, which are no indices")
    rows = []
    left = _MOST_INDICES
    for query, right in zip(values[::2], values[1::2], strict=True):
        several = _several(right)
        left -= len(several)
        if left < 0:
            raise ValueError(f"it names more than {_MOST_INDICES:,} references")
        rows.append((_one(query), [_index(value) for value in several]))
    return rows


def _several(value: Any) -> Sequence[Any]:
    """The values of a list or an array of one dimension, or a single one."""
    if not isinstance(value, Array):
        return value if isinstance(value, (list, tuple)) else [value]
    if value.shape is None or len(value.shape) > 1 or len(value.items) != math.prod(value.shape):
        raise ValueError("it holds an array of several dimensions, or a damaged one")
    return value.items.tolist() if isinstance(value.items, np.ndarray) else value.items


def _one(value: Any) -> int:
    """A query, which may be an array of no dimension."""
    if isinstance(value, Array) and value.shape == ():
        (value,) = _several(value)
    return _index(value)


def _index(value: Any) -> int:
    """A whole number, as an int or a float; 1.5, NaN or True is none."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    shown = repr(value) if isinstance(value, (bool, int, float)) else type(value).__name__
    raise ValueError(f"{shown} is no index")
