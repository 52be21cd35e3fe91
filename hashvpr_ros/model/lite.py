"""The lite network: frozen EfficientNet-Lite0, a side network of MultiConv adapters, two branches.

What is learned in closed form (training.lite_start) stands in `head` and `code`; the adapters
begin by adding nothing, so that training starts from the classical descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.model.adapters import MultiConv
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite0, channels
from hashvpr_ros.types import CODE_BITS

TAPS = (6, 13)
GRID = (3, 4)
FEATURE_DIM = 640
_ADAPTER_WIDTHS = (48, 64)
# Of a descriptor: the grid of the first tap as it is, and of both with each channel normalised.
POOLED_DIM = GRID[0] * GRID[1] * (2 * channels(TAPS[0]) + channels(TAPS[1]))


class MapAdapter(MultiConv):
    """A MultiConv adapter over a map: 1x1 down, ReLU, MultiConv, down added, 1x1 up.

    Args:
        channels_in: of the map.
        width: of the adapter, a multiple of 16.
    """

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__(width)
        self.down = nn.Conv2d(channels_in, width, 1)
        self.up = nn.Conv2d(width, channels_in, 1)
        nn.init.zeros_(self.up.weight)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same."""
        down = functional.relu(self.down(x))
        return self.up(self.convolve(down) + down)


class LiteSide(nn.Module):
    """The stream y beside both stages: y = x + adapter(x + what y was at the stage before)."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (channels(t) for t in TAPS)
        self.adapters = nn.ModuleList(
            MapAdapter(c, w) for c, w in zip((first, second), _ADAPTER_WIDTHS, strict=True)
        )
        self.between = nn.Conv2d(first, second, 1)
        nn.init.zeros_(self.between.weight)
        assert self.between.bias is not None
        nn.init.zeros_(self.between.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """[N, 80, h, w] and [N, 192, h / 2, w / 2] to the same."""
        x, later = stages
        y = x + self.adapters[0](x)
        carried = self.between(functional.avg_pool2d(y, 2))
        return [y, later + self.adapters[1](later + carried)]


def pool(maps: Sequence[Tensor]) -> Tensor:
    """Grids of both maps, L2-normalised part by part and as a whole, float32 [N, POOLED_DIM].

    A channel less its mean over the image, divided by its deviation there, says where in the
    image something is rather than how much of it: light and weather change the latter.
    """
    first, second = maps
    cells, later_cells = _grid(first), _grid(second)
    parts = [cells, _contrast(first, cells), _contrast(second, later_cells)]
    return torch.cat([unit(p.flatten(1)) for p in parts], 1) * len(parts) ** -0.5


def _grid(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, (int(x.shape[2]) // GRID[0], int(x.shape[3]) // GRID[1]))


def _contrast(x: Tensor, cells: Tensor) -> Tensor:
    # The cells are of one size, so that their mean is that of the map.
    mean = cells.mean((2, 3), keepdim=True)
    return (cells - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-3).sqrt()


def unit(x: Tensor) -> Tensor:
    """Rows [N, D] of norm 1; `functional.normalize` with two operations fewer in a graph."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


class LiteBranch(nn.Module):
    """A linear layer on the pooled maps, L2-normalised."""

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(POOLED_DIM, output_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        return unit(self.head(pooled))


class LiteFloatBranch(LiteBranch):
    """The side network and the head behind it."""

    def __init__(self) -> None:
        super().__init__(FEATURE_DIM)
        self.side = LiteSide()


class LiteNetwork(nn.Module):
    """See the module. The hash branch stands on the float branch's side network, to spare time."""

    pixel_mean = (127 / 255,) * 3
    pixel_std = (128 / 255,) * 3
    default_size = (192, 256)
    name = "hashvpr_lite"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(TAPS)
        self.float_branch = LiteFloatBranch()
        self.hash_branch: LiteBranch | None = None

    def add_branch(self, branch: str) -> None:
        """A new branch in the place of what was there."""
        if branch == "hash":
            self.hash_branch = LiteBranch(CODE_BITS)
        else:
            self.float_branch = LiteFloatBranch()

    @property
    def feature_dim(self) -> int:
        """D of the features."""
        return FEATURE_DIM

    def learning(self, branch: str) -> nn.Module:
        """What of a branch is trained: of the float branch the side network, not the whitening."""
        if branch == "float":
            return self.float_branch.side
        assert self.hash_branch is not None
        return self.hash_branch

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError where images of this size, in pixels, cannot be described."""
        if height % (32 * GRID[0]) or width % (32 * GRID[1]):
            raise ConfigError(
                f"the lite network takes heights that are multiples of {32 * GRID[0]} and widths "
                f"that are multiples of {32 * GRID[1]} pixels, not {height} x {width}"
            )

    def stages(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps; no gradient passes.

        Args:
            images: float32 [N, 3, H, W], normalised.

        Returns:
            float32 [N, 80, H / 16, W / 16] and [N, 192, H / 32, W / 32].
        """
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images)
        return maps

    def branch(self, name: str, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature [N, 640] of branch "float" or logits [N, 512] of "hash", L2-normalised."""
        pooled = pool(self.float_branch.side(stages))
        output: Tensor = getattr(self, f"{name}_branch")(pooled)
        return output

    def frozen(self, images: Tensor) -> Tensor:
        """What the backbone says without any training: its maps pooled, [N, POOLED_DIM]."""
        return pool(self.stages(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Feature and hash logits, each L2-normalised; None without the hash branch."""
        pooled = pool(self.float_branch.side(self.stages(images)))
        logits = None if self.hash_branch is None else self.hash_branch(pooled)
        return self.float_branch(pooled), logits
