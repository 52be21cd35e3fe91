"""DINOv2 vision transformers, ViT-S/14, B/14 and L/14, with and without registers.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, and Darcet
et al., "Vision Transformers Need Registers", ICLR 2024. Names of parameters are those of Meta's
checkpoints, so that these load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import ConfigError

PATCH = 14  # pixels of a patch's side
GRID = 37  # patches along a side of the 518-pixel images that the position embeddings are for


@dataclass(frozen=True)
class VitSize:
    """Shape of a transformer, and of the side network that SelaVPR++ puts beside it."""

    width: int  # D, of a token
    depth: int  # blocks
    heads: int
    first_adapted: int  # the first block that has an adapter beside it


# SelaVPR++ adapts each block of base, and the last 16 of large; small follows base.
SIZES = {
    "small": VitSize(384, 12, 6, 0),
    "base": VitSize(768, 12, 12, 0),
    "large": VitSize(1024, 24, 16, 8),
}


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(n, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled (LayerScale) and added. [N, T, D] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """A DINOv2 backbone that hands out the tokens between its blocks.

    Args:
        size: a key of SIZES.
        registers: register tokens, 4 in Meta's `_reg4` checkpoints, 0 in the others.
    """

    def __init__(self, size: str = "base", registers: int = 0) -> None:
        super().__init__()
        self.size = SIZES[size]
        self.registers = registers
        width = self.size.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        # Used when DINOv2 was trained; kept since the checkpoints hold it.
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = _PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, self.size.heads) for _ in range(self.size.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches: the class token and the registers."""
        return 1 + self.registers

    def position_embeddings(self, rows: int, columns: int) -> Tensor:
        """The position embeddings of a grid of patches, float32 [1, 1 + rows * columns, D].

        Interpolated as DINOv2 was when the checkpoints were published: bicubic with the scale
        factor (side + 0.1) / 37, without antialiasing; for the registers' checkpoints to the exact
        size, with antialiasing.
        """
        if (rows, columns) == (GRID, GRID):
            return self.pos_embed
        position = self.pos_embed.float()
        patches = position[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        if self.registers:
            patches = functional.interpolate(
                patches, size=(rows, columns), mode="bicubic", antialias=True
            )
        else:
            scale = ((rows + 0.1) / GRID, (columns + 0.1) / GRID)
            patches = functional.interpolate(patches, scale_factor=scale, mode="bicubic")
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([position[:, :1], patches], 1).to(self.pos_embed.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block, float32 [N, 1 + registers + h * w, D].

        Args:
            images: float32 [N, 3, 14 h, 14 w], normalised by ImageNet's mean and deviation.
        """
        rows, columns = grid_of(images)
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position_embeddings(rows, columns)
        if self.registers:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
        return x

    def stages(self, images: Tensor) -> list[Tensor]:
        """The tokens that the side network takes: before its first block, and after each.

        Args:
            images: see `embed`.

        Returns:
            float32 [N, T, D] each: 1 + the number of adapted blocks of them.
        """
        x = self.embed(images)
        stages = [x] if self.size.first_adapted == 0 else []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= self.size.first_adapted - 1:
                stages.append(x)
        return stages

    def forward(self, images: Tensor) -> Tensor:
        """The published function: final tokens after the LayerNorm, float32 [N, T, D]."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def grid_of(images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images [N, 3, H, W].

    Raises:
        ConfigError: H or W is no multiple of 14.
    """
    height, width = int(images.shape[2]), int(images.shape[3])
    if any(side < PATCH or side % PATCH for side in (height, width)):
        raise ConfigError(
            f"DINOv2 takes images whose height and width are multiples of {PATCH} pixels, not "
            f"{height} x {width}; give for example {max(1, round(height / PATCH)) * PATCH} x "
            f"{max(1, round(width / PATCH)) * PATCH}"
        )
    return height // PATCH, width // PATCH
