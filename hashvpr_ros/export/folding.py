"""The same function with fewer operations: what is constant at inference is folded into weights.

BatchNorms go into the convolutions before them, LayerScale and the scale of attention into the
linear layers beside them, the three 1x1 convolutions of an adapter become one linear layer on the
tokens, and the position embeddings of one input size become a constant. (Traced into a graph, the
interpolation of the position embeddings is left to the runtime, whose bicubic differs.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.model.adapters import ConvNormRelu, MultiConv, TokenAdapter
from hashvpr_ros.model.dinov2 import DinoV2, grid_of
from hashvpr_ros.model.lite import LiteSide, MapAdapter
from hashvpr_ros.model.pooling import GeM, NetVlad


def fold(network: nn.Module, height: int, width: int) -> nn.Module:
    """A copy of a network in evaluation that computes the same for images of one size, faster.

    Args:
        network: `model.network.SelaVpr`, or one of the same parts; stays as it is.
        height, width: pixels.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):  # what is inside a replaced one is not used any more
        for name, child in list(module.named_children()):
            for kind, folded in _REPLACED:
                if isinstance(child, kind):
                    setattr(module, name, folded(child))
    for module in network.modules():
        if isinstance(module, ConvNormRelu):
            module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, DinoV2):
            _fold_backbone(module, *grid_of(torch.empty(1, 3, height, width)))
        elif isinstance(module, GeM):
            power = float(module.p)
            del module.p
            module.p = power
    return network


