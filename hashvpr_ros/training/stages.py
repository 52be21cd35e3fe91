"""What the two stages of training share: which network, which part of it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.model.checkpoints import CheckpointInfo, load_backbone, open_checkpoint
from hashvpr_ros.model.efficientnet_lite import load_imagenet
from hashvpr_ros.model.lite import LiteNetwork
from hashvpr_ros.model.network import NetworkConfig, SelaVpr
from hashvpr_ros.training.config import ModelSettings


@dataclass(frozen=True)
class Start:
    """What training begins with."""

    network: Any  # of which only the branch in question learns
    is_new: bool  # whether that branch is
    info: CheckpointInfo = CheckpointInfo()  # what the checkpoint that it comes from says
    drops_hash: bool = False  # whether the checkpoint had a hash branch that cannot stay


def start_network(settings: ModelSettings, branch: str) -> Start:
    """The network to begin with.

    Float: a new branch beside a pretrained backbone, or the checkpoint's. Hash: beside the
    checkpoint's trained float branch, a new branch whose adapters are copies of the float's
    (SelaVPR++, section III-D). The lite network's hash branch stands on what of the float branch
    is trained, so it cannot stay when that moves.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ConfigError: the hash branch is asked for without a checkpoint that has a float branch.
    """
    start = (_start_lite if settings.network == "lite" else _start_dinov2)(settings, branch)
    start.network.requires_grad_(False)
    start.network.learning(branch).requires_grad_(True)
    return start


def _start_dinov2(settings: ModelSettings, branch: str) -> Start:
    if settings.checkpoint:
        opened = open_checkpoint(settings.checkpoint)
        network = opened.network
        if not isinstance(network, SelaVpr):
            raise ConfigError(
                f"{settings.checkpoint}: is of the lite network; set model.network to lite"
            )
        is_new = getattr(network, f"{branch}_branch") is None
        if is_new:
            _require_float(network, settings)
            network.add_branch(branch)
            if branch == "hash":
                assert network.hash_branch is not None and network.float_branch is not None
                network.hash_branch.side.load_state_dict(network.float_branch.side.state_dict())
        return Start(network, is_new, opened.info)
    if branch == "hash":
        raise ConfigError(_NO_CHECKPOINT)
    network = SelaVpr(
        NetworkConfig(
            backbone=settings.size,
            registers=settings.registers,
            aggregation=settings.aggregation,
            hash_branch=False,
            float_dim=settings.float_dim if settings.aggregation == "gem" else 0,
        )
    )
    if settings.backbone_weights:
        load_backbone(network, settings.backbone_weights)
    return Start(network, True)


def _start_lite(settings: ModelSettings, branch: str) -> Start:
    if settings.checkpoint:
        opened = open_checkpoint(settings.checkpoint)
        network = opened.network
        if not isinstance(network, LiteNetwork):
            raise ConfigError(f"{settings.checkpoint}: is of DINOv2; set model.network to dinov2")
        is_new = branch == "hash" and network.hash_branch is None
        if is_new:
            network.add_branch("hash")
        drops_hash = branch == "float" and network.hash_branch is not None
        if drops_hash:
            network.hash_branch = None
        return Start(network, is_new, opened.info, drops_hash)
    if branch == "hash":
        raise ConfigError(_NO_CHECKPOINT)
    network = LiteNetwork()
    load_imagenet(network.backbone, settings.backbone_weights)
    return Start(network, True)


_NO_CHECKPOINT = (
    "the hash branch is trained beside a trained float branch; set model.checkpoint to the "
    "best.pth of `hashvpr train float`"
)


def _require_float(network: Any, settings: ModelSettings) -> None:
    if network.float_branch is None:
        raise ConfigError(
            f"{settings.checkpoint}: has no float branch to start the hash branch from; give the "
            "best.pth of `hashvpr train float`"
        )


def set_train(network: Any, branch: str) -> None:
    """Training mode for what learns, evaluation for all else."""
    network.eval()
    network.learning(branch).train()
