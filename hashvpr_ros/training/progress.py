"""The state of an unfinished run out of its last checkpoint, where anything may stand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hashvpr_ros.errors import CheckpointError, reason_of

AGAIN = "delete it and start again"
# Of each number that is kept: its type, and the least and most that it can be.
_RANGES: dict[str, tuple[Any, float, float]] = {
    "epoch": (int, 0, 100_000),
    "since_best": (int, 0, 100_000),
    "best_recall": (float, -math.inf, 200.0),  # R@1 + R@5, in percent
}


@contextmanager
def explained(last: Path) -> Iterator[None]:
    """What goes wrong inside is the checkpoint's fault."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        raise CheckpointError(
            f"{last}: its training state is malformed ({reason_of(e)}); {AGAIN}"
        ) from e


def checked(value: Any, name: str) -> Any:
    """A number of the run; ValueError where it is none or cannot be."""
    kind, low, high = _RANGES[name]
    if type(value) is not kind or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}")
    return value


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Load Adam's steps and moments; the rates stay those of the settings.

    Raises:
        Exception: of any kind, where it is no such state or another network's.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, state in stored["state"].items():
        if number not in range(len(parameters)):
            raise ValueError(f"there is no parameter {number!r}")
        want = parameters[number].shape
        for name, shape in (("step", ()), ("exp_avg", want), ("exp_avg_sq", want)):
            value = state[name]
            if value.shape != shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} of parameter {number} does not fit, or is not finite")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored["state"]})


def load_scaler(scaler: Any, stored: Mapping[str, Any]) -> None:
    """Load the state of a GradScaler.

    Raises:
        Exception: of any kind, where it is none.
    """
    for name, value in stored.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} of the scaler is {value!r}")
    scaler.load_state_dict(stored)
