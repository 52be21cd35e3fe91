"""The node with a double of TensorRT, whose build takes seconds: nothing here ran on a GPU."""

import json
import os
import threading
from pathlib import Path

import pytest
from vpr_process import Camera, wait_until

from hashvpr_ros.srv import InspectMap

DOUBLE = Path(__file__).resolve().parents[1] / "unit" / "engine"
BUILD_S = 6.0


@pytest.fixture
def start_with_double(start, monkeypatch, tmp_path):
    """Starts nodes whose `import tensorrt` and `import pycuda.driver` find the double."""
    pytest.importorskip("onnx", reason="the double reads graphs by onnx")
    modules = tmp_path / "modules"
    (modules / "pycuda").mkdir(parents=True)
    line = "from tensorrt_double import install_from_environment\ninstall_from_environment()\n"
    for name in ("__init__.py", "driver.py"):
        (modules / "pycuda" / name).write_text("")
    path = [str(modules), str(DOUBLE), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def make(imported="", **parameters):
        (modules / "tensorrt.py").write_text(imported + line)
        world = {"version": "10.3.0", "build_s": BUILD_S, **parameters.pop("world", {})}
        monkeypatch.setenv("HASHVPR_DOUBLE", json.dumps(world))
        return start(
            engine__cache_dir=str(tmp_path / "cache"), publish__diagnostics_period_s=0.1,
            keyframes__min_novelty_bits=0, **parameters,
        )  # fmt: skip

    return make


def test_services_and_diagnostics_answer_while_the_double_builds(
    start_with_double, diagnostics, tmp_path
):
    node = start_with_double()
    diagnostics(node, lambda d: "unconfigured" in d["node"]["message"], "both know each other")
    done = []
    thread = threading.Thread(target=lambda: done.append(node.change("configure")))
    thread.start()
    said = diagnostics(
        node, lambda d: "building TensorRT engine" in d["node"]["message"], "it is shown"
    )
    assert said["node"]["level"] == 0 and " s" in said["node"]["message"]
    assert node.set("publish.descriptors", True).successful
    for _ in range(5):
        assert node.state() in ("configuring", "unconfigured")
        assert node.get("engine.tensorrt") == "auto"
        assert not node.set("engine.threads", 3).successful
        said = node.call(InspectMap, "inspect_map")
        assert said.result == said.RESULT_NOT_CONFIGURED, node.text()
    assert not done  # had one of them waited for the build, it were done by now
    thread.join()
    assert done == [True], node.text()
    built = node.logged("building TensorRT engine of hashvpr_lite")
    assert built >= 1
    assert node.change("activate")
    assert Camera(node).connect().show(1, 0.0).keyframe_id > 0
    said = diagnostics(node, lambda d: d["node"]["message"] == "active", "it is active")
    assert said["node"]["provider"] == "TensorRT 10.3 fp16 (Orin)"
    # Freed and made again, from the cache this time.
    assert node.change("deactivate") and node.change("cleanup")
    assert node.change("configure")
    assert node.logged("building TensorRT engine of hashvpr_lite") == built
    assert len(list((tmp_path / "cache").glob("*.engine"))) == 1


@pytest.mark.parametrize("call", ["build", "execute"])  # the latter at the first image
def test_a_double_that_fails_falls_back_and_is_refused_where_required(start_with_double, call):
    node = start_with_double(world={"build_s": 0.0, "fail": {call: "no implementation found"}})
    assert node.change("configure")
    assert node.logged("engine hashvpr_lite on CPUExecutionProvider") == 1
    said = [s for s in node.text().splitlines() if "ONNX Runtime instead of TensorRT" in s]
    assert len(said) == 1 and "[WARN]" in said[0] and "no implementation found" in said[0]
    assert node.change("cleanup")
    assert node.set("engine.tensorrt", "require").successful
    assert not node.change("configure")
    assert node.logged("no implementation found") >= 1 and "Traceback" not in node.text()
    assert node.state() == "unconfigured"


def test_a_signal_ends_the_process_while_the_double_builds(start_with_double):
    node = start_with_double(autostart=True, world={"build_s": 300.0})
    wait_until(lambda: node.logged("building TensorRT engine"), "it builds")
    assert node.stop() == 0, node.text()  # whose patience ends long before the build would


SLOW = "import time\nprint('imports it', flush=True)\ntime.sleep(5.0)\n"


@pytest.mark.parametrize(
    "imported",
    [
        pytest.param(SLOW, id="TensorRT"),
        pytest.param(SLOW + "raise ImportError('of another Python')\n", id="ONNX Runtime"),
    ],
)
def test_a_signal_just_before_the_double_would_build_begins_none(
    start_with_double, tmp_path, imported
):
    """Nor is a map opened, where it would be by ONNX Runtime instead."""
    node = start_with_double(
        imported, autostart=True, world={"build_s": 300.0}, map__path=str(tmp_path / "m.vprmap")
    )
    wait_until(lambda: "imports it" in node.text(), "it is about to build")
    assert node.stop() == 0, node.text()
    assert node.logged("building TensorRT engine") == 0, node.text()
    assert node.logged("cannot configure: the node ends") == 1, node.text()
    assert "autostart" not in node.text() and "Traceback" not in node.text()
    assert not list(tmp_path.glob("m.vprmap*"))
