"""The environment is made once, and our own overlay is not taken for a sourced ROS."""

import importlib.util
import os
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "setup_env.py"


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location("setup_env", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("order", [("overlay", "venv"), ("venv",), ("venv", "overlay")])
def test_our_own_prefixes_are_no_sourced_ros(setup_env, monkeypatch, order):
    prefixes = {"overlay": "/x/install/hashvpr_ros", "venv": str(setup_env.VENV)}
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join(prefixes[o] for o in order))
    assert setup_env.sourced_ros() == ""


def test_no_ros_is_none(setup_env, monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert setup_env.sourced_ros() == ""


def test_additions_are_made_once_from_files_that_there_are(setup_env, monkeypatch, tmp_path):
    installed = []
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / "complete")
    monkeypatch.setattr(setup_env, "make", lambda distro: installed.append("all"))
    monkeypatch.setattr(setup_env, "install", lambda *wanted: installed.append(Path(wanted[1])))
    for names in ([], ["examples"], ["train", "examples"]):
        monkeypatch.setattr("sys.argv", ["setup_env.py", *names])
        setup_env.main()
    assert installed[0] == "all"
    assert [path.name for path in installed[1:]] == ["examples.txt", "train.txt"]
    assert all(path.is_file() for path in installed[1:])
    assert set(setup_env.ADDITIONS) == {"examples", "train"}
