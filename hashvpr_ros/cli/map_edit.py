"""`hashvpr map`: make other maps, or files of other formats, of maps that exist."""

from __future__ import annotations

import dataclasses
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import (
    FiniteRange,
    engine_option,
    json_option,
    keep_good_copy,
    open_engine,
    progress_bar,
    salvage_option,
    tell_left_out,
    ticker,
    write_json,
)
from hashvpr_ros.cli.outputs import EXPORT_FILE, PATH
from hashvpr_ros.errors import ConfigError

_map_argument = click.argument("path", metavar="MAP", type=PATH)
_out_argument = click.argument("out", type=PATH)
_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")


def _look(path: Path, salvage: bool) -> tuple[int, bool]:
    """How many keyframes a map holds, and whether it is calibrated; says what is not used."""
    from hashvpr_ros.map.edit import MapReader

    with MapReader(path, salvage=salvage) as source:
        tell_left_out(path, source.left_out)
        return len(source), source.calibrated


def _tell_calibration(calibrated: bool) -> None:
    if calibrated:
        click.echo("  not calibrated any more: `hashvpr calibrate` does it for the new map")


@click.command()
@click.argument("maps", metavar="MAP MAP...", nargs=-1, type=PATH)
@_out_argument
@_overwrite_option
@salvage_option
@json_option
def merge(
    maps: tuple[Path, ...], out: Path, overwrite: bool, salvage: bool, json_path: Path | None
) -> None:
    """Merge maps of the same model into one map OUT.

    The first MAP keeps its ids. Another MAP keeps its ids if they are all free; else they are
    moved by one offset, which is printed and written by --json. Sessions keep their names.
    Keyframes that copies or parts of one map have in common are taken once.

    \b
    hashvpr map merge monday.vprmap tuesday.vprmap week.vprmap
    """
    from hashvpr_ros.map.merge import merge_maps

    if len(maps) < 2:
        raise ConfigError("give two maps or more, and then the path of the result")
    calibrated = any(_look(path, salvage)[1] for path in maps)
    if overwrite:
        keep_good_copy(out)
    merged = merge_maps(maps, out, overwrite=overwrite, salvage=salvage)
    total = sum(m.keyframes - m.taken_once for m in merged)
    for path, m in zip(maps, merged, strict=True):
        once = f", {m.taken_once} of them in an earlier map already" if m.taken_once else ""
        click.echo(f"{path}: {m.keyframes} keyframes{once}")
        for ids in m.ids:
            moved = f"moved up by {ids.offset}" if ids.offset > 0 else f"moved by {ids.offset}"
            what = "as they were" if not ids.offset else moved
            click.echo(f"  ids {ids.first_id} to {ids.last_id} {what}")
    click.echo(f"{out}: {total} keyframes")
    _tell_calibration(calibrated)
    write_json(json_path, {"keyframes": total, "maps": [dataclasses.asdict(m) for m in merged]})


@click.command()
@_map_argument
@_out_argument
@click.option("--keep", type=click.IntRange(min=1), help="Stop at this many keyframes.")
@click.option(
    "--max-mb", type=FiniteRange(min=0, min_open=True), help="Stop at a file of this many MB."
)
@click.option(
    "--within-bits",
    type=click.IntRange(0, 512),
    default=24,
    show_default=True,
    help="Similar: Hamming distance of at most this many of 512 bits,",
)
@click.option(
    "--within-m",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    help="and, with poses, at most this many metres apart,",
)
@click.option(
    "--within-rad",
    type=FiniteRange(min=0),
    default=0.35,
    show_default=True,
    help="and at most this many radians apart.",
)
@_overwrite_option
@salvage_option
@json_option
def prune(
    path: Path,
    out: Path,
    keep: int | None,
    max_mb: float | None,
    within_bits: int,
    within_m: float,
    within_rad: float,
    overwrite: bool,
    salvage: bool,
    json_path: Path | None,
) -> None:
    """Write MAP to OUT without redundant keyframes.

    A keyframe is redundant if a similar older one is kept: of the same camera, within
    --within-bits and, if both have poses in one frame, within --within-m and --within-rad. Ids
    stay the same. --keep and --max-mb stop at that size; the most redundant are removed first.

    \b
    hashvpr map prune office.vprmap small.vprmap --max-mb 20
    """
    from hashvpr_ros.map.nearness import Nearness
    from hashvpr_ros.map.prune import prune_map

    if keep is not None and max_mb is not None:
        raise ConfigError("give either --keep N or --max-mb M")
    total, calibrated = _look(path, salvage)
    if overwrite:
        keep_good_copy(out)
    with progress_bar(total, "comparing", "keyframe") as bar:
        pruned = prune_map(
            path,
            out,
            nearness=Nearness(within_m, within_rad, within_bits),
            keep=keep,
            max_bytes=None if max_mb is None else int(max_mb * 1e6),
            overwrite=overwrite,
            salvage=salvage,
            progress=ticker(bar),
        )
    click.echo(
        f"{out}: {pruned.after} of {pruned.before} keyframes, {pruned.file_bytes / 1e6:.2f} MB\n"
        f"  {pruned.near_own_session} went for an older one of their session near them\n"
        f"  {pruned.near_other_session} went for an older one of another session near them\n"
        f"  {pruned.redundant} of {pruned.before} could go, at most {within_bits} bits"
        f" and, with poses, {within_m:g} m and {within_rad:g} rad from one that stays"
    )
    if not pruned.size_reached:
        click.echo(
            "  larger than asked for, as no others are redundant: raise --within-bits, --within-m "
            "or --within-rad"
        )
    _tell_calibration(calibrated)
    write_json(json_path, dataclasses.asdict(pruned))


