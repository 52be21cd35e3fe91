"""The one reader of files that `torch.save` wrote: nothing that they carry is run.

`torch.load(weights_only=True)` lets a pickle name tensors, storages and plain containers. Trainers
put numbers and arrays of numpy beside the weights, which it does not know. They are allowed here
by stand-ins that take plain numbers alone: numpy's own constructors would take a file's bytes for
pointers to objects.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hashvpr_ros.errors import CheckpointError, reason_of
from hashvpr_ros.file_io import MB, MOST_CHECKPOINT_BYTES, mistaken_for, open_regular

_MOST_PICKLE_BYTES = 4 * MB  # what is not weights: names, shapes, settings
_MOST_STEPS = 1_000_000  # of the pickles of a file in torch's old format
_MOST_NUMPY_BYTES = 4 * MB  # of all values of numpy
_PLAIN_NUMBERS = re.compile(r"[<>=|]?([biufc]\d{1,2}|\?)")


def load(path: str | Path, remedy: str = "download or export it again") -> Any:
    """What `torch.save` wrote, on the CPU; values of numpy become plain numbers and lists.

    Args:
        remedy: what to do where the file is damaged.

    Raises:
        CheckpointError: missing, no regular file, too large, another kind of file, truncated, or
            one that wants to run code.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path) or not os.path.lexists(path):
        what = "is not a file" if os.path.lexists(path) else "no such file"
        raise CheckpointError(f"{path}: {what}; correct the path of the checkpoint")
    with open_regular(path, MOST_CHECKPOINT_BYTES, error=CheckpointError) as file:
        kind = mistaken_for(file.read(512))
        if kind:
            raise CheckpointError(f"{path}: cannot be read as a checkpoint: {kind}")
        _left.numpy_bytes = _MOST_NUMPY_BYTES
        try:
            source = _checked(file)
            with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is odd is refused or harmless
                return torch.load(source, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises what its parts raise, which share no other base
            raise CheckpointError(
                f"{path}: cannot be read as a checkpoint ({_reason(e)}); {remedy}"
            ) from e


def _reason(error: Exception) -> str:
    text = str(error)
    if "weights only load failed" not in text.lower():
        return reason_of(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    what = f" ({named[1][:80]})" if named else ""
    return f"it holds more than weights{what}, and loading it could run code"


def _checked(file: BinaryIO) -> Any:
    """The file, once its table of contents is known to claim no more than the file has."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start[:1] == b"\x80":  # a pickle: torch's format of before 2020
        return _Counting(file)
    if start != b"PK\x03\x04":
        raise ValueError("it is no file of torch.save" if start else "it is empty")
    try:
        with zipfile.ZipFile(_Sparing(file, 64 * MB)) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as e:
        raise ValueError("it is truncated or damaged") from e
    file.seek(0)
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise ValueError("its parts are compressed, which torch never does")
    if sum(m.file_size for m in members) > size:
        raise ValueError("its parts claim more bytes than the file has")
    for member in members:
        if member.filename.endswith(".pkl") and member.file_size > _MOST_PICKLE_BYTES:
            raise ValueError(
                f"its {member.filename!r} has {member.file_size / MB:.1f} MB, more than the "
                f"{_MOST_PICKLE_BYTES / MB:.0f} MB that names and shapes of weights need"
            )
    return file


class _Sparing(io.RawIOBase):
    """A file of which no single read takes more than some bytes."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file, self._most = file, most_bytes

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self._most:
            raise ValueError(f"its table of contents claims {size / MB:.0f} MB")
        return self._file.read(self._most if size is None or size < 0 else size)


class _Counting:
    """A file in torch's old format, whose pickles may take a bounded number of steps."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._steps = file, 0
        self.seek, self.tell = file.seek, file.tell

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError("what it holds beside weights has no end")

    def read(self, size: int = -1) -> bytes:
        self._step()
        return self._file.read(size)

    def readline(self, size: int = -1) -> bytes:
        self._step()
        return self._file.readline(1000)  # the names of modules and functions are lines

    def readinto(self, target: Any) -> int:
        return self._file.readinto(target)  # type: ignore[attr-defined, no-any-return]


class _Left(threading.local):
    """What the file that this thread loads may still make: it can name the same data again."""

    numpy_bytes = 0


_left = _Left()


class _Dtype:
    """In the place of `numpy.dtype`: plain numbers alone."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _PLAIN_NUMBERS.fullmatch(text):
            raise ValueError(f"it holds values of numpy that are no plain numbers ({code!r:.40})")
        self.plain = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # The version of the state, the order of bytes, then what plain numbers do not have.
        order: Any
        _, order, *others = state
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|") or any(v not in (None, -1, 0) for v in others):
            raise ValueError("it holds a type of numpy that is no plain number")
        self.plain = self.plain.newbyteorder(order)


class _Array(list):  # type: ignore[type-arg]
    """In the place of `numpy.ndarray`: the values of a plain array, in lists."""

    def __new__(cls, *arguments: object) -> _Array:
        if arguments:
            raise ValueError("it makes an array of numpy in a way that could run code")
        return super().__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        values = np.frombuffer(_as_bytes(data), _plain(dtype))
        self[:] = np.atleast_1d(values.reshape(shape, order="F" if by_columns else "C")).tolist()


def _reconstruct(kind: object, shape: object, _code: object) -> _Array:
    if kind is not _Array or shape != (0,):
        raise ValueError("it makes an array of numpy in a way that could run code")
    return _Array()


def _scalar(dtype: object, data: object) -> Any:
    (value,) = np.frombuffer(_as_bytes(data), _plain(dtype))
    return value.item()


def _plain(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError("it holds values of numpy without a type")
    return dtype.plain


def _as_bytes(data: object) -> bytes:
    # Pickles of protocol 2 have bytes as text of one byte a character.
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise ValueError("it holds values of numpy that are no plain numbers")
    _left.numpy_bytes -= len(data)
    if _left.numpy_bytes < 0:
        raise ValueError(
            f"it makes more than {_MOST_NUMPY_BYTES / MB:.0f} MB of numpy's values beside weights"
        )
    return data


def _no_bytes(*arguments: object) -> bytes:
    """Pickles of protocol 2 have `bytes()` for the data of an empty array."""
    if arguments:
        raise ValueError("it makes bytes in a way that torch never does")
    return b""


_SCALARS = (
    "bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
# numpy 1 wrote the one spelling, numpy 2 writes the other.
_ALLOWED: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),
    # Types that are only named, by their names: a text cannot be called.
    *((name, f"numpy.{name}") for name in _SCALARS),
    *((name, f"numpy.dtypes.{name.capitalize().replace('Ui', 'UI')}DType") for name in _SCALARS),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
