"""Our file of a TensorRT engine: a header that says what it is and where it runs, then the plan.

Layout: 8 bytes magic; uint32 version; uint32 length of the header (both little-endian); the header
as JSON, whose last entry is the hash of the others; the plan. A plan alone (as trtexec writes it)
has no fingerprint, so that a map of another model would be searched with it, and TensorRT reads a
foreign one at its own risk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashvpr_ros.engine.base import MOST_CELLS
from hashvpr_ros.errors import EngineError, reason_of
from hashvpr_ros.file_io import MB, open_regular

MAGIC = b"HVPRTRT\n"
VERSION = 1
_FIXED = struct.Struct("<8sII")
_LONGEST_HEADER = 1 << 20
_MOST_BYTES = 8_000 * MB
_MOST = {"height": 4096, "width": 4096, "feature_dim": 65536, "max_batch": 1024}
_HEADER_HASH = "header_sha256"
_BUILD = "build it again with `hashvpr engine build`"


@dataclass(frozen=True)
class EngineHeader:
    """What an engine file says of itself."""

    name: str  # of the model
    fingerprint: str  # of the model, as in its .onnx
    height: int  # pixels
    width: int
    feature_dim: int  # D
    local_shape: tuple[int, int, int] | None  # of local descriptors; None: it gives none
    probability_curve: tuple[float, float] | None
    license: str
    model_version: str
    tensorrt: str  # version that built it
    gpu: str  # name of the GPU that it was built on
    compute_capability: str
    precision: str  # "fp32" or "fp16": what it computes in
    max_batch: int  # images at a time
    build_key: str  # hash of all that went into it, see `tensorrt_build.build_key`
    plan_bytes: int = 0
    plan_sha256: str = ""


def write_engine(path: Path, header: EngineHeader, plan: bytes) -> EngineHeader:
    """Write an engine atomically: no moment shows half a file.

    Returns:
        the header with the plan's size and hash.

    Raises:
        EngineError: the file cannot be written.
    """
    header = with_plan(header, plan)
    text = _text_of(dataclasses.asdict(header))
    write_atomically(path, _FIXED.pack(MAGIC, VERSION, len(text)), text, plan)
    return header


def _text_of(values: dict[str, Any]) -> bytes:
    """A header's JSON, with the hash of its entries."""
    digest = hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()
    return json.dumps({**values, _HEADER_HASH: digest}, allow_nan=False).encode()


def with_plan(header: EngineHeader, plan: bytes) -> EngineHeader:
    """The header with the size and hash of its plan."""
    return dataclasses.replace(
        header, plan_bytes=len(plan), plan_sha256=hashlib.sha256(plan).hexdigest()
    )


def write_atomically(path: Path, *parts: bytes) -> None:
    """Write a file under a temporary name, sync it, and give it its name.

    Raises:
        EngineError: the folder cannot be written, or the disk is full; nothing is left then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as f:
                for part in parts:
                    f.write(part)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        with contextlib.suppress(OSError):  # not every file system can
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        megabytes = math.ceil(sum(map(len, parts)) / 1e6)
        remedy = f"free {megabytes} MB there" if full else "give another path"
        raise EngineError(f"{path}: cannot be written: {e.strerror}; {remedy}") from e


def read_engine(path: Path) -> tuple[EngineHeader, bytes]:
    """Read a file and check its plan against the hash in its header.

    Raises:
        EngineError: missing, not such a file, of another version, truncated or damaged.
    """
    if not os.path.lexists(path):
        raise EngineError(
            f"{path}: no such engine file; correct the path (engine.path, or --engine)"
        )
    if os.path.isdir(path):
        raise EngineError(f"{path}: cannot be read: it is a folder; check the path")
    with open_regular(path, _MOST_BYTES, error=EngineError) as f:
        fixed = f.read(_FIXED.size)
        length = _check_fixed(path, fixed)
        text = f.read(length)
        if len(text) < length:
            raise EngineError(f"{path}: is truncated within its header; {_BUILD}")
        header = _parse(path, text)
        size = os.fstat(f.fileno()).st_size - _FIXED.size - length
        if size != header.plan_bytes:
            raise EngineError(
                f"{path}: is truncated or has been appended to, its plan has {size} bytes "
                f"and not {header.plan_bytes}; copy it again, or {_BUILD}"
            )
        plan = f.read(size)
    if hashlib.sha256(plan).hexdigest() != header.plan_sha256:
        raise EngineError(
            f"{path}: is damaged, its plan does not have the hash that its header says; copy it "
            f"again, or {_BUILD}"
        )
    return header, plan


def _check_fixed(path: Path, fixed: bytes) -> int:
    if fixed[: len(MAGIC)] != MAGIC[: len(fixed)] or not fixed:
        raise EngineError(
            f"{path}: is no engine of hashvpr_ros (a plain TensorRT plan, as trtexec writes it, "
            "lacks the model's fingerprint); build it from the .onnx with `hashvpr engine build`"
        )
    if len(fixed) < _FIXED.size:
        raise EngineError(f"{path}: is truncated within its header; {_BUILD}")
    _, version, length = _FIXED.unpack(fixed)
    if version != VERSION:
        raise EngineError(
            f"{path}: has version {version} of the engine file, this hashvpr_ros reads {VERSION}; "
            f"{_BUILD}"
        )
    if length > _LONGEST_HEADER:
        raise EngineError(f"{path}: is damaged, its header would have {length} bytes; {_BUILD}")
    return int(length)


def _parse(path: Path, text: bytes) -> EngineHeader:
    try:
        values: dict[str, Any] = json.loads(text)
        if _HEADER_HASH not in values:
            raise ValueError("it has no hash of its own")
        del values[_HEADER_HASH]
        if _text_of(values) != text:
            raise ValueError("it does not have its own hash")
        curve = values.pop("probability_curve")
        if curve is not None:
            slope, intercept = (float(v) for v in curve)
            if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
                raise ValueError("its probability curve is none")
            curve = (slope, intercept)
        local = values.pop("local_shape")
        if local is not None:
            rows, columns, width = local
            if not all(type(v) is int and 1 <= v <= _MOST["feature_dim"] for v in local) or (
                rows * columns * width > _MOST["feature_dim"] or rows * columns > MOST_CELLS
            ):
                raise ValueError("its shape of local descriptors is none")
            local = rows, columns, width
        header = EngineHeader(probability_curve=curve, local_shape=local, **values)
        for f in dataclasses.fields(EngineHeader):
            value = getattr(header, f.name)
            if f.name in ("probability_curve", "local_shape"):
                continue
            fits = type(value) is str and len(value) <= 1000 and value.isprintable()
            if f.type == "int":
                fits = type(value) is int and 1 <= value <= _MOST.get(f.name, _MOST_BYTES)
            if not fits:
                raise ValueError(f"{f.name} is {value!r:.60}")
    except Exception as e:  # whatever stands there: a RecursionError of lists within lists
        raise EngineError(
            f"{path}: is damaged, its header is malformed ({reason_of(e)}); {_BUILD}"
        ) from e
    return header