_MOST_S = (2**63 - 1) // 10**9  # of a stamp in nanoseconds


class _Stamp(click.ParamType):
    """Seconds as decimals, since a float64 of today's is exact to 240 ns only."""

    name = "seconds"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            seconds = Decimal(value)
        except InvalidOperation:
            seconds = Decimal("nan")
        if seconds.is_nan():
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        # Asked before it becomes an integer, which could have any number of digits.
        if not -_MOST_S <= seconds <= _MOST_S:
            self.fail(f"{value!r} is out of range.", param, ctx)
        return round(seconds.scaleb(9))


@click.command()
@_map_argument
@_out_argument
@click.option("--session", "sessions", multiple=True, help="Name of a session. May be repeated.")
@click.option("--from-s", "from_ns", type=_Stamp(), help="First stamp, in seconds.")
@click.option("--to-s", "to_ns", type=_Stamp(), help="End of the range, in seconds; not included.")
@_overwrite_option
@salvage_option
@json_option
def split(
    path: Path,
    out: Path,
    sessions: tuple[str, ...],
    from_ns: int | None,
    to_ns: int | None,
    overwrite: bool,
    salvage: bool,
    json_path: Path | None,
) -> None:
    """Write a part of MAP to OUT: sessions, a time range, or both.

    Ids stay the same, and MAP does not change.

    \b
    hashvpr map split week.vprmap monday.vprmap --session monday
    hashvpr map split week.vprmap night.vprmap --from-s 1700000000 --to-s 1700030000
    """
    from hashvpr_ros.map.split import split_map

    if not sessions and from_ns is None and to_ns is None:
        raise ConfigError("say which part: --session NAME, --from-s S or --to-s S")
    _, calibrated = _look(path, salvage)
    if overwrite:
        keep_good_copy(out)
    count, total = split_map(
        path,
        out,
        sessions=sessions,
        from_ns=from_ns,
        to_ns=to_ns,
        overwrite=overwrite,
        salvage=salvage,
    )
    click.echo(f"{out}: {count} of {total} keyframes")
    _tell_calibration(calibrated)
    write_json(json_path, {"keyframes": count, "of": total})


@click.command()
@_map_argument
@click.argument("out", type=EXPORT_FILE)
@click.option("--format", "form", type=click.Choice(["csv", "tum", "npz"]), required=True)
@_overwrite_option
@salvage_option
@json_option
def export(
    path: Path, out: Path, form: str, overwrite: bool, salvage: bool, json_path: Path | None
) -> None:
    """Write MAP to OUT in a format for other programs.

    csv: a row for each keyframe, without its float descriptor. tum: poses sorted by stamp. npz:
    numpy arrays, with binary and float descriptors.

    \b
    hashvpr map export office.vprmap office.csv --format csv
    """
    from hashvpr_ros.map.export import export_map

    if salvage:
        _look(path, salvage)
    exported = export_map(path, out, form, overwrite=overwrite, salvage=salvage)
    left_out = [
        f"{count} {why}"
        for count, why in (
            (exported.without_pose, "without a pose"),
            (exported.same_stamp, "with the stamp of another"),
        )
        if count
    ]
    click.echo(
        f"{out}: {exported.keyframes} keyframes"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
    write_json(json_path, dataclasses.asdict(exported))


@click.command()
@_map_argument
@_out_argument
@engine_option
@_overwrite_option
@salvage_option
@json_option
def reembed(
    path: Path,
    out: Path,
    engine_path: Path | None,
    overwrite: bool,
    salvage: bool,
    json_path: Path | None,
) -> None:
    """Compute the descriptors of MAP again with another model, from its thumbnails, into OUT.

    Thumbnails are small (160 px by default), so recognition is worse than with the full images.
    If you still have these, build a new map instead. Ids, sessions, stamps and poses stay the
    same; keyframes without a thumbnail are left out.

    \b
    hashvpr map reembed office.vprmap office_b.vprmap --engine vitb_322.onnx
    """
    from hashvpr_ros.mapping.reembed import reembed_map

    total, calibrated = _look(path, salvage)
    engine = open_engine(engine_path)
    if overwrite:
        keep_good_copy(out)
    with progress_bar(total, "describing") as bar:
        counts = reembed_map(
            path, out, engine, overwrite=overwrite, salvage=salvage, progress=ticker(bar)
        )
    click.echo(
        f"{out}: {counts.keyframes} of {total} keyframes by {engine.info.name}, from thumbnails: "
        "less accurate than from the full images"
    )
    for count, why in (
        (counts.without_thumbnail, "without a thumbnail"),
        (counts.unreadable, "with a thumbnail that cannot be decoded"),
    ):
        if count:
            click.echo(f"  left out: {count} {why}")
    _tell_calibration(calibrated)
    write_json(json_path, dataclasses.asdict(counts))


COMMANDS = (merge, prune, split, export, reembed)
