"""Places to train on: readers of GSV-Cities, folders, VPR-Bench's layout, and tower."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path

from hashvpr_ros.datasets.folder import check_folder, image_paths
from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.errors import DatasetError, reason_of
from hashvpr_ros.file_io import MB, open_regular

_MOST_TABLE_BYTES = 256 * MB
Places = list[list[Path]]  # of each place, its images


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on, by number."""

    paths: list[Path]
    places: list[list[int]]  # two images or more of each
    pairs: list[tuple[int, int]]  # images that show the same place
    sources: list[range]  # images of each source

    def spread(self, count: int) -> list[int]:
        """About `count` images of each source, evenly spread."""
        return [i for part in self.sources for i in part[:: max(1, round(len(part) / count))]]


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
                    f"{table}: line {line} is malformed ({reason_of(e)}); download the file again"
                ) from e
            if "/" in name or "\0" in name or city in (".", ".."):
                raise DatasetError(f"{table}: line {line} names another folder; correct it")
            key = (table.stem, place)
            places.setdefault(key, []).append(folder / "Images" / city / name)
    return list(places.values())


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with (
            open_regular(table, _MOST_TABLE_BYTES, error=DatasetError) as file,
            io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
        ):
            return list(csv.DictReader(text))
    except (UnicodeDecodeError, csv.Error) as e:
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


@dataclass(frozen=True)
class Tower:
    """Frames of videos on several floors, and pairs of frames that show the same place."""

    paths: list[Path]
    pairs: list[tuple[int, int]]


def tower(folder: Path, held_out: Sequence[str] = ()) -> Tower:
    """frames.csv (path, floor, ...) and revisits.csv (path_a, path_b, ...), without some floors.

    Raises:
        DatasetError: a table is missing or malformed, or a floor to leave out does not exist.
    """
    check_folder(folder)
    used: dict[str, bool] = {}  # of each frame: whether its floor is not held out
    floors = set()
    frames = folder / "frames.csv"
    for line, row in enumerate(_rows(frames), 2):
        path, floor = (_cell(frames, line, row, name) for name in ("path", "floor"))
        floors.add(floor)
        if path in used:
            raise DatasetError(f"{frames}: line {line} names {path} again; remove it")
        used[path] = floor not in held_out
    unknown = sorted(set(held_out) - floors)
    if unknown:
        raise DatasetError(
            f"{frames}: has no floor {', '.join(unknown)}; held_out must name some of "
            f"{', '.join(sorted(floors))}"
        )
    kept = {path: i for i, path in enumerate(p for p, is_used in used.items() if is_used)}
    pairs = []
    revisits = folder / "revisits.csv"
    for line, row in enumerate(_rows(revisits), 2):
        both = [_cell(revisits, line, row, name) for name in ("path_a", "path_b")]
        foreign = [path for path in both if path not in used]
        if foreign:
            raise DatasetError(
                f"{revisits}: line {line} names {foreign[0]}, which is not in frames.csv"
            )
        first, second = (kept.get(path, -1) for path in both)
        if first != second and min(first, second) >= 0:
            pairs.append((first, second))
    return Tower([folder / path for path in kept], pairs)


def _cell(table: Path, line: int, row: dict[str, str], name: str) -> str:
    """A value of a row; a path stays inside the folder."""
    value = row.get(name)
    if not value:
        raise DatasetError(f"{table}: line {line} has no {name}; download the file again")
    outside = value.startswith("/") or ".." in Path(value).parts or "\0" in value
    if name != "floor" and outside:
        raise DatasetError(f"{table}: line {line} names another folder; correct it")
    return value


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of two or more of `count` images that pairs join, directly or through others."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(find(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


LAYOUTS: dict[str, Callable[[Path], Places]] = {
    "gsv_cities": gsv_cities,
    "folders": folders,
    "vpr_bench": vpr_bench,
}


def read_places(
    folder: Path, layout: str, first: int = 0, last: int = 0, least: int = 2
) -> Places:
    """The places of a folder, first to before last, as Python slices count; 0 is the end.

    Every layout but tower.

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


def read_source(
    folder: Path, layout: str, first: int = 0, last: int = 0, held_out: Sequence[str] = ()
) -> TrainingImages:
    """The images of one source: places first to before last, as Python slices count.

    Args:
        held_out: areas that are not used; only tower has them.

    Raises:
        DatasetError: see `read_places` and `tower`.
    """
    if layout == "tower":
        if first or last:
            raise DatasetError(
                f"{folder}: places of tower have no numbers; use held_out, not a range"
            )
        found = tower(folder, held_out)
        places = _joined(len(found.paths), found.pairs)
        if len(places) < 2:
            raise DatasetError(
                f"{folder}: revisits.csv joins {len(places)} places; correct data.sources"
            )
        return TrainingImages(found.paths, places, found.pairs, [range(len(found.paths))])
    if held_out:
        raise DatasetError(f"{folder}: layout {layout} has no areas; remove held_out")
    # In rounds over the places, so that a part of the list has as many of each view.
    by_place = read_places(folder, layout, first, last)
    rounds = [
        [(place, path) for place, path in enumerate(part) if path is not None]
        for part in zip_longest(*by_place)
    ]
    images = [image for part in rounds for image in part]
    numbered: list[list[int]] = [[] for _ in by_place]
    for number, (place, _) in enumerate(images):
        numbered[place].append(number)
    pairs = [pair for place in numbered for pair in combinations(place, 2)]
    return TrainingImages([path for _, path in images], numbered, pairs, [range(len(images))])


def join_sources(parts: Sequence[TrainingImages]) -> TrainingImages:
    """Several sources as one."""
    paths: list[Path] = []
    places: list[list[int]] = []
    pairs: list[tuple[int, int]] = []
    sources: list[range] = []
    for part in parts:
        start = len(paths)
        paths += part.paths
        places += [[start + i for i in place] for place in part.places]
        pairs += [(start + a, start + b) for a, b in part.pairs]
        sources += [range(start + r.start, start + r.stop) for r in part.sources]
    return TrainingImages(paths, places, pairs, sources)
