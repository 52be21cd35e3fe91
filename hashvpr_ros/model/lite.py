"""The lite network: frozen EfficientNet-Lite2, adapters beside it, NetVLAD, two linear layers.

The pooling and both linear layers are learned in closed form (training.lite_start). The adapters
start at zero, so training starts from the closed-form descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.model.adapters import MultiConv
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite, channels
from hashvpr_ros.model.pooling import NetVlad
from hashvpr_ros.types import CODE_BITS

VARIANT = 2  # of EfficientNet-Lite
TAPS = (10, 14)  # blocks whose outputs are pooled
CENTRES = 32  # of each NetVLAD
FEATURE_DIM = 640
LOCAL_DIM = 48
STRIDE = 16  # pixels of the image for one cell of a map
_TAP_WEIGHTS = (0.7, 1.0)
_ADAPTER_WIDTH = 48
_ROOT_EPSILON = 1e-6  # keeps the gradient of the square root finite
POOLED_DIM = CENTRES * sum(channels(VARIANT, t) + 1 for t in TAPS)


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

    @property
    def adds_nothing(self) -> bool:
        """Whether its output is zero for every input, as at the start of training."""
        assert self.up.bias is not None
        return not bool(self.up.weight.any()) and not bool(self.up.bias.any())

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same."""
        down = functional.relu(self.down(x))
        return self.up(self.convolve(down) + down)


class LiteSide(nn.Module):
    """The stream y beside both maps: y = x + adapter(x + y of the map before)."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (channels(VARIANT, t) for t in TAPS)
        self.adapters = nn.ModuleList(MapAdapter(c, _ADAPTER_WIDTH) for c in (first, second))
        self.between = nn.Conv2d(first, second, 1)
        nn.init.zeros_(self.between.weight)
        assert self.between.bias is not None
        nn.init.zeros_(self.between.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """[N, 88, h, w] and [N, 120, h, w] to the same."""
        x, later = stages
        y = x + self.adapters[0](x)
        return [y, later + self.adapters[1](later + self.between(y))]


def unit(x: Tensor) -> Tensor:
    """Rows [N, D] of norm 1; `functional.normalize` with two operations fewer in a graph."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


class LiteFloatBranch(nn.Module):
    """Adapters, NetVLAD of both maps, signed square root, linear layer, L2."""

    def __init__(self) -> None:
        super().__init__()
        self.side = LiteSide()
        self.pools = nn.ModuleList(NetVlad(channels(VARIANT, t), CENTRES) for t in TAPS)
        self.head = nn.Linear(POOLED_DIM, FEATURE_DIM)

    def pool(self, stages: Sequence[Tensor]) -> Tensor:
        """The maps [N, C, h, w] to the pooled descriptor [N, POOLED_DIM].

        The signed square root damps repeated structure in an image.
        """
        total = sum(w * w for w in _TAP_WEIGHTS) ** 0.5
        maps = self.side(stages)
        parts = [
            pool(y) * (weight / total)
            for pool, y, weight in zip(self.pools, maps, _TAP_WEIGHTS, strict=True)
        ]
        x = torch.cat(parts, 1)
        return x / (x.abs() + _ROOT_EPSILON).sqrt()

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """The backbone's maps to the feature [N, 640]."""
        return unit(self.head(self.pool(stages)))


class LiteHashBranch(nn.Module):
    """A linear layer on the feature, L2-normalised; the code is its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURE_DIM, CODE_BITS)

    def forward(self, feature: Tensor) -> Tensor:
        return unit(self.head(feature))


class LiteLocalBranch(nn.Module):
    """Local descriptors: each cell of the first map, L2-normalised, projected, L2-normalised.

    SelaVPR (Lu et al., ICLR 2024, section 3.3) re-ranks by such descriptors of patches.
    """

    def __init__(self) -> None:
        super().__init__()
        # Set in closed form: no random start.
        self.weight = nn.Parameter(torch.eye(LOCAL_DIM, channels(VARIANT, TAPS[0])))
        self.bias = nn.Parameter(torch.zeros(LOCAL_DIM))

    @staticmethod
    def shape(height: int, width: int) -> tuple[int, int, int]:
        """Rows, columns and values for images of a size, in pixels."""
        return height // STRIDE, width // STRIDE, LOCAL_DIM

    def cells(self, stages: Sequence[Tensor]) -> Tensor:
        """The map [N, C, h, w] to its cells of norm 1, [N, h, w, C]."""
        return functional.normalize(stages[0].permute(0, 2, 3, 1), dim=3, eps=1e-6)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """The backbone's maps to local descriptors [N, h, w, 48]."""
        projected = functional.linear(self.cells(stages), self.weight, self.bias)
        return functional.normalize(projected, dim=3, eps=1e-6)


class LiteNetwork(nn.Module):
    """See the module. The hash branch takes the feature of the float branch."""

    pixel_mean = (127 / 255,) * 3
    pixel_std = (128 / 255,) * 3
    default_size = (192, 256)
    name = "hashvpr_lite"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite(VARIANT, TAPS)
        self.float_branch = LiteFloatBranch()
        self.local_branch = LiteLocalBranch()
        self.hash_branch: LiteHashBranch | None = None

    def add_branch(self, branch: str) -> None:
        """A new branch that replaces the present one."""
        if branch == "hash":
            self.hash_branch = LiteHashBranch()
        else:
            self.float_branch = LiteFloatBranch()

    @property
    def feature_dim(self) -> int:
        """D of the features."""
        return FEATURE_DIM

    def learning(self, branch: str) -> nn.Module:
        """The part that is trained: the adapters of the float branch, or the hash branch."""
        if branch == "float":
            return self.float_branch.side
        assert self.hash_branch is not None
        return self.hash_branch

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError where images of this size, in pixels, cannot be described."""
        if height % STRIDE or width % STRIDE:
            raise ConfigError(
                f"the lite network takes heights and widths that are multiples of {STRIDE} "
                f"pixels, not {height} x {width}"
            )

    def stages(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps; no gradient passes.

        Args:
            images: float32 [N, 3, H, W], normalised.

        Returns:
            float32 [N, 88, H / 16, W / 16] and [N, 120, H / 16, W / 16].
        """
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images)
        return maps

    def branch(self, name: str, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature [N, 640] of branch "float" or logits [N, 512] of "hash", L2-normalised."""
        feature: Tensor = self.float_branch(stages)
        if name == "float":
            return feature
        assert self.hash_branch is not None
        logits: Tensor = self.hash_branch(feature)
        return logits

    def frozen(self, images: Tensor) -> Tensor:
        """What the backbone gives without any training: the means of its maps, [N, 208]."""
        return torch.cat([x.mean((2, 3)) for x in self.stages(images)], 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Feature and hash logits, each L2-normalised; None without the hash branch."""
        feature, logits, _ = self.with_locals(images)
        return feature, logits

    def with_locals(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same, and the local descriptors [N, H / 16, W / 16, 48] of norm 1."""
        stages = self.stages(images)
        feature: Tensor = self.float_branch(stages)
        logits = None if self.hash_branch is None else self.hash_branch(feature)
        return feature, logits, self.local_branch(stages)
