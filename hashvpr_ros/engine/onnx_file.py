"""An .onnx file before a runtime reads it: what it says of itself, and whether it is whole.

The file is a protobuf message (onnx.proto of github.com/onnx/onnx): fields of a number and a type,
one after the other. Those that matter here are few, so that no robot needs the package `onnx`.

A fingerprint is a hash of the weights before they were folded, so that a checkpoint and every
export of it share maps; it cannot be computed from the file. So a file that names one must have a
digest of everything in it but the digest: one that is damaged, or of which a part was exchanged,
cannot pass for the model that a map was made with. (A digest is no signature. Who writes a program
to forge one can write it into a model of his own.)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hashvpr_ros.errors import EngineError
from hashvpr_ros.file_io import MB, mistaken_for, read_bytes

FINGERPRINT, DIGEST = "hashvpr.fingerprint", "hashvpr.digest"
_MOST_BYTES = 2_000 * MB  # protobuf takes 2 GiB
_MOST_FIELDS = 400_000  # a ViT-L has some 50,000
_LONGEST_TEXT = 1_000  # of what a file says of itself
_BAD = "cannot be loaded as an ONNX model"
_HEX = re.compile(r"[0-9a-f]{64}")

# Numbers of fields, by message.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL = (13, 14)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # types


class _MalformedError(ValueError):
    """What follows is no field of a protobuf message."""


@dataclass(frozen=True)
class OnnxFile:
    """A file that was read and found whole."""

    path: Path
    content: bytes
    metadata: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Of the model: 64 hex digits; of a file that names none the hash of its bytes."""
        return self.metadata.get(FINGERPRINT) or hashlib.sha256(self.content).hexdigest()


