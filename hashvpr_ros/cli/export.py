"""`hashvpr export`: engine files from weights."""

from __future__ import annotations

from pathlib import Path

import click

from hashvpr_ros.errors import ConfigError

VALIDATION_PLACES = 150  # the last places of SPED are for validation: never trained on


@click.group(name="export")
def command() -> None:
    """Write engine files from weights (needs `pip install 'hashvpr_ros[train]'`)."""


@command.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="SPED in the layout of VPR-Bench (query/, ref/); all but its last 150 places are used.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx to write.")
def lite(images: Path, out: Path) -> None:
    """Rebuild the lite model of the package from its sources.

    hashvpr export lite --images ../shared/data/sped --out resource/hashvpr_lite.onnx
    """
    try:
        import onnx  # noqa: F401  (asked for here, so that it is not missed after the learning)

        from hashvpr_ros.export import lite as lite_model
        from hashvpr_ros.model import efficientnet_lite
    except ImportError as e:
        raise ConfigError(
            f"{e.name} is not installed; pip install 'hashvpr_ros[train]' brings it"
        ) from e
    from tqdm import tqdm

    places = len(sorted((images / "query").glob("*.jpg"))) - VALIDATION_PLACES
    pairs = lite_model.training_pairs(images, max(places, 2))
    state = efficientnet_lite.load_weights()
    with tqdm(
        total=lite_model.IMAGES_A_PAIR * len(pairs), desc="describing", unit="image", disable=None
    ) as bar:
        network, curve = lite_model.learn(state, pairs, bar.update)
    mark = lite_model.write_onnx(network, curve, out)
    click.echo(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, fingerprint {mark[:12]}, "
        f"probability curve {curve[0]} {curve[1]}, from {len(pairs)} places"
    )
