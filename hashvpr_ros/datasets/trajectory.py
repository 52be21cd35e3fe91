"""Trajectories as text files of the TUM RGB-D benchmark (Sturm et al., IROS 2012)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import MB, read_bytes
from hashvpr_ros.poses import unit
from hashvpr_ros.types import Pose

_COLUMNS = ("timestamp", "tx", "ty", "tz", "qx", "qy", "qz", "qw")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LAST_S = 2**63 // 10**9 - 1  # so that nanoseconds fit an int64
_MOST_BYTES = 300 * MB  # 5 hours at 200 poses a second
_NORM_ERROR = 0.01  # quaternions are written with as few as three digits


def read_tum(path: Path) -> list[tuple[int, Pose]]:
    """Poses with their stamps in nanoseconds, in ascending order.

    A line is `timestamp tx ty tz qx qy qz qw`: seconds, metres, a unit quaternion with its real
    part last; between them are spaces or commas. Empty lines and those that begin with # are
    passed over. Quaternions are made as long as 1 to the last digit.

    Raises:
        DatasetError: no such file, a line is no pose or has the stamp of another, or there are no
            poses.
    """
    found: dict[int, tuple[int, Pose]] = {}
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            stamp_ns, pose = _parse(text)
            if stamp_ns in found:
                raise ValueError(f"has the timestamp of line {found[stamp_ns][0]}")
        except ValueError as e:
            raise DatasetError(f"{path}: line {number} {e}; correct or remove it") from e
        found[stamp_ns] = number, pose
    if not found:
        raise DatasetError(f"{path}: holds no poses; write lines of {' '.join(_COLUMNS)}")
    return [(stamp_ns, found[stamp_ns][1]) for stamp_ns in sorted(found)]


def _lines(path: Path) -> Iterator[str]:
    # What is no text becomes a line that is no pose, of which the number is told.
    text = read_bytes(path, _MOST_BYTES, error=DatasetError).decode("utf-8-sig", "replace")
    return iter(io.StringIO(text, newline="\n"))


def _parse(text: str) -> tuple[int, Pose]:
    """Raises ValueError, which says what is wrong with the line."""
    columns = text.replace(",", " ").split()
    if len(columns) != len(_COLUMNS):
        raise ValueError(f"has {len(columns)} columns, not the 8 of TUM ({' '.join(_COLUMNS)})")
    for name, column in zip(_COLUMNS, columns, strict=True):
        if not _NUMBER.fullmatch(column) or not math.isfinite(float(column)):
            raise ValueError(f"has {column[:30]!r} as {name}, which is no finite number")
    x, y, z, qx, qy, qz, qw = (float(column) for column in columns[1:])
    length = math.hypot(qx, qy, qz, qw)
    if abs(length - 1) > _NORM_ERROR:
        raise ValueError(f"has a quaternion of length {length:.3g}, not 1")
    return _stamp_ns(columns[0]), unit(Pose((x, y, z), (qx, qy, qz, qw)))


def _stamp_ns(text: str) -> int:
    # By decimals, since a float64 of today's seconds is exact to 240 ns only.
    try:
        seconds = Decimal(text)
    except InvalidOperation:  # an exponent beyond what decimals have
        seconds = Decimal("NaN")
    if seconds.is_nan() or not 0 <= seconds <= _LAST_S:
        raise ValueError(f"has the timestamp {text[:30]}, which is not in seconds since the epoch")
    return round(seconds.scaleb(9))
