"""Reading a map's columns into memory, and distrusting every value on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.ceiling import BoundedIndex, Views
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.rows import texts
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
    if isinstance(index, BoundedIndex):
        for part in _parts(store):
            views = Views(part.cameras, part.frame_ids, part.poses)
            index.add_seen(part.codes, part.ids, part.sessions, part.stamps_ns, views)
    else:
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
    parts = list(_parts(store))
    names = {number: name for name, number in store.sessions().items()}
    texts(list(names.values()))

    def joined(column: str, empty: NDArray) -> NDArray:
        return np.concatenate([empty, *(getattr(p, column) for p in parts)])

    columns = Columns(
        joined("ids", np.empty(0, np.int32)),
        joined("sessions", np.empty(0, np.int32)),
        names,
        [camera for p in parts for camera in p.cameras],
        joined("stamps_ns", np.empty(0, np.int64)),
        [frame_id for p in parts for frame_id in p.frame_ids],
        joined("poses", np.empty((0, 7))),
        joined("codes", np.empty((0, CODE_BYTES), np.uint8)),
        joined("crcs", np.empty(0, np.int64)),
    )
    if not set(np.unique(columns.sessions).tolist()) <= names.keys():
        raise ValueError("keyframes have sessions that are not there")
    return columns


def _parts(store: Store) -> Iterator[Columns]:
    """The columns of a map, some thousand keyframes at a time, without the names of sessions."""
    last = 0
    for rows in store.columns():
        id_, session, camera, stamp, frame_id, *pose, code, crc = zip(*rows, strict=True)
        numbers = _ascending(id_, last)
        last = int(numbers[-1])
        yield Columns(
            numbers.astype(np.int32),
            _integers(session, 1, MAX_ID).astype(np.int32),
            {},
            list(texts(camera)),
            _integers(stamp),
            list(texts(frame_id, str, type(None))),
            _poses(pose, frame_id),
            _codes(code),
            _integers(crc),
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


def _integers(
    values: Sequence[int], least: int = -(2**63), most: int = 2**63 - 1
) -> NDArray[np.int64]:
    """An array of what must be integers in a range; damage can make other values of them."""
    if not set(map(type, values)) <= {int}:
        raise TypeError("a number has another type")
    if values and not least <= min(values) <= max(values) <= most:
        raise ValueError("a number is out of range")
    return np.array(values, np.int64)
