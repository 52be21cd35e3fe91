"""Writes images and odometry as a rosbag2, by the library `rosbags`."""

from __future__ import annotations

import math
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from hashvpr_ros.datasets.bag import typestore
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.types import Pose

IMAGE_TOPIC, ODOMETRY_TOPIC = "/camera/image", "/odom"
_VERSION = 8  # read by Humble and newer
_STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}


def write_bag(path: Path, frames: Iterable[Frame], *, storage: str = "sqlite3") -> int:
    """Write frames as sensor_msgs/Image and, where they have poses, nav_msgs/Odometry.

    Args:
        path: of the bag's folder; it appears when all is written.
        storage: sqlite3 or mcap.

    Returns:
        how many images were written.

    Raises:
        DatasetError: the folder exists, or cannot be written; of another storage.
    """
    plugin = _STORAGES.get(storage)
    if plugin is None:
        raise DatasetError(f"{path}: unknown storage {storage!r}; give {' or '.join(_STORAGES)}")
    if path.exists():
        raise DatasetError(f"{path}: exists; give another path")
    types = typestore()
    odometry_type, image_type = "nav_msgs/msg/Odometry", "sensor_msgs/msg/Image"
    count = 0
    workplace = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
        # The writer names the files in the bag like its folder.
        unfinished = Path(workplace) / path.name
        with Writer(unfinished, version=_VERSION, storage_plugin=plugin) as writer:
            images = writer.add_connection(IMAGE_TOPIC, image_type, typestore=types)
            odometry = writer.add_connection(ODOMETRY_TOPIC, odometry_type, typestore=types)
            for frame in frames:
                if frame.pose is not None:  # first, so that the image finds its pose
                    message = _odometry(types.types, frame.stamp_ns, frame.pose)
                    raw = types.serialize_cdr(message, odometry_type)
                    writer.write(odometry, frame.stamp_ns, raw)
                raw = types.serialize_cdr(_image(types.types, frame), image_type)
                writer.write(images, frame.stamp_ns, raw)
                count += 1
        unfinished.rename(path)
    except (OSError, sqlite3.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise DatasetError(f"{path}: cannot be written: {reason}; check the folder") from e
    finally:
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)
    return count


def _header(types: dict, stamp_ns: int, frame_id: str):  # type: ignore[no-untyped-def]
    stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def _image(types: dict, frame: Frame):  # type: ignore[no-untyped-def]
    height, width = frame.rgb.shape[:2]
    return types["sensor_msgs/msg/Image"](
        header=_header(types, frame.stamp_ns, "camera"),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(frame.rgb).reshape(-1),
    )


def _odometry(types: dict, stamp_ns: int, pose: Pose):  # type: ignore[no-untyped-def]
    point, turn = types["geometry_msgs/msg/Point"], types["geometry_msgs/msg/Quaternion"]
    vector = types["geometry_msgs/msg/Vector3"]
    x, y, z = (float(v) for v in pose.position_m)
    qx, qy, qz, qw = (float(v) for v in pose.orientation)
    at = types["geometry_msgs/msg/Pose"](
        position=point(x=x, y=y, z=z), orientation=turn(x=qx, y=qy, z=qz, w=qw)
    )
    still = vector(x=0.0, y=0.0, z=0.0)
    return types["nav_msgs/msg/Odometry"](
        header=_header(types, stamp_ns, pose.frame_id),
        child_frame_id="base_link",
        pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=at, covariance=np.zeros(36)),
        twist=types["geometry_msgs/msg/TwistWithCovariance"](
            twist=types["geometry_msgs/msg/Twist"](linear=still, angular=still),
            covariance=np.zeros(36),
        ),
    )


def planar_pose(x_m: float, y_m: float, yaw_rad: float, frame_id: str = "odom") -> Pose:
    """A pose on the ground plane."""
    half = yaw_rad / 2
    return Pose((x_m, y_m, 0.0), (0.0, 0.0, math.sin(half), math.cos(half)), frame_id)
