"""`hashvpr map`: build, inspect, verify, restore; what makes maps of maps is in `map_edit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hashvpr_ros.cli.common import (
    allow_partial_option,
    end_with_losses,
    engine_option,
    json_option,
    keep_good_copy,
    open_engine,
    progress_bar,
    refuse_options,
    salvage_option,
    say_losses,
    table,
    tell_left_out,
    ticker,
    write_json,
)
from hashvpr_ros.cli.map_edit import COMMANDS
from hashvpr_ros.cli.outputs import PATH
from hashvpr_ros.errors import ConfigError, DatasetError, MapError

if TYPE_CHECKING:
    from hashvpr_ros.datasets.base import Frames

_map_argument = click.argument("path", metavar="MAP", type=PATH)


@click.group(name="map")
def command() -> None:
    """Build, inspect, verify, restore, merge, prune, split and export maps."""


for _command in COMMANDS:
    command.add_command(_command)


@command.command()
@click.argument("out", type=PATH)
@click.option("--images", type=PATH, help="Folder of images.")
@click.option("--bag", type=PATH, help="rosbag2 (sqlite3 or mcap).")
@click.option("--image-topic", help="Image or CompressedImage topic of the bag.")
@click.option("--pose-topic", default="", help="Odometry or PoseStamped topic of the bag.")
@click.option("--session", default="", help="Name of the session. Default: a UUID.")
@click.option("--camera", default="camera", show_default=True, help="Name of the camera.")
@click.option("--append", is_flag=True, help="Add to a map that exists.")
@click.option("--every", is_flag=True, help="With --bag: keep every image, not only keyframes.")
@salvage_option
@allow_partial_option
@engine_option
def build(
    out: Path,
    images: Path | None,
    bag: Path | None,
    image_topic: str | None,
    pose_topic: str,
    session: str,
    camera: str,
    append: bool,
    every: bool,
    salvage: bool,
    allow_partial: bool,
    engine_path: Path | None,
) -> None:
    """Build the map OUT from a folder of images or a bag.

    A folder has no stamps: each of its images becomes a keyframe. OUT appears when it is complete.
    With --append, keyframes that were added before an error stay. Images that cannot be read are
    left out: the exit code is then 3.

    \b
    hashvpr map build office.vprmap --images office/
    hashvpr map build office.vprmap --bag drive --image-topic /camera/image --pose-topic /odom
    """
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.map import files
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.mapping.builder import build_map
    from hashvpr_ros.matching.recognizer import Recognizer
    from hashvpr_ros.types import Mode

    if (images is None) == (bag is None):
        raise ConfigError("give either --images DIR or --bag BAG")
    frames: Frames
    if images is not None:
        from hashvpr_ros.datasets.folder import FolderFrames

        for_bags = "--image-topic", "--pose-topic", "--every", "--allow-partial"
        refuse_options("is for --bag; leave it out", *for_bags)
        frames = FolderFrames(images)
    else:
        from hashvpr_ros.datasets.bag import BagFrames

        assert bag is not None
        if not image_topic:
            raise ConfigError("--bag needs --image-topic; `hashvpr map build --help` shows how")
        frames = BagFrames(bag, image_topic, pose_topic, allow_partial=allow_partial)
    out = files.resolve(out)
    if files.status(out) is not None and not append:
        raise MapError(f"{out}: exists; give another path, or --append to add to it")
    config = from_flat(
        {
            "keyframes.min_distance_m": 0.0,
            "keyframes.min_period_s": 0.0,
            "keyframes.min_novelty_bits": 0,
        }
        if every or images is not None
        else {}
    )
    engine = open_engine(engine_path)
    info = engine.info
    with (
        _new_or(out) as path,
        PlaceMap.open(
            path,
            info.fingerprint,
            info.feature_dim,
            model_name=info.name,
            session=session,
            verify=True,
            on_damage="drop" if salvage else "refuse",
        ) as place_map,
        progress_bar(len(frames), "mapping") as bar,
    ):
        tell_left_out(path, place_map.left_out_damaged)
        keep_good_copy(place_map)
        counts = build_map(
            Recognizer(engine, place_map, config, mode=Mode.MAPPING),
            frames,
            camera=camera,
            progress=ticker(bar),
        )
        if not counts.images:
            skipped = frames.skipped
            reason = f"none can be read, as {skipped[0]}" if skipped else "there is none"
            where = f"{images}: no images" if bag is None else f"{bag}: no images on {image_topic}"
            what = "folder" if bag is None else "topic"
            raise DatasetError(f"{where}: {reason}; give another {what}")
        place_map.flush()
        total = len(place_map)
    say_losses(frames)
    click.echo(
        f"{out}: {counts.keyframes} keyframes from {counts.images} images"
        + (f", {frames.lost} images left out" if frames.lost else "")
        + f"; {total} in the map"
    )
    end_with_losses(frames.lost, counts.images + frames.lost)


@contextmanager
def _new_or(out: Path) -> Iterator[Path]:
    """Where to build: OUT itself where it exists, else a file that becomes OUT at the end.

    Args:
        out: resolved.
    """
    from hashvpr_ros.map import files

    if files.status(out) is not None:
        yield out
        return
    files.refuse_kept_name(out)
    files.refuse_orphan_log(out)
    path = files.temporary_beside(out)
    try:
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            path.touch()  # says now, and of OUT, what would hinder it at the end
            path.unlink()
        yield path
        with _writing(out):
            files.put(path, out, overwrite=False)
    finally:
        files.discard(path)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as e:
        raise MapError(f"{out}: exists by now, or its folder is a file; give another path") from e
    except OSError as e:
        raise MapError(f"{out}: cannot be written: {e.strerror}; check the folder") from e


@command.command()
@_map_argument
@json_option
def info(path: Path, json_path: Path | None) -> None:
    """What MAP holds."""
    from hashvpr_ros.map.place_map import PlaceMap

    found = PlaceMap.read_info(path)
    write_json(json_path, dataclasses.asdict(found))
    click.echo(
        table(
            [
                ("map", found.map_id),
                ("model", f"{found.model_name or 'unnamed'} {found.fingerprint[:12]}"),
                ("feature", f"{found.feature_dim} values"),
                ("keyframes", str(found.keyframes)),
                ("with pose", str(found.with_pose)),
                ("with thumbnail", str(found.with_thumbnail)),
                ("cameras", ", ".join(found.cameras)),
                ("sessions", str(len(found.sessions))),
                ("file", f"{found.file_bytes / 1e3:,.0f} kB"),
                *(
                    (f"closures {k.replace('_', ' ')}", str(n))
                    for k, n in sorted(found.verdicts.items())
                ),
            ]
        )
    )
    for session in found.sessions:
        seconds = (session.last_stamp_ns - session.first_stamp_ns) / 1e9
        click.echo(f"  {session.name}: {session.keyframes} keyframes over {seconds:.0f} s")


@command.command()
@_map_argument
def verify(path: Path) -> None:
    """Check MAP for damage: structure, counts and checksums of every row."""
    from hashvpr_ros.map.backup import damage_of
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.map.schema import remedy

    problems = damage_of(path, {})
    for problem in problems:
        click.echo(problem)
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise MapError(f"{path}: damaged ({counted}); {remedy(path)}")
    click.echo(f"{path}: OK, {PlaceMap.read_info(path).keyframes} keyframes")


@command.command()
@_map_argument
@click.option("--force", is_flag=True, help="Restore the backup over a valid map, too.")
def restore(path: Path, force: bool) -> None:
    """Restore a damaged MAP from its backup, MAP.good.

    The damaged file is kept as MAP.damaged-DATE. The backup stays.
    """
    from hashvpr_ros.map.backup import restore as restore_map

    restored = restore_map(path, force=force)
    click.echo(f"{path}: {restored.keyframes} keyframes")
    if restored.set_aside is not None:
        click.echo(f"  the former file is kept as {restored.set_aside}")
