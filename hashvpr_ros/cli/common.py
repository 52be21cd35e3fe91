"""What several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros.cli.outputs import JSON_FILE, PATH, write_json_text
from hashvpr_ros.errors import ConfigError, MapError

if TYPE_CHECKING:
    from hashvpr_ros.datasets.bag import Losses
    from hashvpr_ros.datasets.base import Frames
    from hashvpr_ros.map.place_map import PlaceMap


class FiniteRange(click.FloatRange):
    """A number in a range; NaN, which compares with none, is in no range, and infinity neither."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_SHOWN_LINES = 5
LOST_IMAGES = 3  # exit code of a result that lacks images; 2 is that of an error
DEFAULT_RADIUS_M, DEFAULT_ANGLE_DEG = 4.0, 40.0

engine_option = click.option(
    "--engine",
    "engine_path",
    type=PATH,
    default=None,
    help="Model file (.onnx, .engine, .pth). Default: the model of the package.",
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
    help="Use the valid keyframes of a damaged map, and list what is left out.",
)


def tell_left_out(path: Path, left_out: Sequence[str]) -> None:
    """Print what is left out of a damaged map."""
    if left_out:
        click.echo(f"{path}: damaged; left out: {'; '.join(left_out)}", err=True)


allow_partial_option = click.option(
    "--allow-partial",
    is_flag=True,
    help="Also read a bag with fewer messages than it lists: cut off, damaged, or incomplete.",
)


def near_options(where: str, utm: bool = False) -> Callable[[Any], Any]:
    """The options --radius and --angle, by which two images show one place.

    Their values are None where they are not given, for DEFAULT_RADIUS_M and DEFAULT_ANGLE_DEG.

    Args:
        where: the option that they belong to.
        utm: whether --radius is for image sets in layout utm, too.
    """
    default = f"{DEFAULT_RADIUS_M:g}, or 25 in layout utm" if utm else f"{DEFAULT_RADIUS_M:g}"
    radius = click.option(
        "--radius",
        "radius_m",
        type=FiniteRange(0, min_open=True),
        default=None,
        help=f"With {where}{', or in layout utm' if utm else ''}: maximum "
        f"distance in metres of two images of one place. Default: {default}.",
    )
    angle = click.option(
        "--angle",
        "angle_deg",
        type=FiniteRange(0, 180),
        default=None,
        help=f"With {where}: maximum difference in heading, degrees. Default: "
        f"{DEFAULT_ANGLE_DEG:g}.",
    )
    return lambda command: radius(angle(command))


def refuse_options(why: str, *names: str) -> None:
    """Refuse options that were given, where they would have no effect.

    Args:
        why: ends the sentence, as in "belongs to --map-bag; give it".
        names: of options of the command that runs, as in "--radius"; of a flag with two names
            the first, for both.

    Raises:
        ConfigError: one of them was given.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not click.core.ParameterSource.COMMANDLINE or not set(parameter.opts) & {
            *names
        }:
            continue
        is_off = parameter.secondary_opts and not context.params[parameter.name or ""]
        raise ConfigError(f"{(parameter.secondary_opts if is_off else parameter.opts)[0]} {why}")


def say_losses(frames: Frames | Losses) -> None:
    """Print what of a bag or folder was left out, and what else is to be said of it."""
    for note in frames.notes:
        click.echo(note, err=True)
    for line in frames.skipped[:_SHOWN_LINES]:
        click.echo(f"left out: {line}", err=True)
    if len(frames.skipped) > _SHOWN_LINES:
        click.echo(f"left out: {len(frames.skipped) - _SHOWN_LINES} more", err=True)


def said_of(truth: Mapping[str, Any]) -> str:
    """What recall counts, as a sentence.

    Args:
        truth: see `evaluation.evaluate.ground_truth`.
    """
    counted, total = truth["with_correct_reference"], truth["queries"]
    median = truth["median_correct_references"]
    several = "" if median is None else f" (median {median:g})"
    return (
        f"{counted} of {total} queries have a correct reference{several}; {truth['left_out']} are "
        "left out of recall"
    )


def end_with_losses(lost: int, total: int) -> None:
    """End the command with exit code 3 where its result lacks images.

    To be called when all is written and printed.

    Args:
        lost: images that were left out, missing or not answered.
        total: images that there should be.
    """
    if lost:
        click.echo(
            f"{lost} of {total} images are not in this result, so the exit code is {LOST_IMAGES}",
            err=True,
        )
        raise click.exceptions.Exit(LOST_IMAGES)


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
    """Make the backup of a map before it is changed or replaced; say so if none is made.

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
        click.echo(f"no backup is made: {e}", err=True)


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
