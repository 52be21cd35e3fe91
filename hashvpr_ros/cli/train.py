"""`hashvpr train`: the float and the hash branch of a network."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import machine, write_json
from hashvpr_ros.cli.outputs import AnyPath
from hashvpr_ros.cli.settings import change_of, set_option
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.file_io import MB, read_text

HISTORY = "history.json"
MISSING = "is not installed; pip install 'hashvpr_ros[train]' brings what training needs"


def _example(context: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        from hashvpr_ros.training.config import as_yaml

        click.echo(as_yaml(), nl=False)
        context.exit()


@click.command(name="train")
@click.option(
    "--example",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_example,
    help="Print every setting as YAML and exit.",
)
@click.argument("branch", type=click.Choice(["float", "hash"]))
@click.argument("config", type=AnyPath(dir_okay=False))
@click.option("--resume", is_flag=True, help="Continue after the last epoch of the output folder.")
@set_option("optimizer.epochs=5")
def command(branch: str, config: Path, resume: bool, changes: tuple[str, ...]) -> None:
    """Train BRANCH beside a frozen backbone with the settings of CONFIG.

    The output folder gets best.pth, last.pth, history.json and TensorBoard's logs
    (`tensorboard --logdir FOLDER`). The hash branch is trained second, on the float's best.pth.
    """
    from hashvpr_ros.training.config import check_inputs, read_config

    # What is wrong with a path is known before torch is loaded, which takes seconds.
    settings = read_config(Path(os.path.expanduser(config)), dict(change_of(c) for c in changes))
    check_inputs(settings)
    try:
        from hashvpr_ros.training.trainer import BEST, Trainer
    except ImportError as e:
        raise ConfigError(f"{e.name} {MISSING}") from e
    trainer = Trainer(settings, branch, resume=resume, bar=_bars())
    click.echo(
        f"{trainer.network.name}, {branch} branch: {len(trainer.images.places)} places, "
        f"{settings.data.height}x{settings.data.width}, on {trainer.device.type} ({machine()})"
    )
    model = settings.model
    if model.network == "dinov2" and not (model.backbone_weights or model.checkpoint):
        click.echo(
            "hashvpr: warning: the backbone is random; set model.backbone_weights to Meta's "
            "dinov2_vit*14_pretrain.pth",
            err=True,
        )
    if trainer.start.drops_hash:
        click.echo(
            "hashvpr: warning: the checkpoint's hash branch is left out, for it stands on what is "
            f"trained now; train it again on {trainer.folder / BEST}",
            err=True,
        )
    shared = _trained_and_validated(trainer)
    if shared:
        click.echo(
            f"hashvpr: warning: {shared} images of the validation set are trained on as well, so "
            "its recall says little; keep them apart by data.last_place and data.validation_first",
            err=True,
        )
    if trainer.epoch:
        click.echo(f"going on after epoch {trainer.epoch - 1}")
    history = _history(trainer.folder / HISTORY, trainer.epoch)
    for epoch in trainer.epochs():
        recall = ", ".join(f"R@{k} {v:.1f}" for k, v in epoch.recall.items())
        mark = " *" if epoch.best else ""
        if epoch.loss is None:
            click.echo(f"start: {recall}" if recall else "start")
        else:
            click.echo(
                f"epoch {epoch.number}: loss {epoch.loss:.4f}{', ' * bool(recall)}{recall}{mark}"
            )
        history.append({"epoch": epoch.number, "loss": epoch.loss, "recall": epoch.recall})
        write_json(trainer.folder / HISTORY, history)
    trainer.finish()
    click.echo(f"best: {trainer.folder / BEST}")


def _history(path: Path, before: int) -> list[dict[str, Any]]:
    """What an interrupted run wrote of its epochs; nothing where that is damaged."""
    try:
        return [e for e in json.loads(read_text(path, 64 * MB)) if e["epoch"] < before]
    except (ConfigError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _trained_and_validated(trainer: Any) -> int:
    """How many images of the validation sets are among those to train on."""
    resolve = functools.cache(Path.resolve)
    trained = {resolve(p.parent) / p.name for p in trainer.images.paths}
    validated = {
        resolve(p.parent) / p.name for one in trainer.validations for p in one.dataset.paths
    }
    return len(trained & validated)


def _bars() -> Callable[[int, str], Callable[[int], object]]:
    """Progress bars on a terminal, each in the place of the last."""
    from tqdm import tqdm

    open_bars: list[Any] = []

    def start(total: int, what: str) -> Callable[[int], object]:
        while open_bars:
            open_bars.pop().close()
        bar = tqdm(total=total, desc=what, disable=None, leave=False, delay=1.0)
        open_bars.append(bar)

        def tick(count: int) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return tick

    return start
