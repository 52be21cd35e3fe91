"""The training loop: epochs, checkpoints, resuming, early stop.

An epoch is a function of the weights before it, the seed and its number, so that a run which was
killed and goes on from its last epoch ends as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from hashvpr_ros.errors import CheckpointError, ConfigError, reason_of
from hashvpr_ros.model.checkpoints import (
    CheckpointInfo,
    load_into,
    open_checkpoint,
    read_checkpoint,
    read_state,
    save_network,
)
from hashvpr_ros.model.lite import LiteNetwork
from hashvpr_ros.training.config import TrainConfig, flatten
from hashvpr_ros.training.images import PLAIN, ImageReader, plan_epoch
from hashvpr_ros.training.lite_start import learn_start
from hashvpr_ros.training.losses import LOSSES, anchor_loss
from hashvpr_ros.training.places import join_sources, read_source
from hashvpr_ros.training.progress import (
    AGAIN,
    checked,
    explained,
    load_optimizer,
    load_scaler,
)
from hashvpr_ros.training.source import Source
from hashvpr_ros.training.stages import set_train, start_network
from hashvpr_ros.training.validation import Validation

_VALIDATION_BATCH = 16
_START_BATCH = 8
_KMEANS_IMAGES = 500  # of each source
LAST, BEST = "last.pth", "best.pth"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to."""

    number: int  # from 0; -1: the start, before any training
    loss: float | None  # None for the start
    recall: dict[str, float]  # "1", "5", "10": percent; empty without validation
    best: bool


@dataclass(frozen=True)
class ValidationSet:
    """A set to validate on."""

    dataset: Validation
    source: Source
    fit_probability: bool


