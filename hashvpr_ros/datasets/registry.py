"""The layouts of image sets with ground truth on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.datasets.drive import IMAGES, LOOPS, PLACES, DriveFolder, is_drive
from hashvpr_ros.datasets.folder import check_folder
from hashvpr_ros.datasets.nordland import FrameTraverses
from hashvpr_ros.datasets.utm import UtmTraverses, is_utm
from hashvpr_ros.datasets.vpr_bench import GROUND_TRUTH, VprBench
from hashvpr_ros.errors import ConfigError, DatasetError

AUTO = "auto"
Dataset = Traverses | DriveFolder
LAYOUTS: dict[str, Callable[[Path], Dataset]] = {
    "vpr-bench": VprBench,
    "utm": UtmTraverses,
    "nordland": FrameTraverses,
    "drive": DriveFolder,
}
# How each is known and what it needs; the first that fits is taken. That frames correspond by
# number cannot be seen: a VPR-Bench folder without its ground truth looks the same.
_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "vpr-bench": (
        lambda folder: (folder / GROUND_TRUTH).exists(),
        f"query/, ref/ and {GROUND_TRUTH}",
    ),
    "utm": (is_utm, "database/ and queries/ with images named @utm_east@utm_north@…@.jpg"),
    "drive": (is_drive, f"{IMAGES}/ and {LOOPS} or {PLACES}"),
}


def open_dataset(folder: Path, layout: str = AUTO, radius_m: float | None = None) -> Dataset:
    """Two traverses or one drive, with ground truth.

    Args:
        layout: one of LAYOUTS, or "auto" to choose it by what the folder holds.
        radius_m: of layout utm alone, see `UtmTraverses`; None: its default.

    Raises:
        DatasetError: the folder is missing, fits no layout, or is malformed.
        ConfigError: there is no such layout, or it has no radius.
    """
    if layout != AUTO and layout not in LAYOUTS:
        raise ConfigError(
            f"there is no layout {layout!r} of data sets; give {', '.join(LAYOUTS)} or {AUTO}"
        )
    try:
        layout = recognize(folder) if layout == AUTO else layout
        if radius_m is None:
            return LAYOUTS[layout](folder)
        if LAYOUTS[layout] is not UtmTraverses:
            raise ConfigError(
                f"{folder}: --radius is for layout utm and for bags, not for {layout}; leave it "
                "out"
            )
        return UtmTraverses(folder, radius_m)
    except OSError as e:  # of a folder without the right to look into it
        raise DatasetError(f"{folder}: cannot be read: {e.strerror}; correct it") from e


def open_traverses(folder: Path, layout: str = AUTO, radius_m: float | None = None) -> Traverses:
    """Queries, references and ground truth of a folder; see `open_dataset`.

    Raises:
        DatasetError: the folder holds one drive, too.
    """
    dataset = open_dataset(folder, layout, radius_m)
    if isinstance(dataset, DriveFolder):
        raise DatasetError(
            f"{folder}: is one drive, and two traverses are needed; give a folder with queries "
            "and references"
        )
    return dataset


def layouts_of(folder: Path) -> list[str]:
    """All layouts that a folder shows, in the order in which they are tried."""
    return [layout for layout, (fits, _) in _SIGNS.items() if fits(folder)]


def recognize(folder: Path) -> str:
    """The layout of a folder, as LAYOUTS names it: the first that fits.

    Raises:
        DatasetError: it is missing, or has none of them.
    """
    check_folder(folder)
    if layouts := layouts_of(folder):
        return layouts[0]
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
