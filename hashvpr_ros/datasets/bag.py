"""Images and poses of a rosbag2, sqlite3 or mcap, by the library `rosbags`; no ROS needed."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from hashvpr_ros import imaging
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.types import Pose

_IMAGE = "sensor_msgs/msg/Image"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_POSES = {
    "nav_msgs/msg/Odometry": lambda m: m.pose.pose,
    "geometry_msgs/msg/PoseStamped": lambda m: m.pose,
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda m: m.pose.pose,
}


def typestore() -> Typestore:
    """The types of Jazzy and our own messages, for reading and writing bags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in sorted(_interfaces().glob("*.msg")):
        types |= get_types_from_msg(path.read_text(), f"hashvpr_ros/msg/{path.stem}")
    store.register(types)
    return store


def _interfaces() -> Path:
    """Where our .msg files lie: in a source tree, a pip installation or a ROS workspace."""
    package = Path(__file__).resolve().parent.parent
    places = [package.parent / "msg", package / "interfaces" / "msg"]
    places += [p / "share" / "hashvpr_ros" / "msg" for p in package.parents[:6]]
    for place in places:
        if (place / "PlaceHypotheses.msg").is_file():
            return place
    raise DatasetError(f"our message definitions were not found in {places[0]}; install again")


def stamp_ns(stamp: Any) -> int:
    """A builtin_interfaces/Time as nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def open_bag(path: Path) -> AnyReader:
    """Open a bag for reading; the caller closes it.

    Raises:
        DatasetError: missing, foreign or damaged.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such bag; correct the path")
    try:
        reader = AnyReader([path], default_typestore=typestore())
        reader.open()
    except Exception as e:  # sqlite3, mcap, yaml and zstd each raise their own
        raise DatasetError(f"{path}: not a readable bag ({e}); `ros2 bag reindex` may help") from e
    return reader


def read_hypotheses(path: Path) -> Iterator[tuple[int, Any]]:
    """Recorded PlaceHypotheses: stamps of their images in ns, and the messages.

    Raises:
        DatasetError: the bag cannot be read.
    """
    with closing(open_bag(path)) as reader:
        wanted = "hashvpr_ros/msg/PlaceHypotheses"
        connections = [c for c in reader.connections if c.msgtype == wanted]
        for _, message in _messages(reader, connections, path):
            yield stamp_ns(message.header.stamp), message


class BagFrames:
    """Frames of one image topic of a bag.

    Args:
        path: of the bag's folder or file.
        image_topic: sensor_msgs/Image or CompressedImage.
        pose_topic: Odometry, PoseStamped or PoseWithCovarianceStamped; "" for none.
        max_age_s: an image has a pose only when one was stamped within this time of it.

    Raises:
        DatasetError: the bag cannot be read, or lacks the topic.
    """

    def __init__(
        self, path: Path, image_topic: str, pose_topic: str = "", max_age_s: float = 0.2
    ) -> None:
        self.path, self.image_topic, self.pose_topic = path, image_topic, pose_topic
        self.max_age_ns = round(max_age_s * 1e9)
        self.skipped: list[str] = []  # why images were left out, one line each
        reader = open_bag(path)
        try:
            self._count = _topic(reader, path, image_topic, (_IMAGE, _COMPRESSED))
            self._poses = self._read_poses(reader) if pose_topic else []
        finally:
            reader.close()
        self._pose_stamps = [s for s, _ in self._poses]

    def _read_poses(self, reader: AnyReader) -> list[tuple[int, Pose]]:
        _topic(reader, self.path, self.pose_topic, tuple(_POSES))
        connections = [c for c in reader.connections if c.topic == self.pose_topic]
        poses = []
        for message in _messages(reader, connections, self.path):
            kind, value = message
            p = _POSES[kind](value)
            pose = Pose(
                (p.position.x, p.position.y, p.position.z),
                (p.orientation.x, p.orientation.y, p.orientation.z, p.orientation.w),
                value.header.frame_id,
            )
            if pose.is_valid():
                poses.append((stamp_ns(value.header.stamp), pose))
        return sorted(poses, key=lambda item: item[0])

    def pose_at(self, stamp: int) -> Pose | None:
        """The pose nearest in time, None where all are further than `max_age_s`."""
        i = bisect.bisect_left(self._pose_stamps, stamp)
        near = [self._poses[j] for j in (i - 1, i) if 0 <= j < len(self._poses)]
        near = [item for item in near if abs(item[0] - stamp) <= self.max_age_ns]
        return min(near, key=lambda item: abs(item[0] - stamp))[1] if near else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        reader = open_bag(self.path)
        self.skipped = []
        try:
            connections = [c for c in reader.connections if c.topic == self.image_topic]
            for kind, message in _messages(reader, connections, self.path):
                stamp = stamp_ns(message.header.stamp)
                try:
                    rgb = decode(kind, message)
                except ImageError as e:
                    self.skipped.append(f"image at {stamp / 1e9:.3f} s: {e}")
                    continue
                yield Frame(rgb, stamp, self.pose_at(stamp), self.image_topic)
        finally:
            reader.close()


def decode(kind: str, message: Any) -> NDArray[np.uint8]:
    """RGB of an Image or CompressedImage message.

    Raises:
        ImageError: damaged or of an unknown encoding.
    """
    if kind == _COMPRESSED:
        return imaging.decode_compressed(message.data)
    return imaging.to_rgb(
        message.data,
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
    )


def _topic(reader: AnyReader, path: Path, topic: str, kinds: tuple[str, ...]) -> int:
    """How many messages a topic has; it must exist and be of one of the types."""
    found = reader.topics.get(topic)
    if found is None or found.msgtype not in kinds:
        there = "; ".join(f"{name} ({info.msgtype})" for name, info in reader.topics.items())
        wrong = f"is a {found.msgtype}" if found is not None else "is not in the bag"
        raise DatasetError(f"{path}: topic {topic} {wrong}; the bag has {there or 'no topics'}")
    return int(found.msgcount)


def _messages(reader: AnyReader, connections: list, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        for connection, _, raw in reader.messages(connections=connections):
            yield connection.msgtype, reader.deserialize(raw, connection.msgtype)
    except (AnyReaderError, OSError, ValueError, KeyError, AssertionError) as e:
        raise DatasetError(f"{path}: damaged: {e}") from e
