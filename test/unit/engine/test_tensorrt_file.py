"""The file of an engine: written whole or not at all, and every damage is told apart."""

import dataclasses
import errno
import json
import os
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
    name="tiny", fingerprint="ab" * 32, height=8, width=12, feature_dim=4,
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


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b"null", b"{}"])
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
