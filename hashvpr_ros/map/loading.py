"""Reading a map's columns into memory, and distrusting every value on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.schema import MAX_ID
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES


def fill_index(index: HammingIndex, store: Store) -> dict[str, int]:
    """Add all codes of a map to an empty index, and build what it is searched by.

    Returns:
        the number of each session by its name.

    Raises:
        sqlite3.Error, ValueError, TypeError: the file is damaged.
    """
    index.reserve(store.count())
    last = 0
    for rows in store.codes():
        ids, sessions, stamps, codes = zip(*rows, strict=True)
        numbers = _ascending(ids, last)
        last = int(numbers[-1])
        index.add(
            _codes(codes),
            numbers.astype(np.int32),
            _integers(sessions, 1, MAX_ID).astype(np.int32),
            _integers(stamps),
        )
    names = store.sessions()
    _integers(list(names.values()), 1, MAX_ID)
    index.build()
    return names


@dataclass(frozen=True)
class Columns:
    """All keyframes of a map but for features and thumbnails, by id."""

    ids: NDArray[np.int32]  # [n], ascending
    sessions: NDArray[np.int32]  # [n], keys of `session_names`
    session_names: dict[int, str]
    cameras: list[str]
    stamps_ns: NDArray[np.int64]  # [n]
    frame_ids: list[str | None]  # None without a pose
    poses: NDArray[np.float64]  # [n, 7]: x, y, z in metres, qx, qy, qz, qw; NaN without a pose
    codes: NDArray[np.uint8]  # [n, 64]
    crcs: NDArray[np.int64]  # [n], checksums of everything but id and session

    def __len__(self) -> int:
        return len(self.ids)


def load_columns(store: Store) -> Columns:
    """Read the columns of a map.

    Raises:
        sqlite3.Error, ValueError, TypeError: the file is damaged.
    """
    ids, sessions, stamps, crcs = ([np.empty(0, np.int64)] for _ in range(4))
    poses, codes = [np.empty((0, 7))], [np.empty((0, CODE_BYTES), np.uint8)]
    cameras: list[str] = []
    frame_ids: list[str | None] = []
    last = 0
    for rows in store.columns():
        id_, session, camera, stamp, frame_id, *pose, code, crc = zip(*rows, strict=True)
        numbers = _ascending(id_, last)
        last = int(numbers[-1])
        ids.append(numbers)
        sessions.append(_integers(session, 1, MAX_ID))
        cameras += _texts(camera)
        stamps.append(_integers(stamp))
        frame_ids += _texts(frame_id, str, type(None))
        poses.append(_poses(pose, frame_id))
        codes.append(_codes(code))
        crcs.append(_integers(crc))
    names = {number: name for name, number in store.sessions().items()}
    _texts(list(names.values()))
    found = np.concatenate(sessions)
    if not set(np.unique(found).tolist()) <= names.keys():
        raise ValueError("keyframes have sessions that are not there")
    return Columns(
        np.concatenate(ids).astype(np.int32),
        found.astype(np.int32),
        names,
        cameras,
        np.concatenate(stamps),
        frame_ids,
        np.concatenate(poses),
        np.concatenate(codes),
        np.concatenate(crcs),
    )


def _ascending(values: Sequence[int], last: int) -> NDArray[np.int64]:
    """Ids that follow `last`."""
    numbers = _integers(values, 1, MAX_ID)
    # Tested at once: a tree that leads back into itself may have no end.
    if numbers[0] <= last or (np.diff(numbers) <= 0).any():
        raise ValueError("ids are in disorder")
    return numbers


def _codes(values: Sequence[bytes]) -> NDArray[np.uint8]:
    if set(map(len, values)) != {CODE_BYTES}:
        raise ValueError("a code has a wrong length")
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, CODE_BYTES)


def _poses(values: Sequence[Sequence], frame_ids: Sequence) -> NDArray[np.float64]:
    """Poses, [n, 7], of seven columns; NaN where there is none."""
    poses = np.array(values, np.float64).T  # None becomes NaN
    present = np.array([frame_id is not None for frame_id in frame_ids])
    whole = np.isfinite(poses).all(axis=1) & poses[:, 3:].any(axis=1)
    if (whole != present).any() or not np.isnan(poses[~present]).all():
        raise ValueError("a pose is incomplete")
    return poses


def _texts(values: Sequence, *types: type) -> Sequence:
    if not set(map(type, values)) <= set(types or (str,)):
        raise TypeError("a name is no text")
    return values


def _integers(
    values: Sequence[int], least: int = -(2**63), most: int = 2**63 - 1
) -> NDArray[np.int64]:
    """An array of what must be integers in a range; damage can make other values of them."""
    if not set(map(type, values)) <= {int}:
        raise TypeError("a number has another type")
    if values and not least <= min(values) <= max(values) <= most:
        raise ValueError("a number is out of range")
    return np.array(values, np.int64)
