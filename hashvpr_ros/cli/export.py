"""`hashvpr export`: an engine file from a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hashvpr_ros.cli.common import json_option, progress_bar, write_json
from hashvpr_ros.cli.outputs import AnyPath
from hashvpr_ros.cli.train import MISSING
from hashvpr_ros.errors import CheckpointError, ConfigError
from hashvpr_ros.file_io import MOST_CHECKPOINT_BYTES, check_regular

_MOST_IMAGES = 128  # of a calibration folder, spread over it


class _Size(click.ParamType):
    """One side for a square, or HEIGHTxWIDTH."""

    name = "N|HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            sides = [int(v) for v in str(value).lower().split("x")]
        except ValueError:
            sides = []
        if len(sides) not in (1, 2) or not all(1 <= v <= 4096 for v in sides):
            self.fail(f"{value!r} is no size in pixels like 322 or 240x320 (height x width)")
        return sides[0], sides[-1]


SIZE = _Size()


@click.command(name="export")
@click.argument("checkpoint", type=AnyPath(dir_okay=False))
@click.argument("out", type=AnyPath(dir_okay=False))
@click.option(
    "--size",
    type=SIZE,
    default=None,
    help="Of the images: one side of a square, or height x width as 240x320; multiples of 14 for "
    "DINOv2. Default: what the checkpoint says, else 322.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 for GPUs, int8 for CPUs (needs --calibration).",
)
@click.option(
    "--batch",
    default="dynamic",
    show_default=True,
    help="Batch size: a number, or dynamic.",
)
@click.option(
    "--calibration",
    type=AnyPath(file_okay=False),
    default=None,
    help="Folder of images of the robot's environment, for int8 calibration and for the check.",
)
@click.option("--name", default=None, help="Of the model, in the file.")
@click.option("--license", "license_", default=None, help="Of the weights, in the file.")
@click.option("--model-version", default=None, help="Of the model, in the file.")
@json_option
def command(
    checkpoint: Path,
    out: Path,
    size: tuple[int, int] | None,
    precision: str,
    batch: str,
    calibration: Path | None,
    name: str | None,
    license_: str | None,
    model_version: str | None,
    json_path: Path | None,
) -> None:
    """Write OUT (.onnx) from CHECKPOINT (.pth), and check it against PyTorch.

    An export that differs too much leaves no file.
    """
    if batch not in ("dynamic", *map(str, range(1, 257))):
        raise ConfigError(f"--batch must be a number or dynamic, 1 to 256, not {batch!r}")
    # What is wrong with a path is known before torch is loaded, which takes seconds.
    if not os.path.lexists(os.path.expanduser(checkpoint)):
        raise CheckpointError(f"{checkpoint}: no such file; correct the path of the checkpoint")
    check_regular(os.path.expanduser(checkpoint), MOST_CHECKPOINT_BYTES, error=CheckpointError)
    if calibration is not None and not os.path.isdir(os.path.expanduser(calibration)):
        raise ConfigError(f"{calibration}: there is no such folder; correct --calibration")
    out = Path(os.path.expanduser(out))
    try:
        from hashvpr_ros.export.onnx import Metadata, export_onnx
        from hashvpr_ros.model.checkpoints import open_checkpoint
    except ImportError as e:
        raise ConfigError(f"{e.name} {MISSING}") from e
    opened = open_checkpoint(checkpoint)
    size = size or opened.size
    opened.network.check_size(*size)
    images = []
    if calibration is not None:
        images = calibration_images(Path(os.path.expanduser(calibration)), size)
    report = export_onnx(
        opened.network,
        out,
        size,
        Metadata(
            name or opened.network.name,
            model_version or opened.info.version,
            license_ or opened.info.license or "not stated",
            opened.info.probability_curve,
        ),
        precision=precision,
        batch=0 if batch == "dynamic" else int(batch),
        images=images,
    )
    click.echo(
        f"{out}: {report.megabytes:.1f} MB, {precision}, {size[0]}x{size[1]}, fingerprint "
        f"{report.fingerprint[:12]}"
    )
    click.echo(
        f"against PyTorch, {report.images} images: cosine {report.cosine:.6f}, "
        f"{100 * report.bits_equal:.2f} % of bits equal, largest difference "
        f"{report.largest_error:.2g}"
    )
    write_json(json_path, {**vars(report), "path": str(report.path)})


def calibration_images(folder: Path, size: tuple[int, int]) -> list:
    """Images spread over a folder, in a fixed random order, uint8 [H, W, 3] each."""
    import numpy as np

    from hashvpr_ros.datasets.folder import image_paths, read_image
    from hashvpr_ros.engine.preprocess import resize

    paths = image_paths(folder)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _MOST_IMAGES)).astype(int))
    images = []
    with progress_bar(len(chosen), "reading") as bar:
        for i in np.random.default_rng(0).permutation(chosen):
            images.append(resize(read_image(paths[i]), *size))
            bar.update(1)
    return images