def _scale_rows(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.data *= factors[:, None]
    linear.bias.data *= factors


def _fold_backbone(backbone: DinoV2, rows: int, columns: int) -> None:
    positions = backbone.position_embeddings(rows, columns).detach().clone()
    backbone.position_embeddings = lambda *_: positions  # type: ignore[method-assign]
    for block in backbone.blocks:
        _scale_rows(block.attn.proj, block.ls1.gamma)
        _scale_rows(block.mlp.fc2, block.ls2.gamma)
        block.ls1 = block.ls2 = nn.Identity()
        block.attn = _FoldedAttention(block.attn)


class _FoldedAttention(nn.Module):
    """Attention in plain products, its scale inside the queries' weights."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.proj = attention.qkv, attention.proj
        width = self.proj.in_features
        factors = torch.ones(3 * width)
        factors[:width] = (width // self.heads) ** -0.5
        _scale_rows(self.qkv, factors)

    def forward(self, x: Tensor) -> Tensor:
        tokens, width = int(x.shape[1]), int(x.shape[2])
        shape = (-1, tokens, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape) for part in self.qkv(x).split(width, 2))
        weights = torch.softmax(q.transpose(1, 2) @ k.permute(0, 2, 3, 1), -1)
        attended = weights @ v.transpose(1, 2)
        return self.proj(attended.transpose(1, 2).reshape(-1, tokens, width))


def _folded(block: ConvNormRelu) -> nn.Conv2d:
    return torch.nn.utils.fusion.fuse_conv_bn_eval(block.conv, block.bn)


class _FoldedTokenAdapter(nn.Module):
    """`TokenAdapter` with its 1x1 convolutions as one linear layer on the tokens."""

    def __init__(self, adapter: TokenAdapter) -> None:
        super().__init__()
        self.prefix = adapter.prefix
        self.D_fc1, self.D_fc2 = adapter.D_fc1, adapter.D_fc2
        self.pointwise, self.widths = merge_pointwise(adapter)
        self.conv3, self.conv5 = _folded(adapter.branch2[1]), _folded(adapter.branch3[1])

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        down = functional.relu(self.D_fc1(x))
        near = functional.relu(self.pointwise(down[:, self.prefix :]))
        half, for3, for5 = near.split(self.widths, 2)
        far = [
            functional.relu(conv(part.transpose(1, 2).reshape(-1, int(part.shape[2]), *grid)))
            .flatten(2)
            .transpose(1, 2)
            for conv, part in ((self.conv3, for3), (self.conv5, for5))
        ]
        mixed = torch.cat([half, *far], 2)
        mixed = torch.cat([down[:, : self.prefix], mixed], 1)
        return self.D_fc2(mixed + down)


def merge_pointwise(adapter: MultiConv) -> tuple[nn.Linear, list[int]]:
    """The three 1x1 convolutions over the same input as one linear layer, and their widths."""
    parts = [_folded(b) for b in (adapter.branch1, adapter.branch2[0], adapter.branch3[0])]
    merged = nn.Linear(parts[0].in_channels, sum(p.out_channels for p in parts))
    merged.weight.data = torch.cat([p.weight.flatten(1) for p in parts])
    merged.bias.data = torch.cat([p.bias for p in parts])
    return merged.requires_grad_(False), [p.out_channels for p in parts]


class _FoldedMapAdapter(nn.Module):
    """`MapAdapter` with its three 1x1 convolutions as one, and its 3x3 and 5x5 as another."""

    def __init__(self, adapter: MapAdapter) -> None:
        super().__init__()
        self.down, self.up = adapter.down, adapter.up
        merged, (half, *thin) = merge_pointwise(adapter)
        self.widths = (half, sum(thin))
        self.pointwise = nn.Conv2d(merged.in_features, merged.out_features, 1)
        self.pointwise.weight.data = merged.weight[..., None, None]
        self.pointwise.bias = merged.bias
        near, far = _folded(adapter.branch2[1]), _folded(adapter.branch3[1])
        self.spatial = nn.Conv2d(sum(thin), near.out_channels + far.out_channels, 5, padding=2)
        weight = torch.zeros_like(self.spatial.weight)
        weight[: near.out_channels, : thin[0], 1:4, 1:4] = near.weight
        weight[near.out_channels :, thin[0] :] = far.weight
        self.spatial.weight.data = weight
        self.spatial.bias.data = torch.cat([near.bias, far.bias])

    def forward(self, x: Tensor) -> Tensor:
        down = functional.relu(self.down(x))
        half, thin = functional.relu(self.pointwise(down)).split(self.widths, 1)
        return self.up(torch.cat([half, functional.relu(self.spatial(thin))], 1) + down)


class _PlainAttention(nn.Module):
    """`nn.MultiheadAttention` in plain products, whose trace leaves the batch free."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.heads = attention.num_heads
        weights, biases = (
            attention.in_proj_weight.split(width),
            attention.in_proj_bias.split(width),
        )
        factors = ((width // self.heads) ** -0.5, 1.0, 1.0)
        layers = []
        for weight, bias, factor in zip(weights, biases, factors, strict=True):
            layer = nn.Linear(width, width)
            layer.weight.data, layer.bias.data = weight * factor, bias * factor
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in zip(self.layers, (query, key, value), strict=True)
        )
        attended = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class _PlainEncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, normalised after each part, by plain operations."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.attention = _PlainAttention(layer.self_attn)
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x)[0])
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))


class _FoldedLiteSide(nn.Module):
    """`LiteSide` without the adapters that add nothing."""

    def __init__(self, side: LiteSide) -> None:
        super().__init__()
        first, second = (None if a.adds_nothing else _FoldedMapAdapter(a) for a in side.adapters)
        self.first, self.second, self.between = first, second, side.between

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        x, later = stages
        y = x if self.first is None else x + self.first(x)
        if self.second is None:
            return [y, later]
        return [y, later + self.second(later + self.between(y))]


class _FoldedNetVlad(NetVlad):
    """`NetVlad` whose assignment layer is a constant."""

    def __init__(self, pool: NetVlad) -> None:
        count, width = pool.centres.shape
        super().__init__(width - 1, count, pool.position, pool.sharpness)
        self.load_state_dict(pool.state_dict())
        weight, bias = pool.assignment_layer()
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach().clone())

    def assignment_layer(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


# An encoder layer stands before the attention inside it.
_REPLACED: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (TokenAdapter, _FoldedTokenAdapter),
    (LiteSide, _FoldedLiteSide),
    (NetVlad, _FoldedNetVlad),
    (nn.TransformerEncoderLayer, _PlainEncoderLayer),
    (nn.MultiheadAttention, _PlainAttention),
)
