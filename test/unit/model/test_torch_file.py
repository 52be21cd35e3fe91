"""Files of torch.save: numpy's plain values load, and nothing that could run or has no end."""

import collections
import functools
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hashvpr_ros.errors import CheckpointError
from hashvpr_ros.model import torch_file
from hashvpr_ros.model.checkpoints import read_state
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite, load_imagenet

FAULTS = Path(__file__).resolve().parents[4] / "shared" / "fault_inputs"
_core = getattr(np, "_core", None) or np.core
reconstruct = _core.multiarray._reconstruct


def refused(path, *words, load=torch_file.load):
    with pytest.raises(CheckpointError) as e:
        load(path)
    text = str(e.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 400 + len(str(path))
    for word in words:
        assert word in text, text


@pytest.fixture
def save(tmp_path):
    def write(content, name="x.pth", *, old_format=False):
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=not old_format)
        return path

    return write


def respelled(path):
    """The same file as another version of numpy spells it; both spellings have to load."""
    data = path.read_bytes()
    pairs = [(b"numpy._core.", b"numpy.core.")]
    here, there = pairs[0] if b"numpy._core." in data else pairs[0][::-1]
    with zipfile.ZipFile(path) as archive:
        parts = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(here, there) if name.endswith(".pkl") else part)
    return path


PLAIN = {
    "float64": (np.float64(2.5), 2.5),
    "int64": (np.int64(-7), -7),
    "bool": (np.bool_(True), True),
    "complex": (np.complex64(1j), 1j),
    "vector": (np.array([91.2, 95.1]), [91.2, 95.1]),
    "by columns": (np.asfortranarray(np.arange(6.0).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]]),
    "big endian": (np.arange(3, dtype=">i2"), [0, 1, 2]),
    "one number": (np.array(3), [3]),
    "empty": (np.zeros((0, 3)), []),
}


@pytest.mark.parametrize("spelling", ["ours", "other"])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_values_of_numpy_load_whichever_version_wrote_them(save, case, spelling):
    value, want = PLAIN[case]
    path = save({"weights": torch.ones(2), "value": value})
    if spelling == "other":
        respelled(path)
    content = torch_file.load(path)
    assert content["value"] == want and torch.equal(content["weights"], torch.ones(2))


def test_the_old_format_and_types_that_are_only_named(save):
    content = {"value": np.float32(0.5), "type": np.float32, "dtype": np.dtype("f4")}
    assert torch_file.load(save(content, old_format=True))["value"] == 0.5
    assert torch_file.load(save(content))["type"] == "float32"


def test_the_file_of_the_authors_trainer():
    if not FAULTS.is_dir():
        pytest.skip(f"{FAULTS} is not there")
    assert list(read_state(FAULTS / "trainer_checkpoint.pth")) == ["a"]
    refused(FAULTS / "lfs_pointer.pth", "is a Git LFS pointer", "git lfs pull")
    refused(FAULTS / "download_page.pth", "is a web page", "download")


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built(Reduced):
    """Pickled as a call of a function whose result then gets a state."""

    def __init__(self, function, arguments, state):
        super().__init__(function, *arguments)
        self.call = (*self.call, state)


HOSTILE = {
    "system": lambda: Reduced(os.system, "touch hacked"),
    "eval": lambda: Reduced(eval, "1"),
    "getattr": lambda: Reduced(getattr, "x", "upper"),
    "partial": lambda: functools.partial(print, 1),
    "a method": lambda: Path("x").unlink,
    "a class of ours": lambda: Reduced(Path, "x"),
    "memory as pointers": lambda: Reduced(np.ndarray, (2, 2), np.dtype("O"), b"A" * 32),
    "memory as numbers": lambda: Reduced(np.ndarray, (2, 2), np.dtype("f8"), b"A" * 32),
    "an array made larger": lambda: Reduced(reconstruct, np.ndarray, (10**12,), b"b"),
    "an array of another class": lambda: Reduced(reconstruct, np.matrix, (0,), b"b"),
    "objects": lambda: np.array([1, "x", None], dtype=object),
    "records": lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "texts": lambda: np.array(["x"]),
    "a state of another shape": lambda: Built(
        reconstruct, (np.ndarray, (0,), b"b"), (1, (10**12,), np.dtype("f8"), False, b"A" * 8)
    ),
    "a state without a type": lambda: Built(
        reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), "f8", False, b"A" * 8)
    ),
    "bytes without end": lambda: Reduced(bytes, 10**14),
    "a buffer without end": lambda: Reduced(bytearray, 10**14),
    "a type called": lambda: Reduced(np.float32, 1),
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_is_run_or_taken_for_memory(save, monkeypatch, tmp_path, case, old_format):
    monkeypatch.chdir(tmp_path)
    refused(save({"x": HOSTILE[case]()}, old_format=old_format), "cannot be read as a checkpoint")
    assert os.listdir(tmp_path) == ["x.pth"]


