"""Models that are damaged, claim to be others, or are made to do harm: one sentence for each."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_attacks as attacks
import onnxruntime
import pytest
from onnx import TensorProto

from hashvpr_ros.config import EngineConfig
from hashvpr_ros.engine import onnx_engine
from hashvpr_ros.engine.factory import default_model_path, open_engine
from hashvpr_ros.engine.onnx_engine import OnnxEngine
from hashvpr_ros.engine.onnx_file import read_onnx, with_digest
from hashvpr_ros.errors import EngineError, reason_of

FAULTS = Path(__file__).resolve().parents[4] / "shared" / "fault_inputs"
MARK = {"hashvpr.name": "tiny", "hashvpr.fingerprint": "ab" * 32}


def refused(path, *words):
    with pytest.raises(EngineError) as e:
        engine = OnnxEngine(path, threads=1)
        engine.warm_up()
    text = str(e.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600 + len(str(path))
    for word in words:
        assert word in text, text
    return text


@pytest.fixture
def save(tmp_path):
    def write(content, name="x.onnx"):
        data = content if isinstance(content, bytes) else content.SerializeToString()
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


# The digest.


def test_the_shipped_model_has_its_digest_and_its_fingerprint():
    content = default_model_path().read_bytes()
    file = read_onnx(default_model_path())
    assert file.fingerprint.startswith("a024acc90dd2") and file.content == content
    assert with_digest(content) == content and len(content) < 20e6
    # As the export writes it.
    model = onnx.load_model_from_string(content)
    entry = model.metadata_props.pop()
    assert entry.key == "hashvpr.digest"
    assert with_digest(model.SerializeToString(deterministic=True)) == content


def test_every_flipped_bit_is_noticed(tiny_model, tmp_path):
    whole = tiny_model(metadata=MARK).read_bytes()
    missed = [
        (at, bit)
        for at in range(len(whole))
        for bit in ((at * 5) % 8,)
        if not _is_refused(tmp_path / "x.onnx", attacks.flipped(whole, at, bit))
    ]
    assert missed == []
    lite = default_model_path().read_bytes()
    assert attacks.flip_bits(lite, tmp_path / "lite.onnx", 10) == []


def _is_refused(path, content):
    path.write_bytes(content)
    try:
        read_onnx(path)
    except EngineError:
        return True
    return False


def test_another_model_cannot_take_the_metadata_of_the_shipped_one(tiny_model, save):
    ours = onnx.load(str(default_model_path()))
    theirs = onnx.load(str(tiny_model()))
    theirs.metadata_props.extend(ours.metadata_props)
    refused(save(theirs), "was changed after its export", "digest")
    del theirs.metadata_props[-1]
    refused(save(theirs), "has no digest", "hashvpr export")


@pytest.mark.parametrize("change", ["weight", "node", "curve", "size", "order"])
def test_a_part_that_was_exchanged(tiny_model, save, change):
    curve = {"hashvpr.probability_curve": "12.5 -3"}
    model = onnx.load(str(tiny_model(metadata=MARK | curve)))
    if change == "weight":
        model.graph.initializer[1].CopyFrom(attacks.constant("feature", np.ones((1, 4), "f4")))
    elif change == "node":
        model.graph.node[5].input[0] = "other"
    elif change == "curve":
        (entry,) = [p for p in model.metadata_props if p.key in curve]
        entry.value = "99 -3"
    elif change == "size":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    else:
        model.graph.node[4].input[:] = reversed(model.graph.node[4].input)
    refused(save(model), "was changed after its export")


def test_metadata_twice_malformed_or_too_long(tiny_model, save):
    model = onnx.load(str(tiny_model(metadata=MARK)))
    model.metadata_props.add(key="hashvpr.fingerprint", value="cd" * 32)
    refused(save(model), "truncated or damaged")
    for key, value, word in (
        ("hashvpr.fingerprint", "AB" * 32, "64 hexadecimal digits"),
        ("hashvpr.fingerprint", "ab", "64 hexadecimal digits"),
        ("hashvpr.name", "a\nb", "malformed"),
        ("hashvpr.license", "x" * 10**6, "malformed"),
        ("hashvpr.probability_curve", "7 " * 400, "probability curve"),
    ):
        refused(tiny_model(metadata=MARK | {key: value}), word)


# What has no end, or no bound.


def test_graphs_within_graphs_and_functions_are_refused_unread(save):
    refused(save(attacks.loop(2**62)), "'Loop' holds a graph of its own", "hashvpr export")
    refused(save(attacks.branch()), "'If' holds a graph of its own")
    refused(save(attacks.doubling()), "functions of its own")
    refused(save(attacks.sparse()), "sparse weights")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin", "fifo"])
def test_weights_in_other_files_are_not_read(save, tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    os.mkfifo(tmp_path / "fifo")
    refused(save(attacks.external(location)), "weights in other files")


def test_sizes_that_no_image_has(save, tiny_model):
    refused(save(attacks.declared([1, 2**20, 2**20, 3])), "4096 x 4096")
    refused(save(attacks.declared([2**40, 8, 12, 3])), "at most 1024 images")
    # Whoever compares two images by their local descriptors needs memory by the square of these.
    refused(save(attacks.with_locals([1, 256, 256, 1])), "2048 rows x columns")
    refused(tiny_model(dim=65537), "D of at most 65536")


def test_a_tensor_larger_than_any_memory(save, capfd):
    refused(save(attacks.large(2**45)), "the runtime failed")
    refused(save(attacks.large(2**61)), "the runtime failed")
    assert "onnxruntime" not in capfd.readouterr().err  # it is said once, by the error


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((0, 64), np.uint8), "the model gave codes uint8 [0, 64], not uint8 [1, 64]"),
        (np.zeros((2, 64), np.uint8), "codes uint8 [2, 64]"),
        (np.zeros((1, 65), np.uint8), "codes uint8 [1, 65]"),
    ],
)
def test_another_number_of_rows_than_was_asked_for(save, value, words):
    made = attacks.model([])
    made.graph.initializer[0].CopyFrom(attacks.constant("code", value))
    # The sizes are declared by the node before, so that the runtime does not see the difference.
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    made.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value")
    made.graph.node[0].CopyFrom(
        onnx.helper.make_node("Reshape", ["code", "shape"], ["codes"], allowzero=1)
    )
    shape = np.array(value.shape, np.int64)
    made.graph.initializer.append(attacks.constant("shape_", shape))
    made.graph.node.insert(
        0, onnx.helper.make_node("Slice", ["shape_", "zero", "count"], ["shape"])
    )
    made.graph.node.insert(0, onnx.helper.make_node("Size", ["images"], ["size"]))
    made.graph.node.insert(1, onnx.helper.make_node("Min", ["size", "two"], ["least"]))
    made.graph.node.insert(2, onnx.helper.make_node("Unsqueeze", ["least", "zero"], ["count"]))
    made.graph.initializer.append(attacks.constant("zero", np.array([0], np.int64)))
    made.graph.initializer.append(attacks.constant("two", np.array(2, np.int64)))
    refused(save(made), words)


def test_what_does_not_end_is_given_up(monkeypatch, tiny_model):
    """A double of a runtime that goes on until it is told to stop, and of one that never stops."""
    import threading

    engine, stopped, released = OnnxEngine(tiny_model(), threads=1), [], threading.Event()

    class Endless:
        def run(self, names, given, options):
            while not options.terminate and not released.wait(0.01):
                pass
            stopped.append(options.terminate)
            raise RuntimeError("terminated")

    monkeypatch.setattr(onnx_engine, "_MOST_S", 0.1)
    engine._session = Endless()
    with pytest.raises(EngineError, match=r"tiny\.onnx: .*did not end within 0\.1 s.*export"):
        engine.warm_up()
    assert stopped == [True]


def test_a_real_run_is_stopped_between_operators(monkeypatch, save):
    """Two hundred products of matrices, which the runtime cannot compute when it loads them."""
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMax", ["pixels"], ["most"], keepdims=0),
        onnx.helper.make_node("Add", ["matrix", "most"], ["m0"]),
        *(onnx.helper.make_node("MatMul", [f"m{i}", "matrix"], [f"m{i + 1}"]) for i in range(200)),
        onnx.helper.make_node("Slice", ["m200", "from", "to"], ["features"]),
    ]
    made = attacks.model(
        nodes,
        attacks.constant("matrix", np.zeros((700, 700), np.float32)),
        attacks.constant("from", np.array([0, 0], np.int64)),
        attacks.constant("to", np.array([1, attacks.DIM], np.int64)),
        features=False,
    )
    path = save(made)
    engine = OnnxEngine(path, threads=1)
    monkeypatch.setattr(onnx_engine, "_MOST_S", 0.2)
    with pytest.raises(EngineError, match=r"did not end within 0\.2 s"):
        engine.warm_up()


# What is no model at all.


def test_other_kinds_of_files(save, tmp_path):
    refused(save(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer")
    refused(save(b"<!DOCTYPE html><html>"), "web page", "export it again")
    refused(save(b"PK\x03\x04" + bytes(500)), "cannot be loaded as an ONNX model")
    os.mkfifo(tmp_path / "fifo.onnx")
    refused(tmp_path / "fifo.onnx", "is a FIFO")
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(5 * 10**9)
    refused(tmp_path / "sparse.onnx", "5,000.0 MB")
    refused(tmp_path / "none.onnx", "no such engine file")
    refused(Path("~nobody-of-that-name/x.onnx"), "no such engine file")
    refused(tmp_path / ("x" * 300), "no such engine file")


def test_fields_without_end(save):
    refused(save(b"\x10\x00" * 500_000), "truncated or damaged")
    refused(save(b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"), "truncated or damaged")


def test_mutated_models_end_in_one_sentence(tiny_model, tmp_path):
    whole = tiny_model(metadata={"hashvpr.name": "tiny"}).read_bytes()
    found = attacks.fuzz_models(whole, tmp_path / "x.onnx", 400)
    assert found["refused"] > 100 and found["answered"] > 20


# What the runtime is too old for, or could not load.


def test_a_newer_format_says_so(tiny_model, save):
    model = onnx.load(str(tiny_model()))
    model.ir_version = 99
    refused(save(model), "Unsupported model IR version: 99", "install a newer onnxruntime")
    model.ir_version, model.opset_import[0].version = 8, 99
    refused(save(model), "opset", "install a newer onnxruntime")
    if FAULTS.is_dir():
        refused(FAULTS / "newer_ir.onnx", "Unsupported model IR version", "newer onnxruntime")


def test_the_end_of_a_long_reason_is_kept():
    assert reason_of("short\nmore") == "short"
    long = reason_of(f"{'path/' * 100} failed: Unsupported model IR version: 99")
    assert len(long) <= 200 and long.endswith("Unsupported model IR version: 99")


def test_a_provider_that_is_listed_and_does_not_load_is_said(tiny_model, monkeypatch, caplog):
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    for asked in (["CUDAExecutionProvider"], []):
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            OnnxEngine(tiny_model(), asked)
        (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert re.search(r"tiny\.onnx runs on CPUE.*CUDAExecutionProvider could not be", said)


def test_nothing_is_said_of_tensorrt_where_nobody_asked(caplog):
    caplog.set_level("INFO")
    open_engine(EngineConfig()).close()
    assert "TensorRT" not in caplog.text and "tensorrt" not in caplog.text
