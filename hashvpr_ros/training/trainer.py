"""The training loop: epochs, checkpoints, resuming, early stop.

An epoch is a function of the weights before it, the seed and its number, so that a run which was
killed and goes on from its last epoch ends as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashvpr_ros.errors import CheckpointError, ConfigError
from hashvpr_ros.model.checkpoints import (
    CheckpointInfo,
    load_into,
    read_checkpoint,
    read_state,
    save_network,
)
from hashvpr_ros.training.cache import StageCache
from hashvpr_ros.training.config import TrainConfig, flatten
from hashvpr_ros.training.images import PLAIN, ImageReader, plan_epoch
from hashvpr_ros.training.losses import LOSSES
from hashvpr_ros.training.places import read_places
from hashvpr_ros.training.stages import learning_part, set_train, start_network
from hashvpr_ros.training.validation import Validation

_VALIDATION_BATCH = 16
LAST, BEST = "last.pth", "best.pth"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to."""

    number: int  # from 0
    loss: float
    recall: dict[str, float]  # "1", "5", "10": percent; empty without validation
    best: bool


class Source:
    """Stages of images by (number, seed): from the cache, or from the images.

    Args:
        config: of the run.
        network: whose backbone sees the images.
        reader: of the images.
        device: of the network.
        views: kept of each image where there is a cache.
        bar: makes a progress callback from a total and what is done.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: Any,
        reader: ImageReader,
        device: torch.device,
        views: int,
        bar: Callable[[int, str], Callable[[int], object]],
    ) -> None:
        self._network, self._reader, self._device = network, reader, device
        self._workers = config.data.workers
        self._cache: StageCache | None = None
        if config.cache.folder:
            self._cache = StageCache(
                Path(config.cache.folder),
                network,
                self._normalise,
                reader,
                views=views,
                seed=config.optimizer.seed,
                workers=self._workers,
                progress=bar(len(reader.paths) * views, "caching features"),
            )

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(self._network, images.to(self._device))

    def batches(self, keys: list[list[tuple[int, int]]]) -> Iterator[list[Tensor]]:
        """The stages of each list of keys, on the network's device."""
        if self._cache is not None:
            for part in keys:
                yield [s.to(self._device) for s in self._cache.stages(part)]
            return
        for images in self._reader.batches(keys, self._workers):
            yield self._network.stages(self._normalise(images))


def normalise(network: Any, images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] by the network's mean and deviation."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(v, device=pixels.device).reshape(3, 1, 1)
        for v in (network.pixel_mean, network.pixel_std)
    )
    return (pixels - mean) / std


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
        self.folder = Path(config.output).expanduser()
        last = self.folder / LAST
        if last.exists() and not resume:
            raise ConfigError(
                f"{self.folder}: holds a run already; go on with it by --resume, or set output to "
                "another folder"
            )
        data = config.data
        torch.manual_seed(config.optimizer.seed)
        self.network = start_network(config.model, branch)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self.device)
        self.size = (data.height, data.width)
        self.network.check_size(*self.size)
        if not data.folder:
            raise ConfigError("data.folder is empty; set it to the folder of training images")
        self.places = read_places(
            Path(data.folder), data.layout, data.first_place, data.last_place
        )
        reader = ImageReader(
            [p for place in self.places for p in place], *self.size, data.augmentation
        )
        self.source = Source(config, self.network, reader, self.device, config.cache.views, bar)
        self.validation: Validation | None = None
        if data.validation_folder:
            self.validation = Validation(
                Path(data.validation_folder), data.validation_first, data.validation_last
            )
            plain = ImageReader(self.validation.paths, *self.size, "none")
            self._validation_source = Source(config, self.network, plain, self.device, 1, bar)
        self.loss = LOSSES[branch](config.loss).to(self.device)
        self._optimizer = torch.optim.AdamW(
            learning_part(self.network, branch).parameters(),
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
        if resume and last.exists():
            self._restore(last)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._half is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._half)

    def _describe(self, stages: list[Tensor]) -> Tensor:
        with self._autocast():
            output: Tensor = self.network.branch(self.branch, stages, self.size)
        return output.float()

    def epochs(self) -> Iterator[Epoch]:
        """Train, an epoch at a time, until it no longer gets better; writes the checkpoints."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.epoch) as log:
            while (
                self.epoch < self.config.optimizer.epochs
                and self.since_best < self.config.optimizer.patience
            ):
                result = self._epoch(log)
                log.add_scalar("loss", result.loss, result.number)
                log.add_scalar("learning_rate", self._rate(result.number), result.number)
                for k, value in result.recall.items():
                    log.add_scalar(f"recall/{k}", value, result.number)
                yield result

    def _rate(self, epoch: int) -> float:
        settings = self.config.optimizer
        halvings = epoch // settings.halve_every if settings.halve_every else 0
        return settings.learning_rate * 0.5**halvings

    def _epoch(self, log: Any) -> Epoch:
        settings, number = self.config.optimizer, self.epoch
        torch.manual_seed(settings.seed + 1_000_003 * (number + 1))  # of dropout
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(number)
        plan = plan_epoch(
            self.places,
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
        score = recall.get("1", 0.0) + recall.get("5", 0.0)
        best = not recall or score > self.best_recall
        self.since_best = 0 if best else self.since_best + 1
        if best:
            self.best_recall = score
        self.epoch = number + 1
        self._save(best)
        return Epoch(number, total / max(steps, 1), recall, best)

    def _loss(self, stages: list[Tensor], labels: Tensor) -> Tensor:
        loss, _ = self.loss(self._describe(stages), labels)
        return loss

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        self.network.eval()
        keys = [(i, PLAIN) for i in range(len(self.validation.paths))]
        parts = [keys[i : i + _VALIDATION_BATCH] for i in range(0, len(keys), _VALIDATION_BATCH)]
        with torch.no_grad():
            outputs = [
                self._describe(stages).cpu() for stages in self._validation_source.batches(parts)
            ]
        return self.validation.recall(torch.cat(outputs), binary=self.branch == "hash")

    def _save(self, best: bool) -> None:
        info = CheckpointInfo(size=self.size, license=self.config.model.license)
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

    def _settings(self) -> dict[str, Any]:
        """Those on which the result depends."""
        flat = flatten(dataclasses.asdict(self.config))
        free = ("output", "optimizer.epochs", "data.workers", "cache.folder")
        return {k: v for k, v in flat.items() if k not in free}

    def _restore(self, last: Path) -> None:
        content = read_checkpoint(last)
        progress = content.get("training")
        if not isinstance(progress, dict) or progress.get("branch") != self.branch:
            raise CheckpointError(
                f"{last}: is no run of the {self.branch} branch; set output to another folder"
            )
        then, now = progress.get("settings", {}), self._settings()
        changed = sorted(k for k in now if then.get(k) != now[k])
        if changed:
            raise ConfigError(
                f"{last}: began with other settings ({', '.join(changed)}); set them back, or set "
                "output to another folder"
            )
        load_into(self.network, last, read_state(last, content))
        try:
            self._optimizer.load_state_dict(progress["optimizer"])
            self._scaler.load_state_dict(progress["scaler"])
            self.epoch = int(progress["epoch"])
            self.best_recall = float(progress["best_recall"])
            self.since_best = int(progress["since_best"])
        except (KeyError, ValueError, TypeError) as e:
            raise CheckpointError(
                f"{last}: its training state is malformed ({e}); delete it and start again"
            ) from e