class _Again:
    """An array of some data, which a pickle holds once however many arrays name it."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        state = 1, (len(self.data),), np.dtype("u1"), False, self.data
        return reconstruct, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("old_format", [False, True])
def test_arrays_that_name_the_same_data_again_and_again(save, old_format):
    data = 1_000_000 * "\x01"
    path = save([_Again(data) for _ in range(5)], old_format=old_format)
    assert path.stat().st_size < 1_010_000
    refused(path, "more than 4 MB of numpy's values")
    for _ in range(2):  # what one file made is not held against the next one
        few = torch_file.load(save([_Again(data) for _ in range(3)], "few.pth"))
        assert [len(values) for values in few] == [1_000_000] * 3


def test_what_is_refused_is_named(save):
    refused(save({"x": Reduced(os.system, "true")}), "(posix.system)", "could run code")
    refused(save({"x": collections.deque()}), "(collections.deque)", "could run code")


def test_other_kinds_of_files_are_called_what_they_are(tmp_path):
    path = tmp_path / "x.pth"
    for content, word in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"<HTML>\n<title>404</title>", "web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        ("Dateï nicht gefunden\n".encode() * 40, "text file"),
        (b'{"error": "not found"}', "text file"),
        (b"\x1f\x8b\x08\x00" + bytes(600), "gzip"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype":"F32"}}', "safetensors"),
        (bytes(600), "no file of torch.save"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        refused(path, "cannot be read as a checkpoint", word)


def test_what_is_no_regular_file_or_too_large(tmp_path):
    fifo, huge = tmp_path / "fifo.pth", tmp_path / "huge.pth"
    os.mkfifo(fifo)
    with huge.open("wb") as file:
        file.truncate(50 * 10**9)
    refused(fifo, "is a FIFO")
    refused(Path("/dev/zero"), "is a device")
    refused(huge, "50,000.0 MB")
    refused(Path("~nobody-of-that-name/x.pth"), "no such file")


def archive(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in parts.items():
            file.writestr(f"x/{name}", content)
    return path


def test_archives_that_unpack_to_more_than_they_are(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    content = {"data.pkl": b"\x80\x02}.", "version": "3\n", "data/0": bytes(10**6)}
    refused(archive(path, content, zipfile.ZIP_DEFLATED), "are compressed")
    refused(archive(path, {**content, "data.pkl": b"\x80\x02" + b"]" * 5_000_000}), "5.0 MB")
    monkeypatch.setattr(torch_file, "_MOST_STEPS", 10_000)
    path.write_bytes(b"\x80\x02" + b"]" * 20_000)
    refused(path, "no end")
    # Two parts that lie over one another: the table claims more than the file has.
    whole = archive(path, content).read_bytes()
    path.write_bytes(whole.replace((10**6).to_bytes(4, "little"), (10**9).to_bytes(4, "little")))
    refused(path, "more bytes than the file has")


def wrapped(names, wrap):
    return {wrap(name): torch.zeros(1) for name in names}


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}", "model.{}", "_orig_mod.{}", "module.module.{}", "model._orig_mod.module.{}",
    ],
)  # fmt: skip
def test_the_names_of_wrappers_are_taken_away(save, wrap):
    names = ["backbone.cls_token", "linear1.weight"]
    state = read_state(save({"state_dict": wrapped(names, wrap.format)}))
    assert list(state) == names


def test_wrappers_within_names(save):
    names = ["backbone.module.cls_token", "module.backbone._orig_mod.blocks.0.norm1.weight"]
    assert list(read_state(save(wrapped(names, str)))) == [
        "backbone.cls_token",
        "backbone.blocks.0.norm1.weight",
    ]
    refused(save(wrapped(["a.b", "a.module.b"], str)), "a.b twice", load=read_state)


def test_names_that_are_none(save):
    for name in ("a\nb", "x" * 5000, 3):
        refused(save({name: torch.zeros(1)}), "not a named tensor", load=read_state)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, a part left out, or a part doubled."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 40)]
        else:
            changed[at:at] = changed[at : at + rng.randrange(1, 40)]
        if not changed:
            return b""
    return bytes(changed)


def fuzz_checkpoints(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Read mutated checkpoints of both formats; anything but a CheckpointError escapes.

    Returns:
        how many were read and how many refused.
    """
    rng, path = random.Random(seed), folder / "mutated.pth"
    content = {
        "model_state_dict": {"module.a": torch.arange(6.0), "module.b": torch.ones(2, 3)},
        "recalls": np.array([91.2, 95.1]), "best_r5": np.float64(186.3), "epoch": 3,
    }  # fmt: skip
    wholes = []
    for new_format in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        wholes.append(path.read_bytes())
    found = {"read": 0, "refused": 0}
    for number in range(count):
        path.write_bytes(mutate(wholes[number % 2], rng))
        try:
            read_state(path)
            found["read"] += 1
        except CheckpointError as e:
            assert "\n" not in str(e), str(e)
            assert len(str(e)) < 600
            found["refused"] += 1
    return found


def test_mutated_checkpoints_end_in_one_sentence(tmp_path):
    found = fuzz_checkpoints(tmp_path, 400)
    assert found["read"] and found["refused"]


def test_the_weights_of_a_backbone_of_other_shapes(save):
    network = EfficientNetLite(0, (0,))
    refused(save([1, 2]), "not the weights of EfficientNet-Lite0", load=_load_into(network))
    state = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)} | {
        f"_bn0.{part}": torch.zeros(1).expand(10**12)
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    refused(save(state), "_bn0.weight is [1000000000000], not [32]", load=_load_into(network))


def _load_into(network):
    return lambda path: load_imagenet(network, path)


def test_pickles_alone_are_no_checkpoints(tmp_path):
    for protocol in (2, 4, 5):
        path = tmp_path / "x.pth"
        path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
        refused(path, "cannot be read as a checkpoint")
