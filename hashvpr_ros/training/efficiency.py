"""What training costs: the side network beside two ways that back-propagate through the backbone.

`python -m hashvpr_ros.training.efficiency WAY ...` measures one way in a process of its own, since
a process's peak memory never falls again, and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.model import torch_file
from hashvpr_ros.model.adapters import TokenAdapter
from hashvpr_ros.model.dinov2 import grid_of
from hashvpr_ros.model.network import NetworkConfig, SelaVpr
from hashvpr_ros.training.config import LossSettings
from hashvpr_ros.training.losses import FloatLoss

TUNED_BLOCKS = 4
WAYS = {
    "side": "side network (ours)",
    "cached": "side network, cached features",
    "inserted": "adapters in the backbone",
    "tuned": f"last {TUNED_BLOCKS} blocks tuned",
}


def _side(network: SelaVpr, images: Tensor) -> Callable[[], Tensor]:
    size = (int(images.shape[2]), int(images.shape[3]))
    return lambda: network.branch("float", network.stages(images), size)


def _cached(network: SelaVpr, images: Tensor) -> Callable[[], Tensor]:
    """The stages come from the disk; the backbone's memory is spent by a process that ends."""
    size = (int(images.shape[2]), int(images.shape[3]))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "stages.pth"
        arguments = (path, network.config.backbone, size[0], len(images), torch.get_num_threads())
        maker = multiprocessing.get_context("spawn").Process(target=_keep, args=arguments)
        maker.start()
        maker.join()
        stages = torch_file.load(path)
    return lambda: network.branch("float", [s.float() for s in stages], size)


def _keep(path: Path, size: str, side_px: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    network, images = _start(size, side_px, batch)
    torch.save([s.half() for s in network.stages(images)], path)


def _head(network: SelaVpr, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    assert network.float_branch is not None
    tokens = network.backbone.norm(tokens)
    patches = tokens[:, network.backbone.prefix_tokens :].transpose(1, 2).unflatten(2, grid)
    return network.float_branch.head(patches, tokens[:, 0])


def _inserted(network: SelaVpr, images: Tensor) -> Callable[[], Tensor]:
    """The same adapters, behind each block: x = block(x); x = x + adapter(x)."""
    assert network.float_branch is not None
    adapters: list[TokenAdapter] = list(network.float_branch.side.adapters)  # type: ignore[arg-type]
    grid = grid_of(images)

    def forward() -> Tensor:
        x = network.backbone.embed(images)
        for block, adapter in zip(network.backbone.blocks, adapters, strict=True):
            x = block(x)
            x = x + adapter(x, grid)
        return _head(network, x, grid)

    return forward


def _tuned(network: SelaVpr, images: Tensor) -> Callable[[], Tensor]:
    assert network.float_branch is not None
    network.float_branch.side.requires_grad_(False)
    for block in network.backbone.blocks[-TUNED_BLOCKS:]:
        block.requires_grad_(True)
    grid = grid_of(images)

    def forward() -> Tensor:
        x = network.backbone.embed(images)
        for block in network.backbone.blocks:
            x = block(x)
        return _head(network, x, grid)

    return forward


_FORWARD: dict[str, Callable[[SelaVpr, Tensor], Callable[[], Tensor]]] = {
    "side": _side,
    "cached": _cached,
    "inserted": _inserted,
    "tuned": _tuned,
}


def _start(size: str, side_px: int, batch: int) -> tuple[SelaVpr, Tensor]:
    torch.manual_seed(0)
    network = SelaVpr(NetworkConfig(backbone=size, hash_branch=False))
    return network, torch.randn(batch, 3, side_px, side_px)


def measure(way: str, size: str, side_px: int, batch: int, steps: int) -> dict[str, Any]:
    """Time and peak memory of training steps.

    Args:
        way: a key of WAYS.
        size: of DINOv2.
        side_px: of the square images.
        batch: images a step, two of each place.
        steps: timed, after two that are not.

    Returns:
        step_s: seconds of each step; peak_mb: of the process beyond what it had with the network
        and the images, whichever the way; parameters: that learn.
    """
    network, images = _start(size, side_px, batch)
    labels = torch.arange(batch) // 2
    before = _peak_mb()
    forward = _FORWARD[way](network, images)
    network.train()
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-4)
    loss_of: nn.Module = FloatLoss(LossSettings())
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        loss, _pairs = loss_of(functional.normalize(forward()), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    return {
        "way": way,
        "step_s": times[2:],
        "peak_mb": _peak_mb() - before,
        "parameters": sum(p.numel() for p in learning),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--size", default="small")
    for name in ("side", "batch", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(
        arguments.way, arguments.size, arguments.side, arguments.batch, arguments.steps
    )
    print(json.dumps(result))


if __name__ == "__main__":
    _main()
