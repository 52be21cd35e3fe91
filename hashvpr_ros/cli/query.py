"""`hashvpr query`: which places of a map images show."""

from __future__ import annotations

from pathlib import Path

import click

from hashvpr_ros.cli.common import (
    end_with_losses,
    engine_option,
    json_option,
    open_engine,
    table,
    write_json,
)
from hashvpr_ros.cli.outputs import PATH


@click.command(name="query")
@click.argument("path", metavar="MAP", type=PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PATH)
@engine_option
@click.option(
    "--top-k",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="Candidates to re-rank.",
)
@click.option(
    "--show",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="Hypotheses to print for each image.",
)
@json_option
def command(
    path: Path,
    images: tuple[Path, ...],
    engine_path: Path | None,
    top_k: int,
    show: int,
    json_path: Path | None,
) -> None:
    """Find the places of MAP that each image shows.

    Each image is judged by itself. The node also uses the preceding images (sequence matching).
    Images that cannot be read are left out: the exit code is then 3.
    """
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.datasets.folder import read_image
    from hashvpr_ros.errors import DatasetError
    from hashvpr_ros.evaluation.evaluate import Skipped
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.matching.recognizer import Recognizer
    from hashvpr_ros.types import Mode

    engine = open_engine(engine_path)
    info = engine.info
    results = []
    skipped = Skipped()
    with PlaceMap.open(
        path, info.fingerprint, info.feature_dim, model_name=info.name, read_only=True, verify=True
    ) as place_map:
        recognizer = Recognizer(
            engine, place_map, from_flat({"matching.top_k": top_k}), mode=Mode.LOCALIZATION
        )
        for i, image in enumerate(images):
            rgb = None
            with skipped.leaving_out(i):
                rgb = read_image(image)
            if rgb is None:
                if len(images) == 1:
                    raise DatasetError(skipped.lines[0])
                click.echo(f"left out: {skipped.lines[-1]}", err=True)
                continue
            decision = recognizer.recognize(rgb, max_hypotheses=show)
            hypotheses = [
                {
                    "place_id": h.keyframe.id,
                    "session": h.keyframe.session,
                    "camera": h.keyframe.camera,
                    "stamp_ns": h.keyframe.stamp_ns,
                    "position_m": list(h.keyframe.pose.position_m) if h.keyframe.pose else None,
                    "distance_bits": h.distance_bits,
                    "similarity": round(h.similarity, 4),
                    "distinctness": round(h.distinctness, 4),
                    "probability": round(h.probability, 4),
                }
                for h in decision.hypotheses
            ]
            results.append({"image": str(image), "hypotheses": hypotheses})
            click.echo(f"{image}" + ("" if hypotheses else ": the map is empty"))
            if hypotheses:
                rows = [
                    (
                        "  place",
                        "stamp (s)",
                        "bits",
                        "similarity",
                        "distinct",
                        "probability",
                        "session",
                    )
                ]
                rows += [
                    (
                        f"  {h.keyframe.id}",
                        f"{h.keyframe.stamp_ns / 1e9:.3f}",
                        str(h.distance_bits),
                        f"{h.similarity:.3f}",
                        f"{h.distinctness:.3f}",
                        f"{h.probability:.3f}",
                        h.keyframe.session[:12],
                    )
                    for h in decision.hypotheses
                ]
                click.echo(table(rows))
    write_json(json_path, results)
    end_with_losses(len(skipped.lines), len(images))
