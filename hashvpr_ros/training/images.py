"""Images of places as batches, each a function of the seed, the epoch and its number alone.

So a run that was killed goes on with the very images that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.preprocess import resize
from hashvpr_ros.errors import ConfigError, HashVprError
from hashvpr_ros.training.camera import random_camera

PLAIN = -1  # in the place of a seed: the image itself
_RANDAUGMENT_OPERATIONS, _RANDAUGMENT_MAGNITUDE = 3, 15


def augment(image: NDArray[np.uint8], kind: str, seed: int) -> NDArray[np.uint8]:
    """An image as it might have looked otherwise.

    Args:
        image: uint8 [H, W, 3].
        kind: randaugment (Cubuk et al., CVPRW 2020), camera, or none.
        seed: of the randomness; PLAIN leaves the image as it is.

    Returns:
        uint8 [H, W, 3].
    """
    if seed == PLAIN or kind == "none":
        return image
    if kind == "camera":
        return random_camera(image, np.random.default_rng(seed))
    try:
        from kornia.augmentation.auto import RandAugment
    except ImportError as e:
        raise ConfigError(
            "data.augmentation randaugment needs kornia; pip install kornia, or choose camera"
        ) from e
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = RandAugment(n=_RANDAUGMENT_OPERATIONS, m=_RANDAUGMENT_MAGNITUDE)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        changed = policy(pixels)[0].permute(1, 2, 0)
    return (changed.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


class ImageReader(Dataset[Tensor | HashVprError]):
    """Images by (number, seed): read, resized by the one resize, augmented.

    Args:
        paths: of the images.
        height, width: pixels.
        kind: of augmentation.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int, kind: str) -> None:
        self.paths, self.height, self.width, self.kind = list(paths), height, width, kind

    def __getitem__(self, key: tuple[int, int]) -> Tensor | HashVprError:
        number, seed = key
        # Returned, for what a worker raises comes as the text of its traceback.
        try:
            image = resize(read_image(self.paths[number]), self.height, self.width)
            return torch.from_numpy(augment(image, self.kind, seed).copy())
        except HashVprError as e:
            return e

    def batches(self, keys: Sequence[Sequence[tuple[int, int]]], workers: int) -> Iterator[Tensor]:
        """uint8 [n, H, W, 3] for each list of (number, seed).

        Raises:
            ConfigError: the kind of augmentation needs a package that is missing.
            DatasetError: an image is missing or damaged.
        """
        loader: Any = DataLoader(
            self,
            batch_sampler=keys,  # type: ignore[arg-type]
            num_workers=workers,
            worker_init_fn=_one_thread,
            collate_fn=_batch,
        )
        for batch in loader:
            if isinstance(batch, HashVprError):
                raise batch
            yield batch


def _batch(images: list[Tensor | HashVprError]) -> Any:
    error = next((i for i in images if isinstance(i, HashVprError)), None)
    return error or default_collate(images)


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def plan_epoch(
    places: Sequence[Sequence[int]],
    places_per_batch: int,
    images_per_place: int,
    seed: int,
    epoch: int,
) -> list[tuple[list[tuple[int, int]], list[int]]]:
    """The batches of an epoch: keys for `ImageReader`, and place labels.

    Args:
        places: numbers of the images of each.

    Every place comes once an epoch; the last batch may be smaller. A place with fewer images than
    asked for repeats them, each time under another augmentation.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(places))
    batches = []
    for begin in range(0, len(order), places_per_batch):
        chosen = order[begin : begin + places_per_batch]
        if len(chosen) < 2:
            break  # one place alone has no negatives
        keys, labels = [], []
        for place in chosen:
            count = len(places[place])
            picks = rng.permutation(max(count, images_per_place))[:images_per_place] % count
            for pick in picks:
                keys.append((int(places[place][pick]), int(rng.integers(2**62))))
                labels.append(int(place))
        batches.append((keys, labels))
    return batches
