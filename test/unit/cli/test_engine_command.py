"""`hashvpr engine`, building by the double of TensorRT: nothing here ran on a GPU."""

import json
import sys
from pathlib import Path

import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros.engine.factory import default_model_path

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))


@pytest.fixture
def world(monkeypatch):
    """The double, where the command finds TensorRT."""
    from cuda_double import World
    from tensorrt_double import install

    modules: dict = {}
    world = install(World(), modules)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


def test_build_with_the_double_and_info(run, world, tiny_model, tmp_path):
    meta = {"hashvpr.name": "tiny", "hashvpr.fingerprint": "ab" * 32}
    out = tmp_path / "tiny.engine"
    done = run(
        "engine", "build", tiny_model(metadata=meta), out, "--precision", "fp32",
        "--workspace-mb", 64, "--timing-cache", tmp_path / "timing.cache", "--max-batch", 3,
    )  # fmt: skip
    said = well(done)
    assert "tiny abababababab, TensorRT 10.3.0 fp32 on Orin, batches of 1 to 3" in said
    assert "building TensorRT engine of tiny (fp32, Orin), 0 s" in done.err
    assert list(world.configs[-1].pools.values()) == [64 << 20]
    assert (tmp_path / "timing.cache").read_bytes().startswith(b"timing")
    facts = well(run("engine", "info", out, "--json", tmp_path / "facts.json"))
    values = strict_json(tmp_path / "facts.json")
    assert values["fingerprint"] == "ab" * 32 and values["max_batch"] == 3
    for word in ("TensorRT engine", "tiny", "ab" * 32, "10.3.0", "Orin", "8.7", "fp32"):
        assert word in facts
    query = json.loads(json.dumps(values))
    assert query["height_px"] == 8 and query["feature_dim"] == 4
    assert world.leaks() == []


def test_info_of_the_lite_model(run, tmp_path):
    facts = well(run("engine", "info", default_model_path(), "--json", tmp_path / "facts.json"))
    values = strict_json(tmp_path / "facts.json")
    assert values["name"] == "hashvpr_lite" and values["feature_dim"] == 640
    assert values["operators_tensorrt_8_lacks"] == values["operators_tensorrt_10_lacks"] == []
    assert values["uint8_that_tensorrt_refuses"] == []
    assert "MatMul" in values["operators"] and "fingerprint" in facts


def test_what_cannot_be_built_is_refused_before_the_minutes(run, world, tiny_model, tmp_path):
    model, out = tiny_model(), tmp_path / "x.engine"
    refused(run("engine", "build", tmp_path / "no.onnx", out), "no.onnx: no such engine file")
    refused(run("engine", "build", model, tmp_path / "x.trt"), "must end in .engine")
    refused(run("engine", "build", model, tmp_path / "no" / "x.engine"), "make it first")
    refused(run("engine", "build", model, out, "--max-batch", 0), "--max-batch")
    refused(run("engine", "build", model, out, "--precision", "int8"), "--precision")
    world.gpu = None
    refused(run("engine", "build", model, out), str(model), "no usable NVIDIA GPU")
    assert not world.count("build_serialized_network") and not out.exists()


def test_without_tensorrt_the_command_names_how_to_install_it(run, tiny_model, tmp_path):
    pytest.importorskip("onnxruntime")
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed here")
    done = run("engine", "build", tiny_model(), tmp_path / "x.engine")
    refused(done, "pip install tensorrt pycuda")


def test_info_of_other_files(run, tmp_path):
    (tmp_path / "plain.engine").write_bytes(b"ftrt" + bytes(100))
    refused(run("engine", "info", tmp_path / "plain.engine"), "trtexec", "engine build")
    (tmp_path / "x.pth").write_bytes(b"x")
    refused(run("engine", "info", tmp_path / "x.pth"), ".onnx, .engine or .plan")
    refused(run("engine", "info", tmp_path / "no.engine"), "no such engine file")
