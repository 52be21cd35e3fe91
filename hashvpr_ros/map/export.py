"""A map in formats that other programs read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.backup import placed
from hashvpr_ros.map.edit import MapReader, not_a_source, seconds_text
from hashvpr_ros.map.rows import pose_columns
from hashvpr_ros.poses import unit

_CSV_COLUMNS = (
    *("id", "session", "camera", "stamp_s", "has_pose"),
    *("x_m", "y_m", "z_m", "qx", "qy", "qz", "qw", "frame_id", "code"),
)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    keyframes: int
    without_pose: int  # left out for this
    same_stamp: int  # left out, since another has the stamp


def export_map(
    path: str | Path,
    out: str | Path,
    form: str,
    *,
    overwrite: bool = False,
    salvage: bool = False,
) -> Exported:
    """Write a map in another format; every keyframe is tested by its checksum.

    Args:
        form: one of `FORMATS`.
        salvage: use the valid keyframes of a damaged map.

    Raises:
        MapError: the map cannot be read, has nothing that the format holds, or `out` cannot be
            written. There is no new `out` then.
    """
    with (
        MapReader(path, salvage=salvage) as source,
        placed(not_a_source(out, [source]), overwrite=overwrite, mode=None) as temporary,
    ):
        return FORMATS[form](source, temporary)


def _csv(source: MapReader, path: Path) -> Exported:
    """One row a keyframe; empty columns where there is no pose, the code in hexadecimal."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for row in source.rows():
            head = (row.id, row.session, row.camera, seconds_text(row.stamp_ns))
            pose = pose_columns(row.pose)  # None is written as nothing
            has_pose = int(row.pose is not None)
            writer.writerow([*head, has_pose, *pose[1:], pose[0], row.code.hex()])
    return Exported(len(source), 0, 0)


def _tum(source: MapReader, path: Path) -> Exported:
    """Poses in the order of their stamps, one a stamp, as the readers of this format want it."""
    poses: dict[int, tuple[float, ...]] = {}
    with_pose = 0
    for row in source.rows():
        if row.pose is not None:
            with_pose += 1
            pose = unit(row.pose)
            poses.setdefault(row.stamp_ns, (*pose.position_m, *pose.orientation))
    if not poses:
        raise MapError(
            f"{source.path}: has no poses, and TUM holds nothing else; export it as csv or npz"
        )
    with open(path, "w", encoding="utf-8") as f:
        f.write("# timestamp tx ty tz qx qy qz qw\n")
        for stamp_ns in sorted(poses):
            f.write(f"{seconds_text(stamp_ns)} {' '.join(map(repr, poses[stamp_ns]))}\n")
    return Exported(len(poses), len(source) - with_pose, with_pose - len(poses))


def _npz(source: MapReader, path: Path) -> Exported:
    """Arrays by keyframe, in the order of ids; NaN where there is no pose."""
    columns = source.columns
    features = np.empty((len(source), source.feature_dim), "<f2")
    for i, row in enumerate(source.rows()):
        features[i] = np.frombuffer(row.feature, "<f2")
    with open(path, "wb") as f:
        np.savez(
            f,
            ids=columns.ids,
            stamps_ns=columns.stamps_ns,
            sessions=np.array([columns.session_names[i] for i in columns.sessions.tolist()], str),
            cameras=np.array(columns.cameras, str),
            codes=columns.codes,
            features=features,
            poses=columns.poses,
            frame_ids=np.array([frame or "" for frame in columns.frame_ids], str),
            map_id=np.array(source.map_id),
            fingerprint=np.array(source.fingerprint),
        )
    return Exported(len(source), 0, 0)


FORMATS: dict[str, Callable[[MapReader, Path], Exported]] = {
    "csv": _csv,
    "tum": _tum,
    "npz": _npz,
}
