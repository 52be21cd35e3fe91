"""Images and poses of a rosbag2, sqlite3 or mcap, by the library `rosbags`; no ROS needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from hashvpr_ros import imaging
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.types import Pose

_log = logging.getLogger(__name__)
_IMAGE = "sensor_msgs/msg/Image"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_SUFFIXES = (".db3", ".mcap")
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
    if path.suffix == ".bag":
        what = "rename the folder" if path.is_dir() else "convert it by `rosbags-convert`"
        raise DatasetError(f"{path}: ROS 1 bags end in .bag and are not supported; {what}")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise DatasetError(
            f"{path}: has no metadata.yaml, so it is no bag; give the bag's folder, or make the "
            "file again with `ros2 bag reindex`"
        )
    if path.is_file() and path.suffix not in _SUFFIXES:
        raise DatasetError(
            f"{path}: is no bag; give the folder of a rosbag2, or its {' or '.join(_SUFFIXES)} "
            "file"
        )
    try:
        reader = AnyReader([path], default_typestore=typestore())
        reader.open()
    except Exception as e:  # sqlite3, mcap, yaml and zstd each raise their own
        reason = " ".join(str(e).split()) or type(e).__name__
        raise DatasetError(
            f"{path}: not a readable bag ({reason}); `ros2 bag reindex` may help"
        ) from e
    return reader


def read_own(path: Path, kind: str) -> Iterator[tuple[int, Any]]:
    """Recorded messages of ours: stamps of their images in ns, and the messages.

    Args:
        path: of the bag.
        kind: PlaceHypotheses, LoopClosure or DecisionLedger.

    Raises:
        DatasetError: the bag cannot be read.
    """
    with closing(open_bag(path)) as reader:
        connections = [c for c in reader.connections if c.msgtype == f"hashvpr_ros/msg/{kind}"]
        for _, message in _messages(reader, connections, path):
            yield stamp_ns(message.header.stamp), message


def image_topics(path: Path) -> list[str]:
    """The image topics of a bag.

    Raises:
        DatasetError: the bag cannot be read.
    """
    with closing(open_bag(path)) as reader:
        return [
            name for name, info in reader.topics.items() if info.msgtype in (_IMAGE, _COMPRESSED)
        ]


def read_poses(reader: AnyReader, path: Path, topic: str) -> PoseTrack:
    """The poses of an Odometry, PoseStamped or PoseWithCovarianceStamped topic.

    Raises:
        DatasetError: the bag is damaged, or lacks the topic.
    """
    _topic(reader, path, topic, tuple(_POSES))
    connections = [c for c in reader.connections if c.topic == topic]
    poses = []
    for connection, value in _messages(reader, connections, path):
        p = _POSES[connection.msgtype](value)
        position, turn = p.position, p.orientation
        pose = Pose(
            (position.x, position.y, position.z),
            (turn.x, turn.y, turn.z, turn.w),
            value.header.frame_id,
        )
        poses.append((stamp_ns(value.header.stamp), pose))
    track = PoseTrack(keep=0)
    for stamp, pose in sorted(poses, key=lambda item: item[0]):
        track.add(stamp, pose)
    return track


class BagFrames:
    """Frames of one or several image topics of a bag, whose `name` is their topic.

    Args:
        path: of the bag's folder or file.
        image_topic: of sensor_msgs/Image or CompressedImage, one or several.
        pose_topic: Odometry, PoseStamped or PoseWithCovarianceStamped; "" for none.
        max_age_s: an image has a pose only when one was stamped within this time of it; between
            two poses it is interpolated, as in the node.

    Raises:
        DatasetError: the bag cannot be read, or lacks the topic.
    """

    def __init__(
        self,
        path: Path,
        image_topic: str | Sequence[str],
        pose_topic: str = "",
        max_age_s: float = 0.2,
    ) -> None:
        self.path, self.pose_topic = path, pose_topic
        self.image_topics = (image_topic,) if isinstance(image_topic, str) else tuple(image_topic)
        self.max_age_s = max_age_s
        self.skipped: list[str] = []  # why images were left out, one line each
        reader = open_bag(path)
        try:
            self._count = sum(
                _topic(reader, path, topic, (_IMAGE, _COMPRESSED)) for topic in self.image_topics
            )
            self._poses = read_poses(reader, path, pose_topic) if pose_topic else PoseTrack(0)
        finally:
            reader.close()

    def pose_at(self, stamp: int) -> Pose | None:
        """The pose of a stamp, None where all are further than `max_age_s`."""
        return self._poses.at(stamp, self.max_age_s)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        reader = open_bag(self.path)
        self.skipped = []
        hints = imaging.HintOnce(
            lambda topic, hint: _log.warning("%s: topic %s: %s", self.path, topic, hint)
        )
        try:
            connections = [c for c in reader.connections if c.topic in self.image_topics]
            for connection, message in _messages(reader, connections, self.path, self.skipped):
                stamp = stamp_ns(message.header.stamp)
                try:
                    rgb = decode(connection.msgtype, message, hints.of(connection.topic))
                except ImageError as e:
                    self.skipped.append(f"image at {stamp / 1e9:.3f} s: {e}")
                    continue
                yield Frame(rgb, stamp, self.pose_at(stamp), connection.topic)
        finally:
            reader.close()


def decode(
    kind: str, message: Any, on_hint: Callable[[str], None] | None = None
) -> NDArray[np.uint8]:
    """RGB of an Image or CompressedImage message.

    Args:
        on_hint: called with a sentence where the image is probably not as it was meant.

    Raises:
        ImageError: damaged or of an unknown encoding.
    """
    if kind == _COMPRESSED:
        return imaging.decode_compressed(message.data, message.format, on_hint)
    return imaging.to_rgb(
        message.data,
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
        on_hint,
    )


def _topic(reader: AnyReader, path: Path, topic: str, kinds: tuple[str, ...]) -> int:
    """How many messages a topic has; it must exist and be of one of the types."""
    found = reader.topics.get(topic)
    if found is not None and found.msgtype in kinds:
        return int(found.msgcount)
    wanted = " or ".join(kind.rsplit("/", 1)[1] for kind in kinds)
    if found is None:
        wrong = "is not in the bag"
    else:
        wrong = f"is of type {found.msgtype or 'more than one'}, not {wanted}"
    there = [f"{name} ({info.msgtype})" for name, info in reader.topics.items()]
    fit = [name for name, info in reader.topics.items() if info.msgtype in kinds]
    remedy = f"give {' or '.join(fit)}" if fit else f"it has none of type {wanted}"
    raise DatasetError(
        f"{path}: topic {topic} {wrong}; the bag has {', '.join(there) or 'no topics'}: {remedy}"
    )


def _messages(
    reader: AnyReader, connections: list, path: Path, skipped: list[str] | None = None
) -> Iterator[tuple[Any, Any]]:
    """Connection and content of each message; those that are damaged go to `skipped`, if given.

    Raises:
        DatasetError: the bag is damaged.
    """
    if not connections:  # for which rosbags would read everything
        return
    messages = reader.messages(connections=connections)
    while True:
        try:
            connection, time_ns, raw = next(messages)
        except StopIteration:
            return
        except Exception as e:  # as in open_bag
            raise _damaged(path, e) from e
        try:
            message = reader.deserialize(raw, connection.msgtype)
        except Exception as e:  # whatever the bytes happen to call for
            if skipped is None:
                raise _damaged(path, e) from e
            skipped.append(f"message at {time_ns / 1e9:.3f} s: damaged")
            continue
        yield connection, message


def _damaged(path: Path, e: Exception) -> DatasetError:
    reason = " ".join(str(e).split()) or type(e).__name__
    return DatasetError(f"{path}: damaged ({reason}); copy or record it again")
