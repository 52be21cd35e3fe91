"""What several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros.cli.outputs import JSON_FILE, write_json_text
from hashvpr_ros.errors import ConfigError, MapError

if TYPE_CHECKING:
    from hashvpr_ros.map.place_map import PlaceMap


class FiniteRange(click.FloatRange):
    """A number in a range; NaN, which compares with none, is in no range, and infinity neither."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


engine_option = click.option(
    "--engine",
    "engine_path",
    type=click.Path(path_type=Path),
    default=None,
    help="Model file (.onnx, .engine, .pth). Default: the lite model of the package.",
)
json_option = click.option(
    "--json",
    "json_path",
    type=JSON_FILE,
    default=None,
    help="Also write the numbers to this file.",
)


salvage_option = click.option(
    "--salvage",
    is_flag=True,
    help="Go on with what is sound of a damaged map, and say what is left out.",
)


def tell_left_out(path: Path, left_out: Sequence[str]) -> None:
    """Say what of a damaged map is not used."""
    for line in left_out:
        click.echo(f"{path}: damaged; left out: {line}", err=True)


def near_options(where: str) -> Callable[[Any], Any]:
    """The options --radius and --angle, by which two images show one place.

    Args:
        where: the option that they belong to.
    """
    radius = click.option(
        "--radius",
        "radius_m",
        type=FiniteRange(0, min_open=True),
        default=4.0,
        show_default=True,
        help=f"With {where}: metres within which two images show one place.",
    )
    angle = click.option(
        "--angle",
        "angle_deg",
        type=FiniteRange(0, 180),
        default=40.0,
        show_default=True,
        help=f"With {where}: degrees by which they may look apart.",
    )
    return lambda command: radius(angle(command))


def only_image_topic(bag: Path) -> str:
    """The image topic of a bag that has one.

    Raises:
        ConfigError: it has several, or none. DatasetError: the bag cannot be read.
    """
    from hashvpr_ros.datasets.bag import image_topics

    topics = image_topics(bag)
    if len(topics) != 1:
        raise ConfigError(
            f"{bag}: has {len(topics)} image topics ({', '.join(topics)}); choose by --image-topic"
        )
    return topics[0]


def open_engine(path: Path | None) -> Any:
    """Load the engine of `--engine`, warmed up."""
    from hashvpr_ros.engine.factory import create_engine

    engine = create_engine(path or "")
    engine.warm_up()
    return engine


def write_json(path: Path | None, value: object) -> None:
    """Write JSON atomically, NaN and infinity as null; None writes nothing.

    Raises:
        ConfigError: the file cannot be written, or is of another kind.
    """
    if path is None:
        return
    write_json_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_good_copy(of: Path | PlaceMap) -> None:
    """Keep a good copy of a map before it is changed or replaced; say it where none is made.

    Raises:
        MapError: it is no map of its own, but what another map keeps beside it.
    """
    from hashvpr_ros.map import backup, files

    if isinstance(of, Path):
        files.refuse_kept_name(of)
    try:
        if isinstance(of, Path):
            backup.keep_good_copy(of)
        else:
            of.keep_good_copy()
    except MapError as e:
        click.echo(f"no good copy is made: {e}", err=True)


def progress_bar(total: int | None, what: str, unit: str = "image") -> Any:
    """A progress bar on a terminal, nothing elsewhere; only a count where no total is known."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, disable=None, leave=False, delay=1.0)


def ticker(bar: Any) -> Callable[[], None]:
    """A callback that moves a progress bar by one."""

    def tick() -> None:
        bar.update(1)

    return tick


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns padded to line up; the first left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def machine() -> str:
    """The processor and cores, to stand beside numbers."""
    import platform

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
