"""One keyframe as it is written: its columns, its checksums, and the checks on both ways."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.types import CODE_BYTES, Descriptor, Keyframe, Pose

# Bounds of what a row holds, so that a reader can refuse what no map has before it is in memory.
MAX_NAME_BYTES = 65_536  # of a camera, a session, a frame
MAX_THUMBNAIL_BYTES = 4_000_000


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
    if thumbnail is not None and len(thumbnail) > MAX_THUMBNAIL_BYTES:
        raise MapError(
            f"a thumbnail may have {MAX_THUMBNAIL_BYTES} bytes, not {len(thumbnail)}; make it "
            "smaller"
        )
    return Row(
        id_, session, place.camera, stamp_ns, pose, code.tobytes(), half.tobytes(), thumbnail
    )


def check_text(text: str, what: str) -> None:
    """Raise MapError for a name that UTF-8 cannot hold, or that is too long for one."""
    try:
        size = len(text.encode())
    except (UnicodeEncodeError, AttributeError):
        raise MapError(f"the name of a {what} must be text, not {text!r}") from None
    if size > MAX_NAME_BYTES:
        raise MapError(
            f"the name of a {what} has {size} bytes, but may have {MAX_NAME_BYTES}; shorten it"
        )


# The columns of the table `keyframes`, in its order, without the last, `crc`, which covers them.
KEYFRAME_COLUMNS = (
    "id, session_id, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, code, feature_crc, "
    "thumbnail_crc"
)
_NUMBERS = struct.Struct("<qqqqqq")
_NUMBERS_AND_POSE = struct.Struct("<qqqqqq7d")


def keyframe_crc(values: Sequence[Any]) -> int:
    """CRC-32 of a row of `keyframes`.

    Args:
        values: those of `KEYFRAME_COLUMNS`.

    Raises:
        ValueError, TypeError, AttributeError, struct.error: values of other types than were
            written.
    """
    # Written for speed: this is asked of each keyframe that is loaded.
    id_, session, camera, stamp_ns, frame_id, px, py, pz, qx, qy, qz, qw, code, of, thumb = values
    name = camera.encode()
    if thumb is None:
        thumb = -1  # no thumbnail
    if frame_id is not None:
        numbers = _NUMBERS_AND_POSE.pack(
            id_, session, stamp_ns, of, thumb, len(name), px, py, pz, qx, qy, qz, qw
        )
        return zlib.crc32(numbers + code + name + frame_id.encode())
    if not px is py is pz is qx is qy is qz is qw is None:
        raise TypeError("a pose without a frame")
    numbers = _NUMBERS.pack(id_, session, stamp_ns, of, thumb, len(name))
    return zlib.crc32(numbers + code + name)


def is_sound(values: Sequence[Any]) -> bool:
    """Whether a row of `keyframes` is what was written, whatever its types.

    Args:
        values: those of `KEYFRAME_COLUMNS`, then `crc`.
    """
    try:
        return type(values[-1]) is int and keyframe_crc(values[:-1]) == values[-1]
    except (ValueError, TypeError, AttributeError, struct.error):
        return False  # damage can change the type of a value, too


def check_blob(blob: object, crc: int | None, what: str, id_: int) -> bytes | None:
    """A feature or a thumbnail as it was written.

    Args:
        blob: what the file has; None: it has none.
        crc: its CRC-32; None: none was written.
        what, id_: "feature" or "thumbnail", and of which keyframe, for the error.

    Raises:
        ValueError: it is something else.
    """
    if not is_blob(blob, crc):
        raise ValueError(f"the {what} of keyframe {id_} does not match its checksum")
    return blob  # type: ignore[return-value]


def is_blob(blob: object, crc: int | None) -> bool:
    """Whether a feature or a thumbnail is what was written; both None where none was."""
    return (isinstance(blob, bytes) and zlib.crc32(blob) == crc) or blob is crc is None


def values_crc(*values: Any) -> int:
    """CRC-32 of a row of a small table, types included: damage can make a number of a text."""
    return zlib.crc32(ascii(values).encode())


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


def keyframe_from_columns(values: Sequence[Any], sessions: Mapping[int, str]) -> Keyframe:
    """A keyframe as it was written.

    Args:
        values: those of `KEYFRAME_COLUMNS`, then `crc`.
        sessions: names by number.

    Raises:
        ValueError: the values do not match their checksum. LookupError: there is no such session.
    """
    if not is_sound(values):
        raise ValueError(f"keyframe {values[0]!r} does not match its checksum")
    id_, session, camera, stamp_ns, frame_id, *numbers = values[:12]
    pose = None
    if frame_id is not None:
        pose = Pose(tuple(numbers[:3]), tuple(numbers[3:]), frame_id)  # type: ignore[arg-type]
    if session not in sessions:
        raise LookupError(f"keyframe {id_} is of a session that is not there")
    return Keyframe(id_, sessions[session], camera, stamp_ns, pose)


def row_from_columns(values: Sequence[Any], sessions: Mapping[int, str], feature_dim: int) -> Row:
    """A keyframe with all that it holds, as it was written.

    Args:
        values: those of `KEYFRAME_COLUMNS`, then `crc`, feature and thumbnail.

    Raises:
        ValueError, LookupError: the content does not match its checksums.
    """
    *columns, feature, thumbnail = values
    found = keyframe_from_columns(columns, sessions)
    code, feature_crc, thumbnail_crc = columns[12:15]
    feature = check_blob(feature, feature_crc, "feature", found.id)
    if feature is None or len(feature) != 2 * feature_dim:
        raise ValueError(f"the feature of keyframe {found.id} has a wrong size")
    thumbnail = check_blob(thumbnail, thumbnail_crc, "thumbnail", found.id)
    return Row(
        found.id, found.session, found.camera, found.stamp_ns, found.pose, code, feature, thumbnail
    )


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
