"""Images and poses of a rosbag2, sqlite3 or mcap, by the library `rosbags`; no ROS needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from hashvpr_ros import imaging
from hashvpr_ros.bag_reader import BagReader, Raw
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.types import Pose

_log = logging.getLogger(__name__)
_IMAGE = "sensor_msgs/msg/Image"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_MOST_LENGTH = 100_000_000
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


def image_topics(path: Path) -> list[str]:
    """The image topics of a bag.

    Raises:
        DatasetError: the bag cannot be read.
    """
    with closing(BagReader(path)) as reader:
        return [
            name
            for name, topic in sorted(reader.topics.items())
            if topic.types and topic.types <= {_IMAGE, _COMPRESSED}
        ]


@dataclass
class Losses:
    """What a pass over a bag could not read.

    Attributes:
        allow_partial: whether a bag counts that holds fewer messages than it lists.
        skipped: messages that were left out, one line each.
        missing: messages that the bag lists and does not hold.
        notes: what else is to be said, a sentence each.
    """

    allow_partial: bool = False
    skipped: list[str] = field(default_factory=list)
    missing: int = 0
    notes: list[str] = field(default_factory=list)


def read_own(path: Path, kind: str, losses: Losses) -> Iterator[tuple[int, Any]]:
    """Recorded messages of ours: stamps of their images in ns, and the messages.

    Args:
        path: of the bag.
        kind: PlaceHypotheses, LoopClosure or DecisionLedger.
        losses: learns what could not be read.

    Raises:
        DatasetError: the bag cannot be read, or holds fewer messages than it lists.
    """
    msgtype = f"hashvpr_ros/msg/{kind}"
    with closing(BagReader(path)) as reader:
        topics = [name for name, topic in reader.topics.items() if topic.types == {msgtype}]
        for name in topics:
            _listed(reader, name, (msgtype,))
        for _, message in _messages(reader, topics, losses):
            yield stamp_ns(message.header.stamp), message


def read_poses(path: Path, topic: str, losses: Losses) -> PoseTrack:
    """The poses of an Odometry, PoseStamped or PoseWithCovarianceStamped topic.

    Raises:
        DatasetError: the bag is damaged, lacks the topic, or holds fewer messages than it lists.
    """
    poses = []
    with closing(BagReader(path)) as reader:
        _listed(reader, topic, tuple(_POSES))
        for raw, message in _messages(reader, [topic], losses):
            p = _POSES[raw.msgtype](message)
            position, turn = p.position, p.orientation
            pose = Pose(
                (position.x, position.y, position.z),
                (turn.x, turn.y, turn.z, turn.w),
                message.header.frame_id,
            )
            poses.append((stamp_ns(message.header.stamp), pose))
    track = PoseTrack(keep=0)
    for stamp, pose in sorted(poses, key=lambda item: item[0]):
        track.add(stamp, pose)
    if track.invalid:
        losses.notes.append(
            f"{path}: {track.invalid} of {len(poses)} poses on {topic} are invalid (NaN, infinity "
            "or a quaternion of zeros) and are left out; check what publishes them"
        )
    return track


@dataclass
class _Stamps:
    """The stamps of the images of a pass."""

    images: int = 0
    first: int = 0
    last: int = 0
    without_pose: int = 0
    nearest_pose_ns: int | None = None  # from an image without a pose; None: there are none

    def see(self, stamp: int) -> None:
        self.first = min(self.first, stamp) if self.images else stamp
        self.last = max(self.last, stamp) if self.images else stamp
        self.images += 1

    def see_gap(self, gap_ns: int | None) -> None:
        """Learn how far the nearest pose is from an image that has none."""
        self.without_pose += 1
        known = [abs(ns) for ns in (gap_ns, self.nearest_pose_ns) if ns is not None]
        self.nearest_pose_ns = min(known, default=None)


class BagFrames:
    """Frames of one or several image topics of a bag, whose `name` is their topic.

    An image without a stamp has the time at which the bag received it, as in the node.

    Args:
        path: of the bag's folder or file.
        image_topic: of sensor_msgs/Image or CompressedImage, one or several.
        pose_topic: Odometry, PoseStamped or PoseWithCovarianceStamped; "" for none.
        max_age_s: an image has a pose only when one was stamped within this time of it; between
            two poses it is interpolated, as in the node.
        allow_partial: read what there is of a bag that holds fewer messages than it lists.

    Attributes:
        skipped: why images were left out of the last pass, one line each.
        notes: what else is to be said of the last pass, a sentence each.

    Raises:
        DatasetError: the bag cannot be read, or lacks the topic; while the frames are read: it is
            damaged, or holds fewer messages than it lists.
    """

    def __init__(
        self,
        path: Path,
        image_topic: str | Sequence[str],
        pose_topic: str = "",
        max_age_s: float = 0.2,
        *,
        allow_partial: bool = False,
    ) -> None:
        self.path, self.pose_topic = path, pose_topic
        self.image_topics = (image_topic,) if isinstance(image_topic, str) else tuple(image_topic)
        self.max_age_s = max_age_s
        self.without_stamp = 0  # images of the last pass
        self._losses = Losses(allow_partial)
        with closing(BagReader(path)) as reader:
            kinds = (_IMAGE, _COMPRESSED)
            self._count = sum(_listed(reader, topic, kinds) for topic in self.image_topics)
        pose_losses = Losses(allow_partial)
        self._poses = read_poses(path, pose_topic, pose_losses) if pose_topic else PoseTrack(0)
        self._pose_notes = pose_losses.notes
        if pose_losses.skipped:
            self._pose_notes.append(
                f"{path}: {len(pose_losses.skipped)} messages on {pose_topic} are left out: "
                f"{pose_losses.skipped[0]}"
            )

    @property
    def lost(self) -> int:
        """Images of the last pass that the bag lists, and that were left out or missing."""
        return len(self._losses.skipped) + self._losses.missing

    @property
    def skipped(self) -> list[str]:
        return self._losses.skipped

    @property
    def notes(self) -> list[str]:
        return self._losses.notes

    def pose_at(self, stamp: int) -> Pose | None:
        """The pose of a stamp, None where all are further than `max_age_s`."""
        return self._poses.at(stamp, self.max_age_s)

    def __len__(self) -> int:
        """How many the bag lists; what is absurd is cut, for `list` makes room for so many."""
        return min(self._count, _MOST_LENGTH)

    def __iter__(self) -> Iterator[Frame]:
        self._losses = losses = Losses(self._losses.allow_partial, notes=list(self._pose_notes))
        self.without_stamp = 0
        stamps = _Stamps()
        hints = imaging.HintOnce(
            lambda topic, hint: _log.warning("%s: topic %s: %s", self.path, topic, hint)
        )
        with closing(BagReader(self.path)) as reader:
            for raw, message in _messages(reader, self.image_topics, losses):
                try:
                    stamp = stamp_ns(message.header.stamp)
                    if stamp <= 0:
                        stamp = raw.time_ns
                        self.without_stamp += 1
                    rgb = decode(raw.msgtype, message, hints.of(raw.topic))
                except ImageError as e:
                    losses.skipped.append(f"image at {stamp / 1e9:.3f} s: {e}")
                    continue
                pose = self.pose_at(stamp)
                stamps.see(stamp)
                if pose is None:
                    stamps.see_gap(self._poses.gap_ns(stamp))
                yield Frame(rgb, stamp, pose, raw.topic)
        losses.notes += [f"{self.path}: {note}" for note in self._notes_of(stamps)]

    def _notes_of(self, stamps: _Stamps) -> Iterator[str]:
        """What is to be said of the images' stamps and poses."""
        images = stamps.images
        if self.without_stamp:
            yield (
                f"{self.without_stamp} images have no stamp, so the time of their receipt is "
                "used; have the camera's driver set it"
            )
        if images > 1 and stamps.first == stamps.last:
            yield (
                f"all {images} images have the stamp {stamps.first / 1e9:.3f} s, so no time "
                "passes between them; have the camera's driver set it"
            )
        if self.pose_topic and stamps.without_pose:
            nearest_ns = stamps.nearest_pose_ns
            yield (
                f"{stamps.without_pose} of {images} images have no pose within "
                f"{self.max_age_s:g} s: "
                + (
                    f"there is none on {self.pose_topic}"
                    if nearest_ns is None
                    else f"the nearest on {self.pose_topic} is {nearest_ns / 1e9:,.3f} s away"
                )
                + "; record both by one clock, and poses as often as images"
            )


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


