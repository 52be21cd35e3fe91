"""Checkpoints: the authors', Meta's and our own, read without running what they may carry.

Keys are the published ones, whatever our modules are called, so that ours load in the authors'
code too; what wrappers add to the names is taken away. Files are read by `torch_file`, where a
pickle can run nothing; what a file holds must then fit the network key by key, shape by shape.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashvpr_ros.errors import CheckpointError, ConfigError, reason_of
from hashvpr_ros.file_io import replacing
from hashvpr_ros.model import torch_file
from hashvpr_ros.model.dinov2 import SIZES
from hashvpr_ros.model.lite import LiteNetwork
from hashvpr_ros.model.network import NetworkConfig, SelaVpr

_LITE_KEY = "backbone.stem.weight"
# What DataParallel, Lightning and torch.compile put into names: before, within, and repeatedly.
_WRAPPERS = ("module", "model", "_orig_mod")
_LONGEST_NAME = 200  # of a weight
VERSION = 1  # of what our checkpoints say beside the weights
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # are widened to float32
# Our names -> the published ones; the first that fits.
_PUBLISHED = (
    ("float_branch.side.adapters.", "backbone.adapters."),
    ("hash_branch.side.adapters.", "backbone.adapters_hashing."),
    ("float_branch.head.project.", "linear1."),
    ("float_branch.head.pool.", "aggregation.1."),
    ("float_branch.head.output.", "linear2."),
    ("float_branch.head.", "aggregation."),
    ("hash_branch.head.project.", "linear3."),
    ("hash_branch.head.pool.", "aggregation_hashing.1."),
    ("hash_branch.head.output.", "linear4."),
)


def published_name(network: nn.Module, name: str) -> str:
    """The published name of a parameter or buffer of a network; the lite one's are its own."""
    if isinstance(network, LiteNetwork):
        return name
    for ours, theirs in _PUBLISHED:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def read_checkpoint(
    path: str | Path, remedy: str = "download or export it again"
) -> dict[str, Any]:
    """The dictionary of a checkpoint file, on the CPU.

    Args:
        path: of the file.
        remedy: what to do where it is damaged.

    Raises:
        CheckpointError: see `torch_file.load`; or it is no dictionary.
    """
    content = torch_file.load(path, remedy)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a dictionary of weights; give the "
            "checkpoint of a network"
        )
    return content


