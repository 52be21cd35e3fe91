"""Reading a map's columns into memory; every row is tested by its checksum on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.ceiling import BoundedIndex, Views
from hashvpr_ros.map.index import HammingIndex
from hashvpr_ros.map.integrity import check_sum, sums
from hashvpr_ros.map.rows import is_sound, texts
from hashvpr_ros.map.schema import MAX_ID
from hashvpr_ros.map.store import Store
from hashvpr_ros.types import CODE_BYTES

Batches = Iterator[list[tuple]]  # rows of `keyframes`: `rows.KEYFRAME_COLUMNS`, then `crc`


def fill_index(index: HammingIndex, count: int, batches: Batches) -> None:
    """Add keyframes to an empty index, and build what it is searched by.

    Args:
        count: how many there are about.
        batches: as they were written, by id: `checked_batches`, or those of a salvage.
    """
    index.reserve(count)
    last = 0
    for rows in batches:
        if isinstance(index, BoundedIndex):
            part = _columns(rows, last)
            views = Views(part.cameras, part.frame_ids, part.poses)
            index.add_seen(part.codes, part.ids, part.sessions, part.stamps_ns, views)
            last = int(part.ids[-1])
            continue
        ids = _ascending([row[0] for row in rows], last)
        last = int(ids[-1])
        index.add(
            _codes([row[12] for row in rows]),
            ids.astype(np.int32),
            _integers([row[1] for row in rows], 1, MAX_ID).astype(np.int32),
            _integers([row[3] for row in rows]),
        )
    index.build()


def checked_batches(store: Store) -> Batches:
    """All keyframes of a map but for features and thumbnails, tested by their checksums.

    Raises:
        sqlite3.Error, ValueError, TypeError: the file is damaged, which at the end is known of
            rows that are missing.
    """
    sessions = set(store.sessions().values())
    count = total = last = 0
    for rows in store.keyframe_rows():
        # Tested at once: a tree that leads back into itself may have no end.
        last = int(_ascending([row[0] for row in rows], last)[-1])
        for row in rows:
            if not is_sound(row):
                raise ValueError(f"keyframe {row[0]}: its content does not match its checksum")
        if not {row[1] for row in rows} <= sessions:
            raise ValueError("keyframes have sessions that are not there")
        count += len(rows)
        total += sum(row[-1] for row in rows)
        yield rows
    check_sum("keyframes", (count, total), sums(store.db)["keyframes"])
    if last >= store.next_id():
        raise ValueError(f"keyframe {last}: is beyond the highest id ever used")


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
    contents: list[tuple[int, int | None]]  # checksums of feature and thumbnail

    def __len__(self) -> int:
        return len(self.ids)


def load_columns(batches: Batches, names: dict[int, str]) -> Columns:
    """The columns of a map.

    Args:
        batches: as `fill_index` takes them.
        names: of sessions, by number.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    last, parts = 0, []
    for rows in batches:
        parts.append(_columns(rows, last))
        last = int(parts[-1].ids[-1])

    def joined(column: str, empty: NDArray) -> NDArray:
        return np.concatenate([empty, *(getattr(p, column) for p in parts)])

    return Columns(
        joined("ids", np.empty(0, np.int32)),
        joined("sessions", np.empty(0, np.int32)),
        names,
        [camera for p in parts for camera in p.cameras],
        joined("stamps_ns", np.empty(0, np.int64)),
        [frame_id for p in parts for frame_id in p.frame_ids],
        joined("poses", np.empty((0, 7))),
        joined("codes", np.empty((0, CODE_BYTES), np.uint8)),
        [content for p in parts for content in p.contents],
    )


def _columns(rows: Sequence[tuple], last: int) -> Columns:
    """The columns of some keyframes that follow the id `last`, without the names of sessions."""
    id_, session, camera, stamp, frame_id, *pose, code, feature, thumbnail, _ = zip(
        *rows, strict=True
    )
    return Columns(
        _ascending(id_, last).astype(np.int32),
        _integers(session, 1, MAX_ID).astype(np.int32),
        {},
        list(texts(camera)),
        _integers(stamp),
        list(texts(frame_id, str, type(None))),
        _poses(pose, frame_id),
        _codes(code),
        list(zip(feature, thumbnail, strict=True)),
    )


def _ascending(values: Sequence[int], last: int) -> NDArray[np.int64]:
    """Ids that follow `last`."""
    numbers = _integers(values, 1, MAX_ID)
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
