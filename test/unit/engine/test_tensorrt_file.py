"""The file of an engine: written whole or not at all, and every damage is told apart."""

import dataclasses
import errno
import json
import os
import random
import struct

import pytest

from hashvpr_ros.engine import tensorrt_file
from hashvpr_ros.engine.tensorrt_file import (
    EngineHeader,
    read_engine,
    write_atomically,
    write_engine,
)
from hashvpr_ros.errors import EngineError

HEADER = EngineHeader(
    name="tiny", fingerprint="ab" * 32, height=8, width=12, feature_dim=4, local_shape=(2, 3, 5),
    probability_curve=(12.5, -3.0), license="Apache-2.0", model_version="1", tensorrt="10.3.0",
    gpu="Orin", compute_capability="8.7", precision="fp16", max_batch=2, build_key="cd" * 32,
)  # fmt: skip
PLAN = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.engine"
    write_engine(path, HEADER, PLAN)
    return path


def refused(path, *words):
    with pytest.raises(EngineError) as e:
        read_engine(path)
    text = str(e.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, text


def test_what_is_written_is_read(path):
    header, plan = read_engine(path)
    assert plan == PLAN
    assert header.plan_bytes == len(PLAN) and len(header.plan_sha256) == 64
    assert dataclasses.replace(header, plan_bytes=0, plan_sha256="") == HEADER
    assert os.listdir(path.parent) == [path.name]
    write_engine(path, dataclasses.replace(HEADER, probability_curve=None), b"x")
    assert read_engine(path)[0].probability_curve is None


def test_missing_and_a_folder(tmp_path):
    refused(tmp_path / "no.engine", "no such engine file", "correct the path")
    (tmp_path / "folder.engine").mkdir()
    refused(tmp_path / "folder.engine", "cannot be read", "check the path")


@pytest.mark.parametrize("content", [b"", b"ftrt\0\0\0\0" + bytes(5000), b"HVPR?", bytes(100)])
def test_a_plain_plan_and_other_files(tmp_path, content):
    path = tmp_path / "plain.engine"
    path.write_bytes(content)
    refused(path, "no engine of hashvpr_ros", "trtexec", "hashvpr engine build")


def test_every_truncation_is_said(path):
    whole = path.read_bytes()
    header_end = len(whole) - len(PLAN)
    for length in (*range(1, header_end + 5), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated", "hashvpr engine build")
    path.write_bytes(whole + b"x")
    refused(path, "appended to")


def test_another_version(path):
    whole = bytearray(path.read_bytes())
    struct.pack_into("<I", whole, 8, 2)
    path.write_bytes(whole)
    refused(path, "version 2", "reads 1", "hashvpr engine build")


def test_a_flipped_bit_of_the_plan(path):
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(EngineError, match=r"tiny\.engine: is damaged, .*hash.*engine build"):
        read_engine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5}, {"height": "8"}, {"height": 0}, {"max_batch": True}, {"tensorrt": None},
        {"probability_curve": [1]}, {"probability_curve": "ab"}, {"unknown": 1}, {"gpu": ...},
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_header(path, change):
    values = dataclasses.asdict(read_engine(path)[0]) | change
    values = {k: v for k, v in values.items() if v is not ...}
    text = json.dumps(values).encode()
    path.write_bytes(struct.pack("<8sII", tensorrt_file.MAGIC, 1, len(text)) + text + PLAN)
    refused(path, "damaged", "malformed")


def test_more_local_descriptors_than_can_be_compared(path):
    write_engine(path, dataclasses.replace(HEADER, local_shape=(256, 256, 1)), PLAN)
    refused(path, "malformed", "local descriptors")


def test_a_header_that_was_changed_does_not_have_its_hash(path):
    whole = path.read_bytes()
    for before, after in (
        (b"abab", b"abaf"),
        (b"12.5", b"92.5"),
        (b"fp16", b"fp32"),
        (b"-3.0", b"-3.1"),
    ):
        path.write_bytes(whole.replace(before, after, 1))
        refused(path, "damaged", "does not have its own hash")
    start = len(whole) - len(PLAN) - 8
    for at in range(16, start):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        refused(path, "damaged", "malformed")


@pytest.mark.parametrize(
    "change",
    [
        {"height": 10**6}, {"feature_dim": 10**9}, {"max_batch": 10**9}, {"name": "a\nb"},
        {"license": "x" * 10**5}, {"probability_curve": [0.0, 1.0]}, {"plan_bytes": 10**15},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_header_with_its_hash_and_values_that_cannot_be(path, change):
    text = tensorrt_file._text_of(dataclasses.asdict(read_engine(path)[0]) | change)
    path.write_bytes(struct.pack("<8sII", tensorrt_file.MAGIC, 1, len(text)) + text + PLAN)
    refused(path, "damaged", "malformed")


def fuzz_headers(path, count: int, seed: int = 0) -> dict[str, int]:
    """Read engines whose header was mutated, or made of odd JSON; only EngineErrors may come.

    Returns:
        how many were read and how many refused.
    """
    rng, found = random.Random(seed), {"read": 0, "refused": 0}
    whole = path.read_bytes()
    end = len(whole) - len(PLAN)
    values = dataclasses.asdict(read_engine(path)[0])
    for _ in range(count):
        if rng.random() < 0.5:
            text = tensorrt_file._text_of(values | {rng.choice(list(values)): odd_value(rng)})
            content = struct.pack("<8sII", tensorrt_file.MAGIC, 1, len(text)) + text + PLAN
        else:
            changed = bytearray(whole[:end])
            for _ in range(rng.choice((1, 1, 3))):
                at = rng.randrange(len(changed))
                if rng.random() < 0.5:
                    changed[at] = rng.randrange(256)
                else:
                    part = rng.choice((b"", b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"NaN"))
                    changed[at : at + rng.randrange(4)] = part
            content = bytes(changed) + PLAN
        path.write_bytes(content)
        try:
            read_engine(path)
            found["read"] += 1
        except EngineError as e:
            assert str(e).startswith(str(path)), str(e)
            assert "\n" not in str(e) and len(str(e)) < 450 + len(str(path)), str(e)
            found["refused"] += 1
    path.write_bytes(whole)
    return found


def odd_value(rng: random.Random):
    """A value of JSON that may stand anywhere."""
    deep: list = []
    for _ in range(rng.choice((1, 10, 300))):
        deep = [deep]
    return rng.choice(
        (None, True, -1, 0, 10**400, 1.5, "", "x", "\u0000", "x" * 5000, "\ud800", [], {}, deep,
         [1, 2], ["a", None], {"a": deep}, [1e308, -1e308])
    )  # fmt: skip


def test_mutated_headers_end_in_one_sentence(path):
    found = fuzz_headers(path, 300)
    assert found["refused"] > 200


def test_what_is_no_regular_file_or_too_large(tmp_path):
    os.mkfifo(tmp_path / "fifo.engine")
    refused(tmp_path / "fifo.engine", "is a FIFO")
    with (tmp_path / "huge.engine").open("wb") as file:
        file.truncate(50 * 10**9)
    refused(tmp_path / "huge.engine", "50,000.0 MB")


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b"null", b"{}", b"[" * 100_000])
def test_a_header_that_is_none(path, text):
    path.write_bytes(struct.pack("<8sII", tensorrt_file.MAGIC, 1, len(text)) + text + PLAN)
    refused(path, "damaged", "malformed")


def test_a_header_of_any_length_takes_no_memory(path):
    path.write_bytes(struct.pack("<8sII", tensorrt_file.MAGIC, 1, 2**32 - 1) + bytes(100))
    refused(path, "damaged", "4294967295 bytes")


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"tiny\.engine: .*No space left.*; free 1 MB there"):
        write_engine(path, HEADER, PLAN)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_a_file(path):
    with pytest.raises(EngineError, match=r"cannot be written: .*; give another path"):
        write_atomically(path / "below.engine", b"x")