def read_state(path: str | Path, content: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, without the names of wrappers, as they are in the file.

    None is looked into or copied: a file may say of a tensor that it is larger than any memory.

    Args:
        path: of the file.
        content: what `read_checkpoint` gave, to spare reading it again.

    Raises:
        CheckpointError: see `read_checkpoint`; or it holds something else than plain tensors.
    """
    content = read_checkpoint(path) if content is None else content
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    state = {}
    for key, value in content.items():
        named = isinstance(key, str) and key.isprintable() and len(key) <= _LONGEST_NAME
        if not named or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: its entry {repr(key)[:80]} is a {type(value).__name__}, not a named "
                "tensor; give the checkpoint of a network"
            )
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in state:
            raise CheckpointError(f"{path}: holds {name} twice; give an undamaged checkpoint")
        plain = value.layout is torch.strided and not (value.is_nested or value.is_quantized)
        known = value.dtype in _FLOATS or not value.is_floating_point()
        if not plain or not known or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is no dense tensor of floats or integers ({value.layout}, "
                f"{value.dtype}, {value.device.type}); give the checkpoint of a network"
            )
        state[name] = value
    if not state:
        raise CheckpointError(f"{path}: holds no weights; give the checkpoint of a network")
    return state


def shared_prefix(state: Mapping[str, Tensor]) -> str:
    """What all names begin with, up to a dot; "" where they share nothing."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in state), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) if len(state) > 1 else ""


def _prefix_hint(state: Mapping[str, Tensor]) -> str:
    prefix = shared_prefix(state)
    if not prefix:
        return ""
    return f"; all its names begin with {prefix[:80]!r}, which may have to be taken away"


def check_fit(path: str | Path, want: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, with what is missing, unexpected and misshapen, unless all fits."""
    problems = []
    for what, keys in (
        ("missing", [k for k in want if k not in state]),
        ("unexpected", [k for k in state if k not in want]),
        (
            "misshapen",
            [
                f"{k} {list(state[k].shape)}, not {list(v.shape)}"
                for k, v in want.items()
                if k in state and state[k].shape != v.shape
            ],
        ),
        (
            "of another type",
            [
                f"{k} {state[k].dtype}, not {v.dtype}"
                for k, v in want.items()
                if k in state and state[k].is_floating_point() != v.is_floating_point()
            ],
        ),
    ):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            problems.append(f"{what}: {', '.join(keys[:4])}{more}")
    if problems:
        raise CheckpointError(
            f"{path}: does not fit the network ({'; '.join(problems)}{_prefix_hint(state)}); give "
            "a checkpoint of it, trained by this version"
        )


def fitting_weights(
    path: str | Path, want: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights as float32, once it is known that they fit what is wanted.

    Raises:
        CheckpointError: see `check_fit`; or some are not finite, or variances negative.
    """
    check_fit(path, want, state)
    weights = {}
    for name, value in state.items():
        if value.is_floating_point():
            value = value.float().contiguous()
            problem = ""
            if not bool(torch.isfinite(value).all()):
                problem = "NaN or infinity"
            elif name.endswith("running_var") and bool((value < 0).any()):
                problem = "negative variances"
            if problem:
                raise CheckpointError(
                    f"{path}: {name} holds {problem}; give an undamaged checkpoint"
                )
        weights[name] = value
    return weights


def infer_config(path: str | Path, state: Mapping[str, Tensor]) -> NetworkConfig:
    """Which published variant has these weights.

    Raises:
        CheckpointError: none.
    """
    token = state.get("backbone.cls_token")
    widths = {size.width: name for name, size in SIZES.items()}
    if token is None or token.ndim != 3 or token.shape[-1] not in widths:
        hint = ""
        if "cls_token" in state or any(k.startswith("blocks.") for k in state):
            hint = "; it looks like a backbone alone, to be given as such to `hashvpr train`"
        raise CheckpointError(
            f"{path}: not a checkpoint of SelaVPR++ (backbone.cls_token is missing or of an "
            f"unknown width){hint or _prefix_hint(state)}; give a checkpoint of that network"
        )
    aggregation = "gem"
    if "aggregation.proj_c.weight" in state:
        aggregation = "boq"
    elif "aggregation.dust_bin" in state:
        aggregation = "salad"
    registers = state.get("backbone.register_tokens")
    output = state.get("linear2.weight")
    try:
        return NetworkConfig(
            backbone=widths[int(token.shape[-1])],
            registers=0 if registers is None or registers.ndim != 3 else int(registers.shape[1]),
            aggregation=aggregation,
            float_branch=any(k.startswith(("aggregation.", "linear2.")) for k in state),
            hash_branch=any(k.startswith(("aggregation_hashing.", "linear4.")) for k in state),
            float_dim=0 if output is None or output.ndim != 2 else int(output.shape[0]),
        )
    except ConfigError as e:
        raise CheckpointError(f"{path}: not a checkpoint of SelaVPR++: {e}") from e


def load_into(
    network: nn.Module, path: str | Path, state: Mapping[str, Tensor], *, assign: bool = False
) -> None:
    """Load weights under their published names strictly.

    Args:
        assign: make the tensors of the state the network's; else copy them into those it has,
            which an optimizer may know.

    Raises:
        CheckpointError: see `fitting_weights`.
    """
    own = network.state_dict()
    names = {published_name(network, k): k for k in own}
    weights = fitting_weights(path, {theirs: own[ours] for theirs, ours in names.items()}, state)
    network.load_state_dict({names[k]: v for k, v in weights.items()}, strict=True, assign=assign)


@dataclass(frozen=True)
class CheckpointInfo:
    """What our checkpoints say beside the weights."""

    size: tuple[int, int] | None = None  # height and width of the images it was trained with
    license: str = ""
    version: str = "1"
    # P(match is right) over the distinctness, see engine.base.EngineInfo.
    probability_curve: tuple[float, float] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A network with what its file says of it."""

    network: Any  # SelaVpr or LiteNetwork, in evaluation, on the CPU
    info: CheckpointInfo

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels to describe images at."""
        return self.info.size or self.network.default_size  # type: ignore[no-any-return]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The network of a checkpoint, ours or published, in evaluation, on the CPU.

    Raises:
        CheckpointError: see `read_state`, `infer_config` and `load_into`; or what it says of
            itself is malformed.
    """
    content = read_checkpoint(path)
    state = read_state(path, content)
    info = _read_info(path, content.get("hashvpr"))
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        network = _lite(state) if _LITE_KEY in state else SelaVpr(infer_config(path, state))
    load_into(network, path, state, assign=True)
    network.requires_grad_(False)
    return Checkpoint(network.eval(), info)


def _lite(state: Mapping[str, Tensor]) -> LiteNetwork:
    network = LiteNetwork()
    if any(k.startswith("hash_branch.") for k in state):
        network.add_branch("hash")
    return network


def _read_info(path: str | Path, stored: object) -> CheckpointInfo:
    if stored is None:
        return CheckpointInfo()
    try:
        if not isinstance(stored, dict):
            raise TypeError(f"a {type(stored).__name__}")
        if stored["format"] != VERSION:
            raise ValueError(f"format {stored['format']!r:.40}, this version reads {VERSION}")
        size, curve = stored["size"], stored["probability_curve"]
        if size is not None:
            height, width = (int(v) for v in size)
            if not (0 < height <= 4096 and 0 < width <= 4096):
                raise ValueError(f"size {height} x {width}")
            size = (height, width)
        if curve is not None:
            slope, intercept = (float(v) for v in curve)
            if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
                raise ValueError(f"probability curve {slope} {intercept}")
            curve = (slope, intercept)
        texts = stored["license"], stored["version"]
        if not all(isinstance(v, str) and len(v) <= 1000 for v in texts):
            raise ValueError("its license or version is no text, or too long")
        return CheckpointInfo(size, *texts, curve)
    # Tensors in the place of numbers are RuntimeErrors.
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as e:
        raise CheckpointError(
            f"{path}: its metadata is malformed ({reason_of(e)}); train it again, or "
            "use the version of hashvpr_ros that wrote it"
        ) from e


def load_backbone(network: SelaVpr, path: str | Path) -> None:
    """Load Meta's `dinov2_vit{s,b,l}14(_reg4)_pretrain.pth` into a network's backbone.

    Raises:
        CheckpointError: see `read_state` and `fitting_weights`.
    """
    weights = fitting_weights(path, network.backbone.state_dict(), read_state(path))
    network.backbone.load_state_dict(weights, strict=True)


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights under their published names."""
    return {published_name(network, k): v.detach().cpu() for k, v in network.state_dict().items()}


def save_network(
    path: str | Path,
    network: Any,
    info: CheckpointInfo,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically, its weights under their published names.

    Args:
        training: the state of an unfinished run: plain values and tensors, so that the file loads
            with `weights_only`.

    Raises:
        CheckpointError: it cannot be written.
    """
    content: dict[str, Any] = {
        "hashvpr": {"format": VERSION, **asdict(info)},
        "model_state_dict": {f"module.{k}": v for k, v in published_state(network).items()},
    }
    if training is not None:
        content["training"] = dict(training)
    write_atomically(Path(path), content)


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` to a neighbour, then a rename, so that a kill leaves the old file or the new.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        with replacing(path, error=CheckpointError) as temporary, open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as e:  # a full disk is a RuntimeError to torch
        raise CheckpointError(f"{path}: cannot be written ({e}); check path and free space") from e