def _listed(reader: BagReader, topic: str, kinds: tuple[str, ...]) -> int:
    """How many messages a bag lists on a topic; it must exist and be of one of the types."""
    found = reader.topics.get(topic)
    wanted = " or ".join(kind.rsplit("/", 1)[1] for kind in kinds)
    if found is None:
        wrong = "is not in the bag"
    elif len(found.types) != 1 or not found.types <= set(kinds):
        is_one = len(found.types) == 1
        wrong = f"is of type {_type_of(found.types) if is_one else 'more than one'}, not {wanted}"
    elif found.formats - {"cdr"}:
        wrong = f"is serialised as {' and '.join(sorted(found.formats))}, not as cdr"
    else:
        (kind,) = found.types
        if any(d.startswith("RIHS01_") and d != _digest(kind) for d in found.digests):
            raise DatasetError(
                f"{reader.path}: topic {topic} was recorded with another definition of {kind}; "
                "record it again with this version"
            )
        return found.listed
    there = [f"{name} ({_type_of(info.types)})" for name, info in sorted(reader.topics.items())]
    fit = [name for name, info in sorted(reader.topics.items()) if info.types <= set(kinds)]
    remedy = f"give {' or '.join(fit)}" if fit else f"it has none of type {wanted}"
    raise DatasetError(
        f"{reader.path}: topic {topic} {wrong}; the bag has {', '.join(there) or 'no topics'}: "
        f"{remedy}"
    )


