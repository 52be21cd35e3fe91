"""`map.index` and `map.max_index_mb` of a real node."""

import faiss
import numpy as np
import pytest

from hashvpr_ros.engine.factory import create_engine
from hashvpr_ros.evaluation.bench import PlaceMaker, fill
from hashvpr_ros.map.place_map import PlaceMap

PLACES = 5000  # more than one megabyte holds


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A map of the lite model that holds made-up places."""
    engine = create_engine()
    info = engine.info
    engine.close()
    path = tmp_path_factory.mktemp("map") / "large.vprmap"
    with PlaceMap.open(path, info.fingerprint, info.feature_dim, session="s") as place_map:
        fill(place_map, PLACES, PlaceMaker(info.feature_dim, np.random.default_rng(0)))
    return path


def test_what_has_left_the_index_is_logged_once_and_counted(start, diagnostics, large):
    node = start(
        mode="localization", map__path=str(large), map__max_index_mb=1,
        publish__diagnostics_period_s=0.1,
    ).activate()  # fmt: skip
    said = diagnostics(node, lambda d: "map_left_out" in d["node"], "it is counted")["node"]
    assert int(said["map_keyframes"]) == PLACES and said["map_index"] == "exact"
    assert 1000 < int(said["map_left_out"]) < 3000
    assert float(said["map_index_mib"]) < 1.0
    diagnostics(node, lambda d: True, "another period has passed")
    assert node.logged("map.max_index_mb is reached") == 1
    assert f"{said['map_left_out']} of {PLACES} keyframes" in node.text()


def test_a_graph_is_built_at_configure(start, diagnostics, large):
    node = start(
        mode="localization", map__path=str(large), map__index="hnsw",
        publish__diagnostics_period_s=0.1,
    ).activate()  # fmt: skip
    said = diagnostics(node, lambda d: "map_index" in d["node"], "it is said")["node"]
    assert said["map_index"] == "hnsw" and said["map_left_out"] == "0"
    assert node.logged("index hnsw")


@pytest.mark.skipif(hasattr(faiss, "GpuIndexBinaryFlat"), reason="this faiss can use GPUs")
def test_a_gpu_that_is_not_there_fails_the_configure_with_what_to_do(start, large):
    node = start(map__path=str(large), map__index="gpu")
    assert not node.change("configure") and node.state() == "unconfigured"
    assert "faiss-gpu" in node.text()


def test_a_ceiling_beside_a_graph_fails_the_configure_with_what_to_do(start, large):
    node = start(map__path=str(large), map__index="hnsw", map__max_index_mb=10)
    assert not node.change("configure") and node.state() == "unconfigured"
    assert "set map.index to exact" in node.text()
    node.set("map.max_index_mb", 0)
    assert node.change("configure")
