"""MultiConv adapters and the side network that they form (SelaVPR++, section III)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNormRelu(nn.Module):
    """Convolution that keeps the size, BatchNorm (eps 1e-3), ReLU."""

    def __init__(self, width_in: int, width_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(width_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class MultiConv(nn.Module):
    """What adapters have in common: convolutional branches of different reach over one map.

    1x1; 1x1 then 3x3; 1x1 then 5x5, of which a half, a quarter and a quarter of the channels come.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter, thin = width // 2, width // 4, width // 16
        self.branch1 = ConvNormRelu(width, half, 1)
        self.branch2 = nn.Sequential(ConvNormRelu(width, thin, 1), ConvNormRelu(thin, quarter, 3))
        self.branch3 = nn.Sequential(ConvNormRelu(width, thin, 1), ConvNormRelu(thin, quarter, 5))

    def convolve(self, x: Tensor) -> Tensor:
        """A map [N, width, h, w] to the branches' outputs side by side, of the same shape."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class TokenAdapter(MultiConv):
    """A MultiConv adapter over the tokens of a vision transformer.

    Linear down to half the width, ReLU, MultiConv on the patch tokens while the class token (and
    registers) pass by, the down-projection added, linear up.

    Args:
        width: D, of a token.
        prefix: tokens before those of the patches.
    """

    def __init__(self, width: int, prefix: int = 1) -> None:
        super().__init__(width // 2)
        self.prefix = prefix
        self.D_fc1 = nn.Linear(width, width // 2)
        self.D_fc2 = nn.Linear(width // 2, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [N, prefix + h * w, D] and their grid (h, w); returns the same shape."""
        down = functional.relu(self.D_fc1(x))
        patches = down[:, self.prefix :].transpose(1, 2).unflatten(2, grid)
        convolved = self.convolve(patches).flatten(2).transpose(1, 2)
        # The prefix is added to itself: so in the authors' network, whose weights expect it.
        mixed = torch.cat([down[:, : self.prefix], convolved], 1)
        return self.D_fc2(mixed + down)


class SideNetwork(nn.Module):
    """A stream y beside the backbone's x: y = y + adapter_i(y + x_i), after each adapted block.

    The backbone's tokens come in as constants, so no gradient passes the backbone, and its
    activations need not be kept (SelaVPR++, section III-B).

    Args:
        width: D, of a token.
        count: adapted blocks.
        prefix: tokens before those of the patches.
    """

    def __init__(self, width: int, count: int, prefix: int = 1) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(TokenAdapter(width, prefix) for _ in range(count))

    def forward(self, stages: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Tokens before the first adapted block and after each, [N, T, D]; returns y, the same."""
        y = stages[0]
        for adapter, x in zip(self.adapters, stages[1:], strict=True):
            y = y + adapter(y + x, grid)
        return y
