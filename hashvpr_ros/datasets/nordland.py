"""Two traverses of one route whose frames correspond, as those of Nordland do."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from hashvpr_ros.datasets.folder import check_folder, image_paths, not_read
from hashvpr_ros.errors import ConfigError, DatasetError

_QUERY = ("query", "queries")
_REFERENCE = ("ref", "reference", "database")


class FrameTraverses:
    """Queries and references with the same frame number show the same place.

    The frame number is the last number in a file's name, without its suffix; where a name has none
    or two images of a folder have the same, it is the place in the natural order of names. Numbers
    are those of the video: a set that has every tenth frame as a query must have kept them.

    Nordland's published protocols differ: 1 frame either way in VPR-Bench (2,760 queries), BoQ and
    SALAD; 2 in SelaVPR (3,450 queries); 10 in Patch-NetVLAD's split of 27,592, which the
    VPR-datasets-downloader writes. In the last, frames are counted after the removal of tunnels
    and stops, so that its images must be numbered anew.

    Args:
        folder: with query/ or queries/, and with ref/, reference/ or database/, which hold images.
        frames: references up to so many frames from the query are correct.

    Attributes:
        by_number: whether frames were matched by the numbers in names, or by order.
        query_frames, reference_frames: of each image, its frame number.

    Raises:
        DatasetError: a folder is missing, double or without images; frames cannot be matched.
        ConfigError: `frames` is negative.
    """

    def __init__(self, folder: Path, frames: int = 1) -> None:
        if frames < 0:
            raise ConfigError(f"frames is {frames}; give 0 or more, 1 as a rule")
        check_folder(folder)
        query, reference = _part(folder, _QUERY), _part(folder, _REFERENCE)
        self.folder, self.frames = folder, frames
        self.queries, self.references = image_paths(query), image_paths(reference)
        self.notes = not_read(query) + not_read(reference)
        self.query_frames: Sequence[int]
        self.reference_frames: Sequence[int]
        try:
            self.query_frames = _frame_numbers(self.queries)
            self.reference_frames = _frame_numbers(self.references)
            self.by_number = True
        except ValueError as e:
            if len(self.queries) != len(self.references):
                raise DatasetError(
                    f"{folder}: {query.name}/ has {len(self.queries)} images and "
                    f"{reference.name}/ has {len(self.references)}, which cannot be matched by "
                    f"order, nor by number, since {e}; number all, or remove those without a "
                    "partner"
                ) from e
            self.query_frames = self.reference_frames = range(len(self.queries))
            self.by_number = False
        if not any(self.positives()):
            raise DatasetError(
                f"{folder}: no number in {query.name}/ is within {frames} of one in "
                f"{reference.name}/, as {self.queries[0].name} and {self.references[0].name} "
                "show; name images of the same place by the same number"
            )

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """The references of each query whose frame numbers are near its own.

        Args:
            tolerance: so many frames more than `frames`.
        """
        reach = self.frames + tolerance
        order = sorted(range(len(self.references)), key=self.reference_frames.__getitem__)
        numbers = [self.reference_frames[i] for i in order]
        return [
            set(order[bisect_left(numbers, n - reach) : bisect_right(numbers, n + reach)])
            for n in self.query_frames
        ]


def _part(folder: Path, names: tuple[str, ...]) -> Path:
    found = [folder / name for name in names if (folder / name).is_dir()]
    if not found:
        raise DatasetError(
            f"{folder}: has no folder {'/ or '.join(names)}/; give a folder with the images of "
            "two traverses in query/ and ref/"
        )
    if len(found) > 1:
        raise DatasetError(
            f"{folder}: has {'/ and '.join(p.name for p in found)}/, which mean the same; remove "
            "all but one"
        )
    return found[0]


def _frame_numbers(paths: list[Path]) -> list[int]:
    """Raises ValueError, which says why, unless each image has a number of its own."""
    found: dict[int, Path] = {}
    for path in paths:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ValueError(f"{path.parent.name}/{path.name} has none")
        other = found.setdefault(int(numbers[-1]), path)
        if other is not path:
            raise ValueError(
                f"{other.name} and {path.name} in {path.parent.name}/ have the same one"
            )
    return list(found)