class Trainer:
    """A run of training of one branch.

    Args:
        config: of the run.
        branch: float or hash.
        resume: go on from the output folder's last epoch where it has one.
        bar: makes a progress callback from a total and what is done.

    Raises:
        CheckpointError, ConfigError, DatasetError: a checkpoint, setting or folder is no good, or
            the output folder holds another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        branch: str,
        *,
        resume: bool = False,
        bar: Callable[[int, str], Callable[[int], object]] = lambda *_: lambda _: None,
    ) -> None:
        self.config, self.branch, self._bar = config, branch, bar
        self.folder = _writable(config.output)
        last = self.folder / LAST
        if last.exists() and not resume:
            raise ConfigError(
                f"{self.folder}: holds a run already; go on with it by --resume, or set output to "
                "another folder"
            )
        data = config.data
        torch.manual_seed(config.optimizer.seed)
        self.start = start_network(config.model, branch)
        self.network = self.start.network
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self.device)
        self.size = (data.height, data.width)
        self.network.check_size(*self.size)
        self.images = join_sources(
            [
                read_source(
                    Path(one.folder), one.layout, one.first_place, one.last_place, one.held_out
                )
                for one in data.training()
            ]
        )
        reader = ImageReader(self.images.paths, *self.size, data.augmentation)
        self.source = Source(config, self.network, reader, self.device, config.cache.views, bar)
        self.validations = []
        for one in data.validations():
            dataset = Validation(Path(one.folder), one.first, one.last)
            plain = ImageReader(dataset.paths, *self.size, "none")
            source = Source(config, self.network, plain, self.device, 1, bar)
            self.validations.append(ValidationSet(dataset, source, one.fit_probability))
        resuming = resume and last.exists()
        # What is restored replaces the start; then only an anchor asks for it.
        if (
            isinstance(self.network, LiteNetwork)
            and self.start.is_new
            and (not resuming or config.loss.anchor)
        ):
            self._learn_start()
        # Kept as it is before what is learned is restored: the same whether resumed or not.
        self._anchor = None
        if config.loss.anchor:
            self._anchor = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.loss = LOSSES[branch](config.loss).to(self.device)
        self._optimizer = torch.optim.AdamW(
            self.network.learning(branch).parameters(),
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
        )
        wanted = config.optimizer.precision
        mixed = wanted == "mixed" or (wanted == "auto" and self.device.type == "cuda")
        self._half = (
            (torch.float16 if self.device.type == "cuda" else torch.bfloat16) if mixed else None
        )
        # float16 alone loses small gradients; bfloat16 has the range of float32.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._half is torch.float16)
        self.epoch, self.best_recall, self.since_best = 0, -math.inf, 0
        if resuming:
            self._restore(last)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._half is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._half)

    def _describe(self, stages: list[Tensor], branch: str) -> Tensor:
        with self._autocast():
            output: Tensor = self.network.branch(branch, stages, self.size)
        return output.float()

    def epochs(self) -> Iterator[Epoch]:
        """Train, an epoch at a time, until it no longer gets better; writes the checkpoints.

        A start that is worth keeping comes first: the lite network's, or any with 0 epochs. It
        stays the best until an epoch is better.
        """
        from torch.utils.tensorboard import SummaryWriter

        worth = isinstance(self.network, LiteNetwork) or not self.config.optimizer.epochs
        if worth and self.epoch == 0 and self.best_recall == -math.inf:
            yield self._start()
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.epoch) as log:
            while (
                self.epoch < self.config.optimizer.epochs
                and self.since_best < self.config.optimizer.patience
            ):
                result = self._epoch()
                assert result.loss is not None
                log.add_scalar("loss", result.loss, result.number)
                log.add_scalar("learning_rate", self._rate(result.number), result.number)
                for k, value in result.recall.items():
                    log.add_scalar(f"recall/{k}", value, result.number)
                yield result

    def _rate(self, epoch: int) -> float:
        settings = self.config.optimizer
        halvings = epoch // settings.halve_every if settings.halve_every else 0
        return settings.learning_rate * 0.5**halvings

    def _start(self) -> Epoch:
        recall = self._validate()
        if recall:
            self.best_recall = _score(recall)
        self._save(True)
        return Epoch(-1, None, recall, True)

    def _epoch(self) -> Epoch:
        settings, number = self.config.optimizer, self.epoch
        torch.manual_seed(settings.seed + 1_000_003 * (number + 1))  # of dropout
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(number)
        plan = plan_epoch(
            self.images.places,
            settings.places_per_batch,
            settings.images_per_place,
            settings.seed,
            number,
        )
        set_train(self.network, self.branch)
        total, steps = 0.0, 0
        tick = self._bar(len(plan), f"epoch {number}")
        batches = self.source.batches([keys for keys, _ in plan])
        for i, (stages, (_, labels)) in enumerate(zip(batches, plan, strict=True)):
            loss = self._loss(stages, torch.tensor(labels, device=self.device))
            if not bool(torch.isfinite(loss)):
                raise ConfigError(
                    f"the loss became {float(loss.detach())} in epoch {number}; lower "
                    "optimizer.learning_rate, or set optimizer.precision to fp32"
                )
            # The last of an epoch may be fewer than are to be added.
            group_start = i - i % settings.accumulate
            parts = min(settings.accumulate, len(plan) - group_start)
            self._scaler.scale(loss / parts).backward()
            if i == group_start + parts - 1:
                self._scaler.step(self._optimizer)
                self._scaler.update()
                self._optimizer.zero_grad(set_to_none=True)
            total, steps = total + float(loss.detach()), steps + 1
            tick(1)
        recall = self._validate()
        score = _score(recall)
        best = not recall or score > self.best_recall
        self.since_best = 0 if best else self.since_best + 1
        if best:
            self.best_recall = score
        self.epoch = number + 1
        self._save(best)
        return Epoch(number, total / max(steps, 1), recall, best)

    def _loss(self, stages: list[Tensor], labels: Tensor) -> Tensor:
        output = self._describe(stages, self.branch)
        loss: Tensor = self.loss(output, labels)[0]
        if self._anchor is not None:
            # A code is held to the feature's similarities, whatever it began with.
            with torch.no_grad():
                anchor = self._anchor.branch("float", stages, self.size)
            loss = loss + self.config.loss.anchor * anchor_loss(
                output, anchor, binary=self.branch == "hash"
            )
        return loss

    def _learn_start(self) -> None:
        """From every training image as it is."""
        count = len(self.images.paths)
        tick = self._bar((2 if self.branch == "float" else 1) * count, "learning the start")
        keys = [(i, PLAIN) for i in range(count)]

        def stages() -> Iterator[list[Tensor]]:
            parts = [keys[i : i + _START_BATCH] for i in range(0, count, _START_BATCH)]
            for part, maps in zip(parts, self.source.batches(parts), strict=True):
                yield maps
                tick(len(part))

        learn_start(
            self.network.eval(),
            self.branch,
            stages,
            self.images.spread(_KMEANS_IMAGES),
            torch.tensor(self.images.pairs),
        )

    def finish(self) -> None:
        """Write the probability curve into the best checkpoint, fitted on a validation set.

        Raises:
            CheckpointError, DatasetError: see `Trainer`.
        """
        best = self.folder / BEST
        fitted = next((v for v in self.validations if v.fit_probability), None)
        if fitted is None or not best.exists() or self.network.float_branch is None:
            return
        opened = open_checkpoint(best)
        network = opened.network.to(self.device)
        self.network = network
        dataset = fitted.dataset
        changed = ImageReader(dataset.paths[: dataset.queries], *self.size, "camera")
        source = Source(self.config, network, changed, self.device, 0, self._bar)
        described = [
            self._describe_all(source_, count, seed, "float")
            for source_, count, seed in (
                (fitted.source, len(dataset.paths), PLAIN),
                (source, dataset.queries, self.config.optimizer.seed),
            )
        ]
        curve = dataset.probability_curve(*described)
        save_network(best, network, dataclasses.replace(opened.info, probability_curve=curve))

    def _describe_all(self, source: Source, count: int, seed: int, branch: str) -> Tensor:
        """Descriptors of images 0 to count - 1; each under an augmentation of its own."""
        keys = [(i, seed if seed == PLAIN else seed + i) for i in range(count)]
        parts = [keys[i : i + _VALIDATION_BATCH] for i in range(0, len(keys), _VALIDATION_BATCH)]
        self.network.eval()
        with torch.no_grad():
            outputs = [self._describe(stages, branch).cpu() for stages in source.batches(parts)]
        return torch.cat(outputs)

    def _validate(self) -> dict[str, float]:
        """R@1, R@5 and R@10 in percent, the mean over the validation sets."""
        recalls = []
        for one in self.validations:
            output = self._describe_all(one.source, len(one.dataset.paths), PLAIN, self.branch)
            recalls.append(one.dataset.recall(output, binary=self.branch == "hash"))
        return {
            k: sum(recall[k] for recall in recalls) / len(recalls) for k in (recalls or [{}])[0]
        }

    def _save(self, best: bool) -> None:
        info = self._info()
        if best:
            save_network(self.folder / BEST, self.network, info)
        progress = {
            "branch": self.branch,
            "epoch": self.epoch,
            "best_recall": self.best_recall,
            "since_best": self.since_best,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "settings": self._settings(),
        }
        save_network(self.folder / LAST, self.network, info, progress)

    def _info(self) -> CheckpointInfo:
        """What the checkpoint that it began with says, as far as that stays true."""
        began = self.start.info
        # The features that the curve was fitted on.
        same = self.branch == "hash" and began.size == self.size
        return dataclasses.replace(
            began,
            size=self.size,
            license=self.config.model.license or began.license,
            probability_curve=began.probability_curve if same else None,
        )

    def _settings(self) -> dict[str, Any]:
        """Those on which the result depends: of the cache whether there is one, not where."""
        flat = flatten(dataclasses.asdict(self.config))
        flat["cache.folder"] = bool(flat["cache.folder"])
        free = ("output", "optimizer.epochs", "data.workers")
        return {k: v for k, v in flat.items() if k not in free}

    def _restore(self, last: Path) -> None:
        content = read_checkpoint(last, AGAIN)
        progress = content.get("training")
        if not isinstance(progress, dict) or progress.get("branch") != self.branch:
            raise CheckpointError(
                f"{last}: is no run of the {self.branch} branch; set output to another folder"
            )
        with explained(last):
            then, now = dict(progress["settings"]), self._settings()
            changed = sorted(k for k in now if then.get(k) != now[k])
        if changed:
            raise ConfigError(
                f"{last}: began with other settings ({', '.join(changed)}); set them back, or set "
                "output to another folder"
            )
        load_into(self.network, last, read_state(last, content))
        with explained(last):
            load_optimizer(self._optimizer, progress["optimizer"])
            load_scaler(self._scaler, progress["scaler"])
            self.epoch = checked(progress["epoch"], "epoch")
            self.best_recall = checked(progress["best_recall"], "best_recall")
            self.since_best = checked(progress["since_best"], "since_best")


def _score(recall: dict[str, float]) -> float:
    """The best epoch has the highest R@1 + R@5."""
    return recall.get("1", 0.0) + recall.get("5", 0.0)


def _writable(output: str) -> Path:
    """The output folder, in which a file can be made."""
    try:
        folder = Path(output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    # A home that nobody has is a RuntimeError, a null character a ValueError.
    except (OSError, RuntimeError, ValueError) as e:
        raise ConfigError(
            f"{output}: cannot be written ({reason_of(e)}); set output to another folder"
        ) from e
