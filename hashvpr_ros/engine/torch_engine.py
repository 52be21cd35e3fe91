"""The engine of checkpoints (`.pth`), by PyTorch: to evaluate a model before it is exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hashvpr_ros.engine.base import (
    AnsweringEngine,
    EngineInfo,
    check_answer,
    check_images,
    closed,
    runtime_errors,
)
from hashvpr_ros.errors import CheckpointError, ConfigError, EngineError
from hashvpr_ros.model.checkpoints import open_checkpoint
from hashvpr_ros.model.graph import EngineGraph, fingerprint


class TorchEngine(AnsweringEngine):
    """A checkpoint with both branches, on the GPU where torch sees one, else on the CPU.

    Args:
        path: of the .pth file.
        size: height and width of the images; None: what the checkpoint says, else its network's
            default.
        threads: of torch, for this process; 0 leaves them as they are.

    Raises:
        EngineError: the checkpoint is missing, damaged, foreign, or lacks a branch.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int] | None = None, threads: int = 0
    ) -> None:
        self.path = Path(os.path.expanduser(path))
        try:
            checkpoint = open_checkpoint(self.path)
            graph = EngineGraph(checkpoint.network)
            checkpoint.network.check_size(*(size or checkpoint.size))
        except (CheckpointError, ConfigError) as e:
            text = str(e)
            raise EngineError(text if str(self.path) in text else f"{self.path}: {text}") from e
        if threads:
            torch.set_num_threads(threads)
        height, width = size or checkpoint.size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._graph: EngineGraph | None = graph.to(self._device).eval()
        self.info = EngineInfo(
            name=checkpoint.network.name,
            fingerprint=fingerprint(checkpoint.network, height, width),
            height=height,
            width=width,
            feature_dim=checkpoint.network.feature_dim,
            provider=f"PyTorch {self._device.type}",
            license=checkpoint.info.license,
            version=checkpoint.info.version,
            probability_curve=checkpoint.info.probability_curve,
            local_shape=graph.local_shape(height, width),
        )

    def _answer(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        if self._graph is None:
            raise closed(self.path)
        images = check_images(images, self.info, self.path)
        remedy = "close what fills the memory, or export it and give the .onnx"
        with runtime_errors(self.path, "PyTorch failed", remedy), torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            answer = [t.cpu().numpy() for t in self._graph(batch)]
        check_answer(answer, len(images), self.info, self.path)
        return answer

    def close(self) -> None:
        """See `DescriptorEngine.close`."""
        self._graph = None
