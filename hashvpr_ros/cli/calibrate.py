"""`hashvpr calibrate`: how sure matches with a map are, fitted on the user's own images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    DEFAULT_ANGLE_DEG,
    DEFAULT_RADIUS_M,
    allow_partial_option,
    end_with_losses,
    engine_option,
    json_option,
    keep_good_copy,
    machine,
    near_options,
    open_engine,
    progress_bar,
    refuse_options,
    say_losses,
    table,
    ticker,
    write_json,
)
from hashvpr_ros.cli.outputs import PATH
from hashvpr_ros.cli.settings import change_of, set_option
from hashvpr_ros.errors import ConfigError

if TYPE_CHECKING:
    from hashvpr_ros.evaluation.evaluate import Skipped

_BAG_OPTIONS = "--image-topic", "--pose-topic", "--angle", "--allow-partial"


@click.command(name="calibrate")
@click.argument("path", metavar="MAP", type=PATH)
@click.option("--bag", type=PATH, help="rosbag2 of another traverse.")
@click.option("--image-topic", help="Image or CompressedImage topic of the bag.")
@click.option("--pose-topic", help="Pose topic, in the frame of the map's poses.")
@click.option(
    "--images",
    type=PATH,
    help="Folder in a layout of `hashvpr evaluate`; the map was made from its references.",
)
@near_options("--bag", utm=True)
@allow_partial_option
@click.option("--dry-run", is_flag=True, help="Print the result without changing the map.")
@click.option("--clear", is_flag=True, help="Delete the calibration of the map instead.")
@set_option("matching.target_precision=0.995")
@engine_option
@json_option
def command(
    path: Path,
    bag: Path | None,
    image_topic: str | None,
    pose_topic: str | None,
    images: Path | None,
    radius_m: float | None,
    angle_deg: float | None,
    allow_partial: bool,
    dry_run: bool,
    clear: bool,
    changes: tuple[str, ...],
    engine_path: Path | None,
    json_path: Path | None,
) -> None:
    """Fit the probabilities of matches with MAP, and store the curve in MAP.

    Needs other images of the map's places, with their positions. Negatives come from the map
    itself: each image is also matched with the half of the map that does not contain its place.
    The curve is used where odometry cannot exclude matches: in mode localization, and between
    sessions. Images that cannot be read are left out: the exit code is then 3.

    \b
    hashvpr calibrate office.vprmap --bag evening --image-topic /camera/image --pose-topic /pose
    hashvpr calibrate corridor.vprmap --images corridor/
    """
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.evaluation.calibrate import (
        calibrate,
        describe_queries,
        right_by_pose,
    )
    from hashvpr_ros.evaluation.evaluate import Skipped
    from hashvpr_ros.map.place_map import PlaceMap

    if clear:
        refuse_options(
            "does not go with --clear; leave it out",
            *("--bag", "--images", "--dry-run", "--set", "--engine", "--json"),
            *("--radius", *_BAG_OPTIONS),
        )
        with PlaceMap.open(path, create=False, verify=True) as place_map:
            keep_good_copy(place_map)
            place_map.set_calibration(None)
        click.echo(f"{path}: its calibration is forgotten")
        return
    if (bag is None) == (images is None):
        raise ConfigError("give either --bag BAG or --images FOLDER")
    if images is not None:
        refuse_options("belongs to --bag; leave it out", *_BAG_OPTIONS)
    if bag is not None and (not image_topic or not pose_topic):
        raise ConfigError("--bag needs --image-topic and --pose-topic")
    config = from_flat({"mode": "localization", **dict(change_of(c) for c in changes)})
    if config.matching.temporal != "both":
        raise ConfigError(
            f"matching.temporal is {config.matching.temporal}, and what is fitted here counts "
            "with both alone: its scale is another's; leave it at both"
        )
    engine = open_engine(engine_path)
    info = engine.info
    with PlaceMap.open(
        path, info.fingerprint, info.feature_dim, model_name=info.name, read_only=dry_run,
        create=False, verify=True,
    ) as place_map:  # fmt: skip
        keep_good_copy(place_map)
        if bag is not None:
            from hashvpr_ros.datasets.bag import BagFrames

            assert image_topic is not None and pose_topic is not None
            frames = BagFrames(bag, image_topic, pose_topic, allow_partial=allow_partial)
            with progress_bar(len(frames), "describing") as bar:
                queries = describe_queries(
                    ((f.rgb, f.stamp_ns, f.pose) for f in frames), engine, ticker(bar)
                )
            say_losses(frames)
            lost, count = frames.lost, frames.lost + len(queries.stamps_ns)
            right = right_by_pose(
                queries,
                place_map,
                DEFAULT_RADIUS_M if radius_m is None else radius_m,
                math.radians(DEFAULT_ANGLE_DEG if angle_deg is None else angle_deg),
            )
        else:
            from hashvpr_ros.datasets.registry import open_traverses

            assert images is not None
            dataset = open_traverses(images, radius_m=radius_m)
            if len(dataset.references) != len(place_map):
                raise ConfigError(
                    f"{path}: has {len(place_map)} keyframes, and {images} "
                    f"{len(dataset.references)} references; make the map of them by `hashvpr map "
                    "build MAP --images`"
                )
            skipped = Skipped()
            with progress_bar(len(dataset.queries), "describing") as bar:
                queries = describe_queries(_paths(dataset.queries, skipped), engine, ticker(bar))
            for line in skipped.lines:
                click.echo(f"left out: {line}", err=True)
            lost, count = len(skipped.lines), len(dataset.queries)
            ids = place_map.ids().tolist()
            right = [
                {ids[j] for j in positives}
                for i, positives in enumerate(dataset.positives())
                if i not in skipped.indices
            ]
        with progress_bar(3 * len(queries.stamps_ns), "matching", "match") as bar:
            fit = calibrate(queries, right, place_map, info, config, ticker(bar))
        if not dry_run:
            place_map.set_calibration(fit.calibration)
    _show(path, fit, config.matching.target_precision, dry_run)
    write_json(json_path, dataclasses.asdict(fit) | {"machine": machine(), "version": __version__})
    end_with_losses(lost, count)


def _paths(paths: list[Path], skipped: Skipped) -> Iterator[tuple[Any, int, None]]:
    """The images that can be read, as `describe_queries` takes them."""
    from hashvpr_ros.datasets.folder import read_image

    for i, path in enumerate(paths):
        image = None
        with skipped.leaving_out(i):
            image = read_image(path)
        if image is not None:
            yield image, (i + 1) * 10**9, None


def _show(path: Path, fit: Any, target: float, dry_run: bool) -> None:
    found = fit.calibration
    rows: list[tuple[str, ...]] = [("", "before", "after")]
    for label, before, after in (
        (
            f"accepted at {target:g}: right, wrong",
            "{}, {}".format(*fit.accepted_before),
            "{}, {}".format(*fit.accepted_after),
        ),
        ("calibration error", f"{fit.error_before:.3f}", f"{fit.error_after:.3f}"),
        ("Brier score", f"{fit.brier_before:.3f}", f"{fit.brier_after:.3f}"),
    ):
        rows.append((label, before, after))
    click.echo(
        f"{fit.queries_with_ground_truth} of {fit.queries} images show a place of the map by "
        f"their ground truth; {fit.queries - fit.queries_with_ground_truth} are left out"
    )
    click.echo(table(rows))
    click.echo(
        f"{path}: log odds times {found.slope:.2f} plus {found.intercept:.2f}, fitted to "
        f"{found.right} right and {found.wrong} wrong matches; "
        + ("not kept" if dry_run else "kept in the map")
    )
