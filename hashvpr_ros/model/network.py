"""SelaVPR++: one frozen backbone pass, and two branches beside it.

Lu et al., "SelaVPR++: Towards Seamless Adaptation of Foundation Models for Efficient Place
Recognition", IEEE TPAMI 48(3), 2026 (arXiv 2502.16601), section III.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.model.adapters import SideNetwork
from hashvpr_ros.model.dinov2 import PATCH, SIZES, DinoV2, grid_of
from hashvpr_ros.model.pooling import AGGREGATIONS, GeM
from hashvpr_ros.types import CODE_BITS

FLOAT_DIMS = {"small": 1024, "base": 2048, "large": 4096}  # published for base and large


@dataclass(frozen=True)
class NetworkConfig:
    """What network a checkpoint holds."""

    backbone: str = "base"  # a key of model.dinov2.SIZES
    registers: int = 0
    aggregation: str = "gem"  # of the float branch: a key of model.pooling.AGGREGATIONS
    float_branch: bool = True
    hash_branch: bool = True
    float_dim: int = 0  # of the GeM head's output; 0: as published

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backbone", self.backbone, SIZES),
            ("aggregation", self.aggregation, AGGREGATIONS),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if not (self.float_branch or self.hash_branch):
            raise ConfigError("a network needs a float branch, a hash branch, or both")
        for name in ("registers", "float_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= 65536:
                raise ConfigError(f"{name} must be a whole number from 0, not {value!r}")

    @property
    def name(self) -> str:
        """For people and metadata: selavprpp-dinov2-base-gem."""
        suffix = f"-reg{self.registers}" if self.registers else ""
        branches = "" if self.float_branch and self.hash_branch else "-float"
        if not self.float_branch:
            branches = "-hash"
        return f"selavprpp-dinov2-{self.backbone}{suffix}-{self.aggregation}{branches}"


class GemHead(nn.Module):
    """Linear on each patch, L2, GeM, linear, L2 (SelaVPR++, section III-C).

    Args:
        width: D, of a token.
        output_dim: of the result.
    """

    def __init__(self, width: int, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.project = nn.Linear(width, width)
        self.pool = GeM(width)
        self.output = nn.Linear(width, output_dim)

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        x = self.project(patches.flatten(2).transpose(1, 2)).transpose(1, 2)
        pooled = self.pool(x.unflatten(2, patches.shape[2:]), class_token)
        return functional.normalize(self.output(pooled))


class Branch(nn.Module):
    """A side network and the head on its patch tokens.

    Args:
        width, adapted, prefix: see `SideNetwork`.
        head: patches [N, D, h, w] and class token [N, D] to an L2-normalised [N, output_dim].
    """

    def __init__(self, width: int, adapted: int, prefix: int, head: nn.Module) -> None:
        super().__init__()
        self.side = SideNetwork(width, adapted, prefix)
        self.head = head
        self.prefix = prefix

    def forward(
        self,
        stages: Sequence[Tensor],
        norm: Callable[[Tensor], Tensor],
        grid: tuple[int, int],
    ) -> Tensor:
        """Tokens [N, T, D] of the backbone; returns float32 [N, output_dim], L2-normalised."""
        tokens = norm(self.side(stages, grid))
        patches = tokens[:, self.prefix :].transpose(1, 2).unflatten(2, grid)
        return self.head(patches, tokens[:, 0])


class SelaVpr(nn.Module):
    """The published network. Its backbone takes no gradient, whatever is called.

    Args:
        config: which of the published variants.
    """

    # ImageNet's, of pixels from 0 to 1.
    pixel_mean = (0.485, 0.456, 0.406)
    pixel_std = (0.229, 0.224, 0.225)
    default_size = (322, 322)  # height and width in pixels, of the published evaluation

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = DinoV2(config.backbone, config.registers)
        self.backbone.requires_grad_(False)
        self.float_branch: Branch | None = None
        self.hash_branch: Branch | None = None
        for branch in ("float", "hash"):
            if getattr(config, f"{branch}_branch"):
                self.add_branch(branch)

    def add_branch(self, branch: str) -> None:
        """A new float or hash branch in the place of what was there."""
        if branch == "float":
            self.config = replace(self.config, float_branch=True)
        else:
            self.config = replace(self.config, hash_branch=True)
        config, size = self.config, self.backbone.size
        dim = config.float_dim or FLOAT_DIMS[config.backbone]
        head: nn.Module
        if branch == "hash":
            head = GemHead(size.width, CODE_BITS)
        elif config.aggregation == "gem":
            head = GemHead(size.width, dim)
        else:
            head = AGGREGATIONS[config.aggregation](size.width)
        adapted = size.depth - size.first_adapted
        made = Branch(size.width, adapted, self.backbone.prefix_tokens, head)
        setattr(self, f"{branch}_branch", made)

    @property
    def name(self) -> str:
        """See `NetworkConfig.name`."""
        return self.config.name

    @property
    def feature_dim(self) -> int:
        """D of the features; 0 without a float branch."""
        return 0 if self.float_branch is None else int(self.float_branch.head.output_dim)

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError where images of this size, in pixels, cannot be described."""
        rows, columns = grid_of(torch.empty(0, 3, height, width))
        clusters = getattr(getattr(self.float_branch, "head", None), "clusters", 0)
        if rows * columns <= clusters:
            raise ConfigError(
                f"SALAD needs more than {clusters} patches, not {rows * columns}; give a larger "
                "input size"
            )

    def train(self, mode: bool = True) -> SelaVpr:
        """As usual, but the backbone stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    def stages(self, images: Tensor) -> list[Tensor]:
        """The backbone's tokens that the branches need; no gradient passes.

        Args:
            images: float32 [N, 3, H, W], normalised; H and W multiples of 14.

        Returns:
            float32 [N, T, D] each.

        Raises:
            ConfigError: H or W is no multiple of 14.
        """
        with torch.no_grad():
            return self.backbone.stages(images)

    def learning(self, branch: str) -> nn.Module:
        """What of a branch is trained: all of it."""
        part: nn.Module = getattr(self, f"{branch}_branch")
        return part

    def branch(self, name: str, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature [N, D'] of branch "float" or logits [N, 512] of "hash", L2-normalised.

        Args:
            stages: of `stages`.
            size: height and width of the images in pixels.
        """
        branch: Branch = getattr(self, f"{name}_branch")
        grid = (size[0] // PATCH, size[1] // PATCH)
        output: Tensor = branch(stages, self.backbone.norm, grid)
        return output

    def frozen(self, images: Tensor) -> Tensor:
        """What the backbone says without any training: its final tokens, [N, T, D]."""
        tokens: Tensor = self.backbone(images)
        return tokens

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Feature and hash logits, each L2-normalised, None without the branch."""
        stages = self.stages(images)
        size = (int(images.shape[2]), int(images.shape[3]))
        return (
            None if self.float_branch is None else self.branch("float", stages, size),
            None if self.hash_branch is None else self.branch("hash", stages, size),
        )
