"""A double of TensorRT and CUDA in the shapes of three versions; see tensorrt_double.py."""

from __future__ import annotations

import gc
import sys

import pytest
from cuda_double import World
from tensorrt_double import install

from hashvpr_ros.engine.tensorrt_build import BuildOptions, build
from hashvpr_ros.engine.tensorrt_engine import TensorRtEngine

VERSIONS = ("8.6.2", "10.3.0", "11.4.0")


@pytest.fixture
def doubled(monkeypatch):
    """Installs a double; at the end all that it gave must be freed, popped and counted down."""
    worlds = []

    def make(**settings) -> World:
        modules: dict = {}
        worlds.append(install(World(**settings), modules))
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return worlds[-1]

    gc.freeze()  # only what the test makes is to be looked at, not all that torch has imported
    yield make
    gc.collect()
    gc.unfreeze()
    for world in worlds:
        assert world.leaks() == []


@pytest.fixture(params=VERSIONS)
def world(request, doubled) -> World:
    """The double in each of the versions."""
    return doubled(version=request.param)


@pytest.fixture
def make_engine():
    """Builds an .onnx by the double and loads the engine; closes it at the end."""
    made = []

    def make(path, **options) -> TensorRtEngine:
        header, plan = build(path, BuildOptions(**options))
        made.append(TensorRtEngine(header, plan, path.with_suffix(".engine")))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
