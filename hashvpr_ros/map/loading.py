"""Reading a map's codes into the index, and distrusting every value on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.schema import MAX_ID
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES


def load_index(store: Store) -> tuple[HammingIndex, dict[str, int]]:
    """The index over all codes of a map, and the number of each session by its name.

    Raises:
        sqlite3.Error, ValueError, TypeError: the file is damaged.
    """
    index = HammingIndex()
    index.reserve(store.count())
    last = 0
    for rows in store.codes():
        ids, sessions, stamps, codes = zip(*rows, strict=True)
        if set(map(len, codes)) != {CODE_BYTES}:
            raise ValueError("a code has a wrong length")
        numbers = _integers(ids, 1, MAX_ID)
        # Tested at once: a tree that leads back into itself may have no end.
        if numbers[0] <= last or (np.diff(numbers) <= 0).any():
            raise ValueError("ids are in disorder")
        last = int(numbers[-1])
        index.add(
            np.frombuffer(b"".join(codes), np.uint8).reshape(-1, CODE_BYTES),
            numbers.astype(np.int32),
            _integers(sessions, 1, MAX_ID).astype(np.int32),
            _integers(stamps),
        )
    names = store.sessions()
    _integers(list(names.values()), 1, MAX_ID)
    return index, names


def _integers(
    values: Sequence[int], least: int = -(2**63), most: int = 2**63 - 1
) -> NDArray[np.int64]:
    """An array of what must be integers in a range; damage can make other values of them."""
    if not set(map(type, values)) <= {int}:
        raise TypeError("a number has another type")
    if values and not least <= min(values) <= max(values) <= most:
        raise ValueError("a number is out of range")
    return np.array(values, np.int64)
