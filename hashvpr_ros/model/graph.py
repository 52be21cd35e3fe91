"""The engine's function around a network: images as bytes in, packed codes and features out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashvpr_ros.errors import CheckpointError
from hashvpr_ros.model.hashing import PackBits


class Normalise(nn.Module):
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] by a network's `pixel_mean` and `pixel_std`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(v).reshape(3, 1, 1) for v in (network.pixel_mean, network.pixel_std)
        )
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """What the network takes."""
        # Cast first: TensorRT knows bytes at the graph's ends alone.
        return images.float().permute(0, 3, 1, 2) * self.scale - self.shift


class EngineGraph(nn.Module):
    """uint8 [N, H, W, 3] to codes uint8 [N, 64] and features float32 [N, D].

    A network with local descriptors gives them, too: float32 [N, rows, columns, V].

    Args:
        network: images float32 [N, 3, H, W], normalised by its `pixel_mean` and `pixel_std`, to
            feature and hash logits.

    Raises:
        CheckpointError: the network lacks one of its branches.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for branch, what in (("float_branch", "features"), ("hash_branch", "codes")):
            if getattr(network, branch, None) is None:
                raise CheckpointError(
                    f"the network has no {branch.replace('_', ' ')}, so it gives no {what}; give "
                    "a checkpoint with both, SelaVPRplusplus_*_rerank.pth say, or train the other"
                )
        self.network = network
        self.normalise = Normalise(network)
        self.pack = PackBits()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` gives."""
        has_locals = getattr(self.network, "local_branch", None) is not None
        return ("codes", "features", "locals") if has_locals else ("codes", "features")

    def local_shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        """Rows, columns and values of local descriptors of images of a size, in pixels."""
        if "locals" not in self.outputs:
            return None
        shape: tuple[int, int, int] = self.network.local_branch.shape(height, width)
        return shape

    def unpacked(self, images: Tensor) -> tuple[Tensor, ...]:
        """The same with hash logits float32 [N, 512] instead of codes."""
        images = self.normalise(images)
        if "locals" in self.outputs:
            feature, logits, local = self.network.with_locals(images)
            return logits, feature, local
        feature, logits = self.network(images)
        return logits, feature

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What `outputs` names."""
        logits, *rest = self.unpacked(images)
        return self.pack(logits), *rest


def fingerprint(
    network: nn.Module,
    height: int,
    width: int,
    precision: str = "fp32",
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> str:
    """SHA-256 over the input size, precision, and names, shapes and bytes of all weights.

    Descriptors of equal fingerprints can be compared; those of others cannot.

    Args:
        constants: what else decides the codes: at int8 the scales that a calibration found.
    """
    digest = hashlib.sha256(f"{height}x{width} {precision}".encode())
    weights = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
    for values in (weights, constants or {}):
        for name, value in sorted(values.items()):
            array = np.ascontiguousarray(value)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
