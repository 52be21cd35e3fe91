"""Where the training loop's batches come from: what the frozen backbone says of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashvpr_ros.model.graph import Normalise
from hashvpr_ros.training.cache import StageCache
from hashvpr_ros.training.config import TrainConfig
from hashvpr_ros.training.images import ImageReader


class Source:
    """Stages of images by (number, seed): from the cache, or from the images.

    Args:
        config: of the run.
        network: whose backbone sees the images.
        reader: of the images.
        device: of the network.
        views: kept of each image where the run has a cache; 0: none is used.
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
        self._normalise = Normalise(network).to(device)
        self._workers = config.data.workers
        self._cache: StageCache | None = None
        if config.cache.folder and views:
            self._cache = StageCache(
                Path(config.cache.folder),
                network,
                self._stages,
                reader,
                views=views,
                seed=config.optimizer.seed,
                workers=self._workers,
                progress=bar(len(reader.paths) * views, "caching features"),
            )

    def _stages(self, images: Tensor) -> list[Tensor]:
        stages: list[Tensor] = self._network.stages(self._normalise(images.to(self._device)))
        return stages

    def batches(self, keys: list[list[tuple[int, int]]]) -> Iterator[list[Tensor]]:
        """The stages of each list of keys, on the network's device."""
        if self._cache is not None:
            for part in keys:
                yield [s.to(self._device) for s in self._cache.stages(part)]
            return
        for images in self._reader.batches(keys, self._workers):
            yield self._stages(images)
