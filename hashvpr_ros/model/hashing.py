"""From hash logits to codes: the sign, its straight-through gradient, and packing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits: Tensor) -> Tensor:
        return torch.where(logits >= 0, 1.0, -1.0).to(logits.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sign(logits: Tensor) -> Tensor:
    """+1 where a logit is at least 0, else -1; its gradient is the identity (straight-through).

    Bengio et al., 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    signs: Tensor = _Sign.apply(logits)
    return signs


class PackBits(nn.Module):
    """Logits float [N, 8 B] to bytes uint8 [N, B], most significant bit first (numpy.packbits).

    Arithmetic on floats, since the runtimes' ONNX parsers have no bit operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "bit_values", 2.0 ** torch.arange(7, -1, -1).reshape(8, 1), persistent=False
        )

    def forward(self, logits: Tensor) -> Tensor:
        count = int(logits.shape[1]) // 8
        bits = (logits >= 0).float().reshape(-1, count, 8)
        return (bits @ self.bit_values).reshape(-1, count).to(torch.uint8)
