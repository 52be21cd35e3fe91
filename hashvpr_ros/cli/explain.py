"""`hashvpr explain`: why a match was or was not made, from recorded ledgers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros.cli.common import (
    allow_partial_option,
    json_option,
    refuse_options,
    say_losses,
    table,
    write_json,
)
from hashvpr_ros.cli.outputs import PATH, PLOT_FILE
from hashvpr_ros.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NEAR_S = 0.5  # of the stamp that is asked for
_DRAWN = 3  # hypotheses


@click.command(name="explain")
@click.argument("bag", type=PATH)
@click.option(
    "--stamp", "stamp_s", type=float, default=None, help="Stamp of the image, in seconds."
)
@click.option("--camera", default=None, help="Camera of the image, if there are several.")
@click.option(
    "--place",
    "places",
    type=click.IntRange(1),
    multiple=True,
    help="Id of a keyframe: explain why it was chosen or not. May be repeated.",
)
@click.option(
    "--map",
    "map_path",
    type=PATH,
    default=None,
    help="Map with the thumbnails to draw.",
)
@click.option(
    "--images",
    "images_bag",
    type=PATH,
    default=None,
    help="Bag with the images to draw, if BAG and the map have none.",
)
@click.option(
    "--plot",
    type=PLOT_FILE,
    default=None,
    help="Draw the image and its best places into this PNG or SVG.",
)
@allow_partial_option
@json_option
def command(
    bag: Path,
    stamp_s: float | None,
    camera: str | None,
    places: tuple[int, ...],
    map_path: Path | None,
    images_bag: Path | None,
    plot: Path | None,
    allow_partial: bool,
    json_path: Path | None,
) -> None:
    """Why did the image at a stamp get a loop closure, or none?

    BAG is a bag with the node's ~/ledger (publish.ledger: true), or OUT/ledger of
    `hashvpr replay BAG --set publish.ledger=true`. Without --stamp, the reasons of all images are
    counted.
    """
    from hashvpr_ros.datasets.bag import Losses, read_own

    if stamp_s is None:
        refuse_options("belongs to --stamp; give it", "--place", "--plot", "--map", "--images")
    if plot is None:
        refuse_options("belongs to --plot; give it", "--map", "--images")
    losses = Losses(allow_partial)
    reasons: Counter[str] = Counter()
    first_s: dict[str, float] = {}
    nearest: tuple[float, Any] | None = None
    for stamp_ns, ledger in read_own(bag, "DecisionLedger", losses):
        if camera is not None and ledger.camera != camera:
            continue
        reasons[str(ledger.reason)] += 1
        first_s.setdefault(str(ledger.reason), stamp_ns / 1e9)
        if stamp_s is not None:
            off_s = abs(stamp_ns / 1e9 - stamp_s)
            if nearest is None or off_s < nearest[0]:
                nearest = off_s, ledger
    say_losses(losses)
    if not reasons:
        raise DatasetError(
            f"{bag}: has no ledger{'' if camera is None else f' of camera {camera}'}; record "
            "~/ledger with publish.ledger: true, or make one by `hashvpr replay BAG --set "
            "publish.ledger=true`"
        )
    if stamp_s is None:
        rows = [(k.replace("_", " "), str(n), f"{first_s[k]:.3f}") for k, n in reasons.items()]
        click.echo(table([("reason", "images", "first at, s"), *rows]))
        click.echo("choose an image by --stamp")
        write_json(json_path, {"reasons": dict(reasons), "first_s": first_s})
        return
    if nearest is None or not nearest[0] <= _NEAR_S:
        raise DatasetError(
            f"{bag}: no image within {_NEAR_S} s of {stamp_s:.3f} s"
            + ("" if nearest is None else f"; the nearest is {nearest[0]:.3f} s off")
            + "; leave --stamp out to see what there is"
        )
    _tell(nearest[1], places, json_path)
    if plot is not None:
        _draw(nearest[1], places, bag, map_path, images_bag, plot)
        click.echo(f"drawn: {plot}")


def _tell(ledger: Any, places: tuple[int, ...], json_path: Path | None) -> None:
    from hashvpr_ros.datasets.bag import stamp_ns
    from hashvpr_ros.evaluation.explain import explain, explain_place

    lines = explain(ledger) + [explain_place(ledger, i) for i in places]
    for line in lines:
        click.echo(line)
    write_json(
        json_path,
        {
            "stamp_ns": stamp_ns(ledger.header.stamp),
            "reason": str(ledger.reason),
            "lines": lines,
            "hypotheses": [int(h.place_id) for h in ledger.hypotheses],
        },
    )


def _draw(
    ledger: Any,
    places: tuple[int, ...],
    bag: Path,
    map_path: Path | None,
    images_bag: Path | None,
    plot: Path,
) -> None:
    from hashvpr_ros.datasets.bag import stamp_ns
    from hashvpr_ros.evaluation.plots import views

    shown = [
        (int(h.place_id), h, f"keyframe {h.place_id}: probability {h.probability:.3f}")
        for h in ledger.hypotheses[:_DRAWN]
    ]
    drawn = {i for i, *_ in shown}
    shown += [
        (int(c.place_id), c, f"keyframe {c.place_id}: {c.reason}".replace("_", " "))
        for c in ledger.candidates
        if c.place_id in places and c.place_id not in drawn
    ]
    wanted = [(int(ledger.keyframe_id), stamp_ns(ledger.header.stamp), str(ledger.camera))]
    wanted += [(i, stamp_ns(m.stamp), str(m.camera)) for i, m, _ in shown]
    images = _images(wanted, map_path, bag if images_bag is None else images_bag)
    titles = [f"image at {wanted[0][1] / 1e9:.3f} s"] + [title for *_, title in shown]
    title = str(ledger.reason).replace("_", " ")
    views(plot, list(zip(titles, images, strict=True)), title)


def _images(
    wanted: list[tuple[int, int, str]], map_path: Path | None, bag: Path
) -> list[NDArray[np.uint8] | None]:
    """Pictures by (keyframe id or 0, stamp in ns, camera): from the bag, else the map."""
    from hashvpr_ros.datasets.bag import BagFrames, image_topics
    from hashvpr_ros.imaging import decode_compressed
    from hashvpr_ros.map.place_map import PlaceMap

    found: dict[int, NDArray[np.uint8]] = {}
    if map_path is not None:
        with PlaceMap.open(map_path, read_only=True, create=False) as place_map:
            held = set(place_map.ids().tolist())
            for id_, stamp_ns, camera in wanted:
                if id_ not in held:
                    continue
                (keyframe,) = place_map.keyframes([id_])
                jpeg = place_map.thumbnail(id_)
                # An id alone may be that of another map.
                if jpeg and (keyframe.stamp_ns, keyframe.camera) == (stamp_ns, camera):
                    found[stamp_ns] = decode_compressed(jpeg)
    missing = {stamp for _, stamp, _ in wanted} - found.keys()
    topics = image_topics(bag) if missing else []
    if len(topics) == 1:  # else it is not known which is of which camera
        for frame in BagFrames(bag, topics, allow_partial=True):  # they are but drawn
            if frame.stamp_ns in missing:
                found[frame.stamp_ns] = frame.rgb
    return [found.get(stamp) for _, stamp, _ in wanted]
