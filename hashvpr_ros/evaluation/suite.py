"""One table over all image sets of a folder, with baselines and further models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.drive import DriveFolder
from hashvpr_ros.datasets.folder import check_folder
from hashvpr_ros.datasets.part import Part
from hashvpr_ros.datasets.registry import layouts_of, open_dataset
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.errors import ConfigError, DatasetError, HashVprError
from hashvpr_ros.evaluation.baselines import BASELINES, evaluate_baseline
from hashvpr_ros.evaluation.evaluate import Task, evaluate
from hashvpr_ros.evaluation.metrics import recall_at

# Of a row, in the order of the table; what further columns hold is R@1 in percent.
COLUMNS = {  # heading, and digits after the point
    "recall_at_1": ("R@1", 1),
    "recall_at_5": ("R@5", 1),
    "recall_at_1_binary": ("R@1 binary", 1),
    "hash_ratio": ("hash ratio", 2),
    "precision_percent": ("precision", 1),
    "accepted": ("accepted", 0),
    "closed_percent": ("closed", 1),
    "calibration_error": ("calib. error", 3),
    "position_error_frames": ("pos. error", 1),
}
SUITE_NOTE = (
    "Recall, precision and closed in percent; closed: share of the revisits with a correct "
    "closure; position error: median, in frames. A mean is over the sets that have a value."
)
_DEPTH = 2  # folders below that of the suite

Row = dict[str, float | None]


@dataclass(frozen=True)
class ImageSet:
    """A folder in one of its layouts."""

    name: str  # path below the suite; with the layout where the folder has several
    folder: Path
    layout: str


@dataclass(frozen=True)
class SetResult:
    """What was measured on a set, or why nothing was."""

    name: str
    layout: str
    summary: dict[str, Any]  # of the model, see `Evaluation.summary`
    compared: dict[str, dict[str, Any]]  # the same of further models, by name
    baselines: dict[str, dict[str, float]]  # recall in percent, by the key of BASELINES and K
    error: str = ""  # not empty: there is nothing else
    skipped: Sequence[str] = ()  # why images were left out, one line each
    notes: Sequence[str] = ()  # what else is to be said of the set

    def row(self) -> Row:
        """The values of COLUMNS, then R@1 of each baseline and further model, by name."""
        if self.error:
            return {}
        recall, closures = self.summary["recall"], self.summary["closures"]
        binary, floats = recall["hash"]["1"], recall["float"]["1"]
        values = {
            "recall_at_1": recall["rerank"]["1"],
            "recall_at_5": recall["rerank"]["5"],
            "recall_at_1_binary": binary,
            "hash_ratio": binary / floats if floats else math.nan,
            "precision_percent": closures["precision_percent"],
            "accepted": float(closures["accepted"]),
            "closed_percent": closures["closed_percent"],
            "calibration_error": self.summary["calibration"]["expected_calibration_error"],
            "position_error_frames": closures["position_error_frames"]["median"],
            **{key: found["1"] for key, found in self.baselines.items()},
            **{name: found["recall"]["rerank"]["1"] for name, found in self.compared.items()},
        }
        return {
            key: None if value is None or math.isnan(value) else value
            for key, value in values.items()
        }

    def as_json(self) -> dict[str, Any]:
        """For the JSON file."""
        if self.error:
            return {"layout": self.layout, "error": self.error}
        return {
            "layout": self.layout,
            **self.summary,
            "row": self.row(),
            "baselines": self.baselines,
            "compared": self.compared,
        }


def find_sets(folder: Path) -> tuple[list[ImageSet], list[str]]:
    """The image sets in a folder, at most two folders deep, in the order of their names.

    A folder with several layouts is a set in each of them. Folders in a set are not searched.

    Returns:
        the sets, and names of the folders in which there is none.

    Raises:
        DatasetError: there is no such folder, or no set in it.
    """
    check_folder(folder)
    sets, skipped = _search(folder, folder, 0)
    if not sets:
        raise DatasetError(
            f"{folder}: holds no image set, at most {_DEPTH} folders deep; give the folder in "
            "which the sets lie"
        )
    return sets, skipped


def _search(root: Path, folder: Path, depth: int) -> tuple[list[ImageSet], list[str]]:
    name = folder.name if folder == root else str(folder.relative_to(root))
    try:
        layouts = layouts_of(folder)
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[:1] != ".")
    except (OSError, DatasetError):  # no right to look into it
        return [], [name]
    if layouts:
        several = len(layouts) > 1
        return [
            ImageSet(f"{name} ({layout})" if several else name, folder, layout)
            for layout in layouts
        ], []
    sets: list[ImageSet] = []
    skipped: list[str] = []
    for child in inside if depth < _DEPTH else ():
        found, without = _search(root, child, depth + 1)
        sets += found
        skipped += without
    return (sets, skipped) if sets or not depth else ([], [name])


def open_set(
    image_set: ImageSet, queries: tuple[int, int] | None = None
) -> Traverses | DriveFolder:
    """A set, or a range of its queries; see `datasets.part.Part`.

    Raises:
        DatasetError: it is malformed. ConfigError: the range does not fit, or is of a drive.
    """
    dataset = open_dataset(image_set.folder, image_set.layout)
    if queries is None:
        return dataset
    if isinstance(dataset, DriveFolder):
        raise ConfigError(
            f"{image_set.name}: is a drive, which is judged as a whole; give no range for it"
        )
    try:
        return Part(dataset, *queries)
    except ConfigError as e:
        raise ConfigError(f"{image_set.name}: {e}") from e


def run_set(
    image_set: ImageSet,
    engine: DescriptorEngine,
    *,
    queries: tuple[int, int] | None = None,
    compare: Mapping[str, DescriptorEngine] | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    tolerance: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> SetResult:
    """Evaluate one set. Where that fails, the result holds the error, so that others follow.

    Args:
        queries: a range of queries, see `datasets.part.Part`; None: all.
        compare: further models by the name that they have in the table.
        baselines: keys of BASELINES.
        progress: called after each image that is described, by a model or a baseline.
    """
    try:
        dataset = open_set(image_set, queries)
        done = evaluate(dataset, engine, tolerance=tolerance, progress=progress)
        compared = {
            name: evaluate(dataset, other, tolerance=tolerance, progress=progress).summary()
            for name, other in (compare or {}).items()
        }
        return SetResult(
            image_set.name,
            image_set.layout,
            done.summary(),
            compared,
            {key: _baseline(key, done.task, progress) for key in baselines},
            skipped=done.skipped,
            notes=dataset.notes,
        )
    except HashVprError as e:
        return SetResult(image_set.name, image_set.layout, {}, {}, {}, str(e))


def _baseline(key: str, task: Task, tick: Callable[[], None]) -> dict[str, float]:
    """Recall of a baseline. On a drive it learns from all images, and searches earlier ones."""
    depth = len(task.references)
    ranked = evaluate_baseline(BASELINES[key](), task.references, task.queries, depth, tick).ranked
    if task.allowed is not None:
        ranked = [
            [j for j in found if j < count]
            for found, count in zip(ranked, task.allowed, strict=True)
        ]
    return recall_at(ranked, task.positives)


def means(rows: Sequence[Row]) -> Row:
    """Mean of each column over the rows that have a value there; each set counts the same."""
    names = dict.fromkeys(name for row in rows for name in row)
    result: Row = {}
    for name in names:
        values = [v for row in rows if (v := row.get(name)) is not None]
        result[name] = sum(values) / len(values) if values else None
    return result


def table_of(
    results: Sequence[SetResult], baselines: Sequence[str], compared: Sequence[str]
) -> list[tuple[str, ...]]:
    """The table for people: a head, a row for each set, and the means.

    Args:
        baselines, compared: keys of BASELINES and names of further models, the last columns.
    """
    columns = {
        **COLUMNS,
        **{key: (f"{key.upper()} R@1", 1) for key in baselines},
        **{name: (f"{name} R@1", 1) for name in compared},
    }
    head = ("set", *(heading for heading, _ in columns.values()))
    rows = [
        (r.name, "failed", *[""] * (len(columns) - 1))
        if r.error
        else (r.name, *_cells(r.row(), columns))
        for r in results
    ]
    mean = means([r.row() for r in results])
    return [head, *rows, ("mean", *_cells(mean, columns))]


def _cells(row: Row, columns: Mapping[str, tuple[str, int]]) -> list[str]:
    return [
        "none" if (value := row.get(key)) is None else f"{value:.{digits}f}"
        for key, (_, digits) in columns.items()
    ]