def read_onnx(path: str | Path) -> OnnxFile:
    """Read an .onnx file, check it against its digest, and refuse what has no bound.

    Refused are graphs within graphs (Loop, Scan, If) and functions, which can ask for work without
    end; sparse tensors, which can ask for any memory; and weights that lie in other files, which
    no digest covers. No export of this package has them.

    Raises:
        EngineError: no such file, not a regular one, too large, no ONNX, damaged, or refused.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.lexists(path):
        raise EngineError(
            f"{path}: no such engine file; correct the path (engine.path, or --engine)"
        )
    if os.path.isdir(path):
        raise EngineError(f"{path}: is not a file; give the path of an .onnx file")
    content = read_bytes(path, _MOST_BYTES, error=EngineError)
    kind = mistaken_for(content[:512])
    if kind:
        raise EngineError(f"{path}: {_BAD}: it {kind}, or export it again")
    try:
        found = _Walk(memoryview(content))
    except _MalformedError as e:
        raise EngineError(f"{path}: {_BAD} (it is truncated or damaged); export it again") from e
    if DIGEST in found.metadata:
        if found.metadata[DIGEST] != found.digest():
            raise EngineError(
                f"{path}: is damaged or was changed after its export, for its content does not "
                "have the digest that it names; copy or export it again"
            )
    elif FINGERPRINT in found.metadata:
        raise EngineError(
            f"{path}: names the fingerprint of a model and has no digest, so that it may be "
            "another; export it again with this version's `hashvpr export`"
        )
    _check_metadata(path, found.metadata)
    if found.refused:
        raise EngineError(f"{path}: {found.refused}; export it with `hashvpr export`")
    return OnnxFile(path, content, found.metadata)


def with_digest(content: bytes) -> bytes:
    """A model's file with the digest of all else in it, as its last field.

    Raises:
        ValueError: it is no protobuf message.
    """
    walk = _Walk(memoryview(content))
    key, value = DIGEST.encode(), walk.digest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    start, end = walk.digest_at
    field = bytes([_MODEL_METADATA << 3 | _BYTES, len(entry)]) + entry
    return content[:start] + content[end:] + field


def _check_metadata(path: Path, metadata: dict[str, str]) -> None:
    for key, value in metadata.items():
        if key.startswith("hashvpr.") and not (
            len(value) <= _LONGEST_TEXT and value.isprintable()
        ):
            raise EngineError(f"{path}: its metadata {key[:60]!r} is malformed; export it again")
    mark = metadata.get(FINGERPRINT)
    if mark is not None and not _HEX.fullmatch(mark):
        raise EngineError(
            f"{path}: its fingerprint {mark[:80]!r} is not 64 hexadecimal digits; export it again"
        )


class _Walk:
    """What a file holds, found without building a model of it.

    Raises:
        _MalformedError: it is no protobuf message, or has more fields than any model.
    """

    def __init__(self, content: memoryview) -> None:
        self.metadata: dict[str, str] = {}
        self.refused = ""  # why the graph is not taken, as half a sentence
        self.digest_at = (0, 0)  # the bytes of the field with the digest; equal: there is none
        self._content = content
        self._fields_left = _MOST_FIELDS
        for number, value, start, end in self._fields(content):
            if number == _MODEL_GRAPH:
                self._graph(value)
            elif number == _MODEL_METADATA:
                self._metadata(value, start, end)
            elif number == _MODEL_FUNCTIONS:
                self._refuse("it has functions of its own")

    def digest(self) -> str:
        """SHA-256 of all but the field with the digest."""
        start, end = self.digest_at
        digest = hashlib.sha256(self._content[:start])
        digest.update(self._content[end:])
        return digest.hexdigest()

    def _refuse(self, reason: str) -> None:
        self.refused = self.refused or reason

    def _metadata(self, entry: memoryview, start: int, end: int) -> None:
        parts = {1: "", 2: ""}  # key and value
        try:
            for number, value, _, _ in self._fields(entry):
                if number in parts:
                    parts[number] = str(value, "utf-8")
        except UnicodeDecodeError as e:
            raise _MalformedError from e
        key = parts[1]
        if key in self.metadata and key.startswith("hashvpr."):
            raise _MalformedError(f"{key} twice")
        self.metadata[key] = parts[2]
        if key == DIGEST:
            self.digest_at = (start, end)

    def _graph(self, graph: memoryview) -> None:
        for number, value, _, _ in self._fields(graph):
            if number == _GRAPH_NODE:
                self._node(value)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                self._refuse("it has sparse weights")

    def _node(self, node: memoryview) -> None:
        operator = "operator"
        inner = False
        for number, value, _, _ in self._fields(node):
            if number == _NODE_OPERATOR:
                operator = repr(str(value[:40], "utf-8", "replace"))
            elif number == _NODE_ATTRIBUTE:
                for kind, part, _, _ in self._fields(value):
                    if kind in _ATTRIBUTE_TENSORS:
                        self._tensor(part)
                    elif kind in _ATTRIBUTE_SPARSE:
                        self._refuse("it has sparse weights")
                    inner |= kind in _ATTRIBUTE_GRAPHS
        if inner:
            self._refuse(f"its {operator} holds a graph of its own, which may never end")

    def _tensor(self, tensor: memoryview) -> None:
        if any(number in _TENSOR_EXTERNAL for number, *_ in self._fields(tensor)):
            self._refuse("it keeps weights in other files")

    def _fields(self, data: memoryview) -> Iterator[tuple[int, memoryview, int, int]]:
        """Number, content (empty of numbers), start and end of each field of a message."""
        at, size = 0, len(data)
        while at < size:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _MalformedError("more fields than any model")
            start = at
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            first = at
            if kind == _VARINT:
                _, at = _varint(data, at)
                first = at
            elif kind == _BYTES:
                length, first = _varint(data, at)
                at = first + length
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
                first = at
            else:
                raise _MalformedError(f"type {kind}")
            if at > size or number == 0:
                raise _MalformedError("ends within a field")
            yield number, data[first:at], start, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, seven bits a byte from the lowest on, and where it ends."""
    value = shift = 0
    for i in range(at, min(at + 10, len(data))):
        value |= (data[i] & 0x7F) << shift
        if data[i] < 0x80:
            return value, i + 1
        shift += 7
    raise _MalformedError("ends within a number")
