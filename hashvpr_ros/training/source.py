"""Where the training loop's batches come from: what the frozen backbone says of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