def _type_of(types: set[str]) -> str:
    return next(iter(types)) if len(types) == 1 else "more than one type"


@functools.cache
def _store() -> Typestore:
    return typestore()


@functools.cache
def _digest(kind: str) -> str:
    digest: str = _store().hash_rihs01(kind)
    return digest


def _messages(
    reader: BagReader, topics: Collection[str], losses: Losses
) -> Iterator[tuple[Raw, Any]]:
    """Each message of some topics as it is stored, and its content.

    Definitions of messages come from here, not from the bag.

    Raises:
        DatasetError: a storage is damaged, or fewer messages came than the bag lists.
    """
    came = dict.fromkeys(topics, 0)
    damage: list[str] = []
    for raw in reader.messages(topics, damage.append):
        came[raw.topic] += 1
        try:
            message = _store().deserialize_cdr(reader.content(raw), raw.msgtype)
        except Exception as e:  # whatever the bytes happen to call for
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            losses.skipped.append(f"message at {raw.time_ns / 1e9:.3f} s: damaged ({reason})")
            continue
        yield raw, message
    few = [
        f"{came[topic]} of {reader.topics[topic].listed} messages on {topic}"
        for topic in topics
        if came[topic] < reader.topics[topic].listed
    ]
    if not few and not damage:
        return
    told = f"{reader.path}: holds {' and '.join(few) or 'less than it should'}"
    why = (
        damage[0]
        if damage
        else ("a file of it is cut off or missing, or metadata.yaml is of another bag")
    )
    if not losses.allow_partial:
        raise DatasetError(f"{told}: {why}; --allow-partial reads what there is")
    losses.notes.append(f"{told}: {why}")
    losses.missing += sum(max(0, reader.topics[t].listed - came[t]) for t in topics)
