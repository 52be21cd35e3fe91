"""`hashvpr train`, `export`, `evaluate` of a checkpoint, and both benchmarks, small but real."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from cli_helpers import ENVIRONMENT, well

# A mark, not importorskip: see test_packaging.py.
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="training needs torch: make env-train"
    ),
    pytest.mark.usefixtures("shallow"),
]


@pytest.fixture
def trained(run, few, tmp_path):
    """A shallow ViT-S with both branches, trained for an epoch each on eight images at 28x42."""
    folder = few(4)
    settings = {
        "output": str(tmp_path / "float"),
        "model": {"size": "small", "float_dim": 64, "license": "MIT"},
        "data": {
            "folder": str(folder),
            "validation_folder": str(folder),
            "height": 28,
            "width": 42,
            "augmentation": "camera",
            "workers": 0,
        },
        "optimizer": {"epochs": 1, "places_per_batch": 4, "images_per_place": 2},
    }
    path = tmp_path / "float.yaml"
    path.write_text(yaml.safe_dump(settings))
    done = run("train", "float", path)
    well(done)
    assert "the backbone is random; set model.backbone_weights" in done.err
    assert "4 places, 28x42" in done.out and "epoch 0: loss" in done.out
    history = json.loads((tmp_path / "float" / "history.json").read_text())
    assert history[0]["epoch"] == 0 and set(history[0]["recall"]) == {"1", "5", "10"}
    settings |= {"output": str(tmp_path / "hash")}
    settings["model"] = {"checkpoint": str(tmp_path / "float" / "best.pth"), "license": "MIT"}
    path.write_text(yaml.safe_dump(settings))
    well(run("train", "hash", path))
    return tmp_path / "hash" / "best.pth"


def test_train_evaluate_and_export(run, trained, few, tmp_path):
    folder = few(4, name="other")
    done = run("evaluate", folder, "--engine", trained)
    well(done)
    assert "selavprpp-dinov2-small-gem" in done.out and "code, re-ranked" in done.out
    out, numbers = tmp_path / "m.onnx", tmp_path / "n.json"
    done = run("export", trained, out, "--json", numbers)
    well(done)
    assert "fp32, 28x42" in done.out and "% of bits equal" in done.out
    assert json.loads(numbers.read_text())["largest_error"] < 1e-4
    done = run("evaluate", folder, "--engine", out)
    well(done)
    done = run("engine", "info", out)
    well(done)
    assert "MIT" in done.out
    well(run("export", trained, tmp_path / "s.onnx", "--size", "42"))
    done = run(
        "bench",
        "export",
        trained,
        "--calibration",
        _many(few) / "ref",
        "--repeats",
        3,
        "--batch",
        1,
        "--threads",
        1,
    )
    well(done)
    assert "int8 gains on it" in done.out and "% of bits equal" in done.out


def _many(few):
    return few(16, name="many")


def test_misuse_is_one_line(run, trained, tmp_path):
    for arguments, words in (
        (("export", tmp_path / "none.pth", tmp_path / "m.onnx"), "no such file"),
        (("export", trained, tmp_path / "m.onnx", "--size", "50"), "multiples of 14"),
        (("export", trained, tmp_path / "m.onnx", "--size", "big"), "is no size in pixels"),
        (("export", trained, tmp_path / "m.onnx", "--batch", "few"), "a number or dynamic"),
        (("export", trained, tmp_path / "m.onnx", "--precision", "int8"), "to calibrate"),
        (("export", trained, tmp_path / "m.pt"), "must end in .onnx"),
        (("train", "float", tmp_path / "none.yaml"), "cannot be read"),
        (("train", "float", tmp_path / "float.yaml", "--set", "epochs"), "NAME=VALUE"),
        (("train", "float", tmp_path / "float.yaml", "--set", "a=1"), "unknown setting 'a'"),
        (("train", "both", tmp_path / "float.yaml"), "'both' is not one of"),
        (("bench", "train", "--image", "50"), "multiple of 14"),
    ):
        done = run(*arguments)
        assert done.code == 2 and not done.out, (arguments, done)
        (line,) = done.err.splitlines()
        assert line.startswith("hashvpr: error: ") and words in line, line
    assert not list(tmp_path.glob("m.*"))


def test_the_example_is_every_setting(run):
    done = run("train", "--example")
    well(done)
    values = yaml.safe_load(done.out)
    assert values["optimizer"]["places_per_batch"] == 120 and values["loss"]["beta"] == 50.0


def test_what_a_step_costs(run, tmp_path):
    plot, numbers = tmp_path / "t.png", tmp_path / "t.json"
    done = run(
        *("bench", "train", "--batch", 4, "--image", 56, "--rounds", 1, "--steps", 1),
        *("--threads", 1, "--json", numbers, "--plot", plot),
    )
    well(done)
    rows = {r["way"]: r for r in json.loads(numbers.read_text())["rows"]}
    assert set(rows) == {"side", "cached", "inserted", "tuned"}
    assert rows["side"]["parameters"] == rows["inserted"]["parameters"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "none.pth", "x.onnx"), "none.pth: no such file"),
        (("export", "fifo.pth", "x.onnx"), "fifo.pth: is a FIFO"),
        (("export", "x.pth", "x.onnx", "--calibration", "none"), "none: there is no such folder"),
        (("train", "float", "none.yaml"), "none.yaml: cannot be read"),
        (("train", "float", "x.yaml"), "data.folder is empty"),
        (("train", "float", "x.yaml", "--set", "data.folder=none"), "no such folder of training"),
        (
            ("train", "hash", "x.yaml", "--set", "model.checkpoint=none.pth"),
            "model.checkpoint: none.pth: cannot be read",
        ),
        (
            ("train", "float", "x.yaml", "--set", "model.backbone_weights=fifo.pth"),
            "model.backbone_weights: fifo.pth: is a FIFO",
        ),
    ],
)
def test_a_path_that_is_wrong_is_said_before_torch_is_loaded(tmp_path, arguments, words):
    os.mkfifo(tmp_path / "fifo.pth")
    (tmp_path / "x.pth").write_bytes(b"")
    (tmp_path / "x.yaml").write_text("output: runs")
    script = (
        "import sys; from hashvpr_ros.cli.main import main\n"
        "sys.modules['torch'] = None\n"  # whoever imports it gets an ImportError
        "sys.argv = ['hashvpr', *sys.argv[1:]]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode != 0 and words in done.stderr, done.stderr
    assert "torch" not in done.stderr and "Traceback" not in done.stderr
