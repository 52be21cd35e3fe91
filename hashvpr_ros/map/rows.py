"""One keyframe as it is written: its columns, its checksum, and the checks on both ways."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.types import CODE_BYTES, Descriptor, Keyframe, Pose


@dataclass(frozen=True)
class NewPlace:
    """A keyframe to be added, without an id."""

    camera: str
    stamp_ns: int
    pose: Pose | None
    descriptor: Descriptor
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Row:
    """One keyframe as it is written."""

    id: int
    session: str
    camera: str
    stamp_ns: int
    pose: Pose | None
    code: bytes  # 64
    feature: bytes  # little-endian float16 [D]
    thumbnail: bytes | None


def make_row(id_: int, session: str, place: NewPlace, feature_dim: int) -> Row:
    """Check a place and encode it.

    One row that cannot be written would hold up its whole batch for ever, so that whatever
    SQLite would refuse is refused here.

    Raises:
        MapError: a malformed code, feature, stamp, name or thumbnail.
    """
    code = np.asarray(place.descriptor.code)
    if code.dtype != np.uint8 or code.shape != (CODE_BYTES,):
        raise MapError(f"a code must be uint8 [64], not {code.dtype} {list(code.shape)}")
    feature = np.asarray(place.descriptor.feature)
    if feature.shape != (feature_dim,):
        raise MapError(f"a feature must have {feature_dim} values, not {list(feature.shape)}")
    with np.errstate(over="ignore"):
        half = feature.astype("<f2")
    if not np.isfinite(half).all():
        raise MapError("a feature holds NaN, infinity or more than 65504; the engine is at fault")
    stamp_ns = int(place.stamp_ns)
    if not -(2**63) <= stamp_ns < 2**63:
        raise MapError(f"a stamp must fit 64 bits of nanoseconds, not {stamp_ns}")
    pose = place.pose if place.pose is not None and place.pose.is_valid() else None
    if pose is not None:
        check_text(pose.frame_id, "frame of a pose")
    check_text(place.camera, "camera")
    thumbnail = None if place.thumbnail is None else bytes(place.thumbnail)
    return Row(
        id_, session, place.camera, stamp_ns, pose, code.tobytes(), half.tobytes(), thumbnail
    )


def check_text(text: str, what: str) -> None:
    """Raise MapError for a name that UTF-8 cannot hold, as names of files sometimes are."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise MapError(f"the name of a {what} must be text, not {text!r}") from None


def row_crc(
    camera: str,
    stamp_ns: int,
    pose_values: Sequence[float | str | None],
    code: bytes,
    feature: bytes,
    thumbnail: bytes | None,
) -> int:
    """CRC-32 of everything that a keyframe holds, to find flipped bits in stored content."""
    crc = zlib.crc32(camera.encode())
    crc = zlib.crc32(struct.pack("<q", stamp_ns), crc)
    crc = zlib.crc32(repr(tuple(pose_values)).encode(), crc)
    for part in (code, feature, thumbnail or b""):
        crc = zlib.crc32(part, crc)
    return crc


def matches_crc(crc: int, camera: str, *content: Any) -> bool:
    """Whether stored content, as `row_crc` takes it, is what was written; of any type."""
    try:
        return row_crc(camera, *content) == crc
    except (TypeError, AttributeError, UnicodeEncodeError, struct.error):
        return False  # damage can change the type of a value, too


def texts(values: Collection, *types: type) -> Collection:
    """The same values.

    Raises:
        TypeError: one is of none of the types, which are text alone where none is given.
    """
    if not set(map(type, values)) <= set(types or (str,)):
        raise TypeError("a name is no text")
    return values


def pose_columns(pose: Pose | None) -> tuple[str | float | None, ...]:
    """frame_id, px, py, pz, qx, qy, qz, qw; all None without a pose."""
    if pose is None:
        return (None,) * 8
    # SQLite gives a stored -0.0 back as 0.0, which would not match the checksum: add 0.0.
    return (pose.frame_id, *(float(v) + 0.0 for v in (*pose.position_m, *pose.orientation)))


def keyframe_from_columns(values: Sequence) -> Keyframe:
    """A keyframe from id, session, camera, stamp_ns, and the eight of `pose_columns`.

    Raises:
        MapError: values of other types than were written.
    """
    id_, session, camera, stamp_ns, frame_id, *numbers = values
    sound = isinstance(session, str) and isinstance(camera, str) and isinstance(stamp_ns, int)
    pose = None
    if numbers != [None] * 7:
        sound = sound and isinstance(frame_id, str) and all(isinstance(v, float) for v in numbers)
        pose = Pose(tuple(numbers[:3]), tuple(numbers[3:]), frame_id)  # type: ignore[arg-type]
    if not sound:
        raise MapError(f"keyframe {id_} of the map is damaged; restore the map from a copy")
    return Keyframe(id_, session, camera, stamp_ns, pose)


def row_from_columns(values: Sequence, feature_dim: int) -> Row:
    """A row from id, session, camera, stamp_ns, `pose_columns`, code, crc, feature, thumbnail.

    Raises:
        ValueError: the content does not match its checksum, or values have other types.
    """
    *head, code, crc, feature, thumbnail = values
    id_, session, camera, stamp_ns, *pose = head
    if not isinstance(session, str):
        raise ValueError(f"keyframe {id_} has a session without a name")
    if not isinstance(feature, bytes) or len(feature) != 2 * feature_dim:
        raise ValueError(f"the feature of keyframe {id_} is missing or of a wrong size")
    if not matches_crc(crc, camera, stamp_ns, pose, code, feature, thumbnail):
        raise ValueError(f"keyframe {id_} does not match its checksum")
    found = keyframe_from_columns(head)
    return Row(id_, session, camera, stamp_ns, found.pose, code, feature, thumbnail)


# All half-precision numbers as single-precision ones: half the time that numpy's conversion takes.
_FLOAT_OF_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def feature_matrix(blobs: Sequence[bytes], feature_dim: int) -> NDArray[np.float32]:
    """Stored features as float32 [n, D].

    Raises:
        ValueError: one of them has a wrong length or type.
    """
    if any(not isinstance(b, bytes) or len(b) != 2 * feature_dim for b in blobs):
        raise ValueError("a feature has a wrong length")
    stored = np.frombuffer(b"".join(blobs), "<u2").reshape(len(blobs), feature_dim)
    return _FLOAT_OF_HALF.take(stored)
