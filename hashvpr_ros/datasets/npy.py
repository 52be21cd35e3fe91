"""Reads .npy files of others: numbers and texts by numpy, and objects by `number_pickle`.

Nothing is allocated before the size that the header claims is compared with that of the file.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import read_bytes

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
_MOST_HEADER = 10_000  # bytes; numpy writes about 120
_DTYPE = re.compile(r"[<>|=]?[biufcUSO]\d{0,9}")


@dataclass(frozen=True)
class Npy:
    """A .npy file in memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    content: memoryview  # what follows the header

    @property
    def holds_objects(self) -> bool:
        """Whether the content is a pickle."""
        return self.dtype == object

    def array(self) -> NDArray[Any]:
        """The array of a file without objects; read-only.

        Raises:
            ValueError: the content is not as long as the header says, or it holds objects.
        """
        if self.holds_objects:
            raise ValueError("it holds objects")
        expected = math.prod(self.shape) * self.dtype.itemsize
        if len(self.content) != expected:
            raise ValueError(f"its header says {expected} bytes, and {len(self.content)} follow")
        flat = np.frombuffer(self.content, self.dtype) if expected else np.empty(0, self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran_order else "C")


def read_npy(path: Path, most_bytes: int) -> Npy:
    """Read a .npy file of version 1, 2 or 3.

    Raises:
        DatasetError: it is no regular file, or larger than `most_bytes`. ValueError, which says
            why: it is no .npy file of numbers, texts or objects.
    """
    data = memoryview(read_bytes(path, most_bytes, error=DatasetError))
    if data[:6] != _MAGIC or len(data) < 8:
        raise ValueError("it is no .npy file")
    length_bytes = _LENGTH_BYTES.get(data[6])
    if length_bytes is None:
        raise ValueError(f"it has the unknown .npy version {data[6]}")
    start = 8 + length_bytes
    end = start + int.from_bytes(data[8:start], "little")
    if end > len(data) or end - start > _MOST_HEADER:
        raise ValueError("its header is cut off or too long")
    try:
        header = ast.literal_eval(bytes(data[start:end]).decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
        raise ValueError("its header cannot be read") from e
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header cannot be read")
    text, shape = header["descr"], header["shape"]
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError("its elements are neither numbers, texts nor objects")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("its header has no shape")
    try:
        dtype = np.dtype(text)
    except TypeError as e:
        raise ValueError(f"its elements have the unknown type {text}") from e
    return Npy(dtype, shape, bool(header["fortran_order"]), data[end:])
