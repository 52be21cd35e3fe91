"""The reference outputs of the authors' implementation and the weights that they belong to."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(
    os.environ.get("HASHVPR_REFERENCE")
    or Path(__file__).resolve().parents[3].parent / "shared" / "reference"
)
needs_reference = pytest.mark.skipif(
    not (FOLDER / "reference_outputs.npz").is_file(),
    reason="reference/ of the model's outputs is not here: set HASHVPR_REFERENCE to its folder",
)


@functools.cache
def weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("weights", FOLDER / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def shapes() -> dict[str, dict[str, list[int]]]:
    """Of each variant: every key and its shape."""
    return json.loads((FOLDER / "checkpoint_keys.json").read_text())


@functools.cache
def _value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(weights().value(name, shape)))


def state(variant: str) -> dict[str, torch.Tensor]:
    return {name: _value(name, tuple(shape)) for name, shape in shapes()[variant].items()}


def images(side: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([weights().image(side, side, i) for i in (0, 1)]))
