"""Places to train on: readers of GSV-Cities, of folders, and of VPR-Bench's layout."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from hashvpr_ros.datasets.folder import check_folder, image_paths
from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.errors import DatasetError, reason_of

Places = list[list[Path]]  # of each place, its images


def gsv_cities(folder: Path) -> Places:
    """GSV-Cities (Ali-bey et al., Neurocomputing 2022): Dataframes/<city>.csv, Images/<city>/.

    A file's name is city_place_year_month_northdeg_lat_lon_panoid.jpg, its columns being
    place_id, year, month, northdeg, city_id, lat, lon, panoid.

    Raises:
        DatasetError: the layout is another, or a row is malformed.
    """
    check_folder(folder)
    tables = sorted((folder / "Dataframes").glob("*.csv"))
    if not tables:
        raise DatasetError(
            f"{folder}: has no Dataframes/*.csv; give the folder of GSV-Cities that holds "
            "Dataframes/ and Images/"
        )
    places: dict[tuple[str, str], list[Path]] = {}
    for table in tables:
        for line, row in enumerate(_rows(table), 2):
            try:
                city, place = row["city_id"], f"{int(row['place_id']) % 10**5:07d}"
                name = (
                    f"{city}_{place}_{int(row['year'])}_{int(row['month']):02d}_"
                    f"{int(row['northdeg']):03d}_{float(row['lat'])}_{float(row['lon'])}_"
                    f"{row['panoid']}.jpg"
                )
            except (KeyError, ValueError, TypeError) as e:
                raise DatasetError(
                    f"{table}: line {line} is malformed ({e}); download the file again"
                ) from e
            if "/" in name or "/" in city:
                raise DatasetError(f"{table}: line {line} names another folder; correct it")
            key = (table.stem, place)
            places.setdefault(key, []).append(folder / "Images" / city / name)
    return list(places.values())


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DatasetError(
            f"{table}: cannot be read ({reason_of(e)}); download the file again"
        ) from e


def folders(folder: Path) -> Places:
    """A folder for each place, images in it."""
    check_folder(folder)
    parts = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not parts:
        raise DatasetError(f"{folder}: has no folders; give one with a folder for each place")
    return [image_paths(p) for p in parts]


def vpr_bench(folder: Path) -> Places:
    """Each query with its correct references that are no other query's."""
    dataset = VprBench(folder)
    places, taken = [], set()
    for query, correct in zip(dataset.queries, dataset.correct, strict=True):
        own = [i for i in correct if i not in taken]
        taken.update(own)
        if own:
            places.append([query, *(dataset.references[i] for i in own)])
    return places


LAYOUTS: dict[str, Callable[[Path], Places]] = {
    "gsv_cities": gsv_cities,
    "folders": folders,
    "vpr_bench": vpr_bench,
}


def read_places(
    folder: Path, layout: str, first: int = 0, last: int = 0, least: int = 2
) -> Places:
    """The places of a folder, first to before last, as Python slices count; 0 is the end.

    Args:
        least: images that a place must have; those with fewer are left out.

    Raises:
        DatasetError: the folder is missing, of another layout, or has fewer than two places.
    """
    places = LAYOUTS[layout](folder)
    chosen = [p for p in places[first : last or None] if len(p) >= least]
    if len(chosen) < 2:
        raise DatasetError(
            f"{folder}: has {len(chosen)} places with at least {least} images from {first} to "
            f"{last or 'the end'}; correct data.folder, data.layout, or the range"
        )
    return chosen
