"""The layout of VPR-Bench (Zaffar et al., IJCV 2021): query/, ref/, ground_truth_new.npy."""

from __future__ import annotations

import io
import math
import numbers
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from hashvpr_ros.datasets.folder import check_folder, image_paths
from hashvpr_ros.errors import DatasetError

GROUND_TRUTH = "ground_truth_new.npy"
# All that an array of numbers and lists needs to be restored; a pickle can name anything else, and
# naming it is how a hostile file runs code.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


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
        path: .npy with an object array [N, 2]: query index, indices of its correct references.

    Raises:
        DatasetError: missing, malformed, or with indices that do not exist.
    """
    if not path.is_file():
        raise DatasetError(
            f"{path}: is missing; it says which references are correct, an array of (query, "
            "correct references)"
        )
    try:
        rows = [
            (_index(row[0]), [_index(i) for i in np.atleast_1d(row[1])])
            for row in _load_objects(path)
        ]
    except Exception as e:  # a damaged pickle raises whatever its bytes happen to call for
        raise DatasetError(
            f"{path}: not an array of (query, correct references): {e}; write it anew"
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


def _index(value: Any) -> int:
    """A whole number, whatever its type; 1.5 or NaN is none."""
    is_number = isinstance(value, numbers.Real)
    if not is_number or value != math.floor(value):
        raise ValueError(f"{value!r} is not an index")
    return math.floor(value)


def _load_objects(path: Path) -> Any:
    data = io.BytesIO(path.read_bytes())
    version = np.lib.format.read_magic(data)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = read(data)
    if not dtype.hasobject:
        data.seek(0)
        return np.load(data, allow_pickle=False)
    array = _Numbers(data).load()
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError("its header and content disagree")
    return array
