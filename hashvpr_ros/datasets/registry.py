"""The layouts in which two traverses and their ground truth may lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.folder import check_folder
from hashvpr_ros.datasets.nordland import FrameTraverses
from hashvpr_ros.datasets.utm import UtmTraverses, is_utm
from hashvpr_ros.datasets.vpr_bench import GROUND_TRUTH, VprBench
from hashvpr_ros.errors import ConfigError, DatasetError

AUTO = "auto"
LAYOUTS: dict[str, Callable[[Path], Traverses]] = {
    "vpr-bench": VprBench,
    "utm": UtmTraverses,
    "nordland": FrameTraverses,
}
# How each is known and what it needs; the first that fits is taken. That frames correspond by
# number cannot be seen: a VPR-Bench folder without its ground truth looks the same.
_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "vpr-bench": (
        lambda folder: (folder / GROUND_TRUTH).exists(),
        f"query/, ref/ and {GROUND_TRUTH}",
    ),
    "utm": (is_utm, "database/ and queries/ with images named @utm_east@utm_north@…@.jpg"),
}


def open_traverses(folder: Path, layout: str = AUTO) -> Traverses:
    """Queries, references and ground truth of a folder.

    Args:
        layout: one of LAYOUTS, or "auto" to tell it by what the folder holds.

    Raises:
        DatasetError: the folder is missing, fits no layout, or is malformed.
        ConfigError: there is no such layout.
    """
    if layout != AUTO and layout not in LAYOUTS:
        raise ConfigError(
            f"there is no layout {layout!r} of data sets; give {', '.join(LAYOUTS)} or {AUTO}"
        )
    try:
        return LAYOUTS[recognize(folder) if layout == AUTO else layout](folder)
    except OSError as e:  # of a folder without the right to look into it
        raise DatasetError(f"{folder}: cannot be read: {e.strerror}; correct it") from e


def recognize(folder: Path) -> str:
    """The layout of a folder, as LAYOUTS names it.

    Raises:
        DatasetError: it is missing, or has none of them.
    """
    check_folder(folder)
    for layout, (fits, _) in _SIGNS.items():
        if fits(folder):
            return layout
    needs = ", ".join(f"{layout} needs {what}" for layout, (_, what) in _SIGNS.items())
    if (folder / "query").is_dir() and (folder / "ref").is_dir():
        raise DatasetError(
            f"{folder}: {GROUND_TRUTH} is missing, which says what references are correct; "
            "complete the folder, or say --layout nordland where frames correspond by number"
        )
    raise DatasetError(
        f"{folder}: has no layout that is known; complete the folder: {needs}; or say --layout "
        "nordland for two folders, query/ and ref/, whose frames correspond by number"
    )
