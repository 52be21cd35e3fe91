"""The frozen backbone's stages of every image and augmented view, on disk.

No gradient passes the backbone, so what it says of an image never changes, and an epoch needs the
branches alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashvpr_ros.errors import DatasetError, reason_of
from hashvpr_ros.file_io import MB, check_regular, read_text, replacing
from hashvpr_ros.model.graph import fingerprint
from hashvpr_ros.training.images import PLAIN, ImageReader

_BATCH = 8
_MOST_BYTES = 10**15


class StageCache:
    """Stages of images as float16, memory-mapped; made where it is not there, or is another's.

    Args:
        folder: for all caches; each has a folder of its own, named by what it is made of.
        network: whose stages are kept.
        stages_of: its stages of images uint8 [n, H, W, 3].
        reader: of the images.
        views: of each image; the first is plain.
        seed: of the augmentations.
        workers: processes that read images.
        progress: called with the number of images done.

    Raises:
        DatasetError: it cannot be written, for want of space say; or an image is damaged.
    """

    def __init__(
        self,
        folder: Path,
        network: Any,
        stages_of: Callable[[Tensor], list[Tensor]],
        reader: ImageReader,
        *,
        views: int,
        seed: int,
        workers: int,
        progress: Callable[[int], object],
    ) -> None:
        self.views = views
        self.count = len(reader.paths)
        mark = self._mark(network, reader, views, seed)
        self.folder = Path(os.path.expanduser(folder)) / mark[:32]
        try:
            complete = self.folder / "complete.json"
            if not complete.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                # Not what a link points to, which another may have put there.
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                lock = os.open(self.folder / "lock", flags, 0o644)
                try:
                    # Of two runs that want it the first makes it, and the second waits.
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not complete.is_file():
                        self._make(stages_of, reader, seed, workers, progress)
                finally:
                    os.close(lock)
            self._stages = self._opened(complete, self.count * views)
        # RecursionError: of lists within lists; OverflowError: of numbers that no size can be.
        except (OSError, ValueError, TypeError, RecursionError, OverflowError) as e:
            raise DatasetError(
                f"{self.folder}: the cache cannot be written or read ({reason_of(e)}); free some "
                "space, delete this folder, or set cache.folder to another"
            ) from e

    def _opened(self, complete: Path, total: int) -> list[np.memmap]:
        shapes = json.loads(read_text(complete, MB, error=DatasetError))
        stages = []
        for i, shape in enumerate(shapes):
            path = self.folder / f"{i}.f16"
            found = check_regular(path, _MOST_BYTES, error=DatasetError)
            if not all(type(v) is int and v > 0 for v in shape):
                raise ValueError(f"complete.json has {shape!r:.60} for a shape")
            if found.st_size != 2 * total * math.prod(shape):
                raise ValueError(f"{path.name} has {found.st_size} bytes, which do not fit")
            stages.append(np.memmap(path, np.float16, "r", shape=(total, *shape)))
        if not stages:
            raise ValueError("complete.json names no stages")
        return stages

    @staticmethod
    def _mark(network: Any, reader: ImageReader, views: int, seed: int) -> str:
        digest = hashlib.sha256(
            fingerprint(network.backbone, reader.height, reader.width).encode()
        )
        digest.update(f"{reader.kind} {views} {seed}".encode())
        for path in reader.paths:
            stat = path.stat()
            digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _make(
        self,
        stages_of: Callable[[Tensor], list[Tensor]],
        reader: ImageReader,
        seed: int,
        workers: int,
        progress: Callable[[int], object],
    ) -> None:
        rng = np.random.default_rng(seed)
        seeds = rng.integers(2**62, size=(self.count, self.views))
        seeds[:, 0] = PLAIN
        keys = [(i, int(seeds[i, v])) for i in range(self.count) for v in range(self.views)]
        batches = [keys[i : i + _BATCH] for i in range(0, len(keys), _BATCH)]
        files: list[np.memmap] = []
        done = 0
        for images in reader.batches(batches, workers):
            stages = stages_of(images)
            if not files:
                shapes = [(len(keys), *s.shape[1:]) for s in stages]
                files = self._reserve(shapes)
            for file, stage in zip(files, stages, strict=True):
                file[done : done + len(images)] = stage.half().cpu().numpy()
            done += len(images)
            progress(len(images))
        for file in files:
            file.flush()
        with replacing(self.folder / "complete.json", error=DatasetError) as temporary:
            temporary.write_text(json.dumps([shape[1:] for shape in shapes]))

    def _reserve(self, shapes: Sequence[tuple[int, ...]]) -> list[np.memmap]:
        # A write to mapped memory for which the disk has no space ends the process.
        sizes = [2 * math.prod(shape) for shape in shapes]
        paths = [self.folder / f"{i}.f16" for i in range(len(shapes))]
        try:
            for path, size in zip(paths, sizes, strict=True):
                path.unlink(missing_ok=True)
                with path.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as e:
            for path in paths:
                path.unlink(missing_ok=True)
            raise DatasetError(
                f"{self.folder}: the cache needs {sum(sizes) / 1e9:.3g} GB, which cannot be had "
                f"({e.strerror}); free some space, lower cache.views, or set cache.folder to "
                "another"
            ) from e
        return [
            np.memmap(path, np.float16, "r+", shape=shape)
            for path, shape in zip(paths, shapes, strict=True)
        ]

    def stages(self, keys: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Float32 [n, ...] for each stage; the seed of a key chooses among the views."""
        rows = np.array([i * self.views + (0 if s == PLAIN else s % self.views) for i, s in keys])
        return [torch.from_numpy(np.array(s[rows])).float() for s in self._stages]
