"""Messages to the library's types and back."""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from hashvpr_ros import imaging
from hashvpr_ros.errors import ConfigError, ImageError
from hashvpr_ros.msg import (
    DecisionLedger,
    LedgerCandidate,
    LoopClosure,
    PlaceDescriptor,
    PlaceHypotheses,
    PlaceHypothesis,
    StageTimes,
)
from hashvpr_ros.poses import unit
from hashvpr_ros.types import (
    UNKNOWN_POSE,
    Decision,
    Descriptor,
    Hypothesis,
    Keyframe,
    Ledger,
    LedgerEntry,
    Pose,
)

_LONGEST_NAME = 255  # of a camera, map or session that another robot names, in characters
_MAX_STAMP_NS = (2**31 - 1) * 1_000_000_000 + 999_999_999


def stamp_to_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def ns_to_stamp(ns: int) -> Time:
    """The inverse of `stamp_to_ns`; what the message cannot hold is clamped to its range."""
    sec, nanosec = divmod(max(-(2**31) * 1_000_000_000, min(_MAX_STAMP_NS, ns)), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def _load_cv_bridge() -> Any:
    """The real cv_bridge, or None.

    PyPI's package of that name is ROS 1 code with other results, and a real one that was built for
    another numpy fails when it converts: both are told by a conversion.
    """
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
        image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        message = Image(height=2, width=3, encoding="bgr8", step=12, data=image.tobytes())
        wanted = imaging.to_rgb(message.data, "bgr8", 2, 3, 12)
        return bridge if np.array_equal(bridge.imgmsg_to_cv2(message, "rgb8"), wanted) else None
    except Exception:
        return None


_bridge = _load_cv_bridge()
# What both decode to the same; the rest is left to imaging.
_BY_BRIDGE = {
    f"{order}{bits}" for order in ("rgb", "bgr", "rgba", "bgra", "mono") for bits in (8, 16)
} | {"bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8", "yuv422", "yuv422_yuy2"}


def decoder_name() -> str:
    """What decodes images here, for the log."""
    return "cv_bridge" if _bridge is not None else "hashvpr_ros.imaging (no cv_bridge installed)"


def decode(
    message: Image | CompressedImage, on_hint: Callable[[str], None] | None = None
) -> NDArray[np.uint8]:
    """The pixels of an image message, uint8 [H, W, 3] RGB.

    Args:
        on_hint: called with a sentence where the image decodes, but is probably not as it was
            meant.

    Raises:
        ImageError: the image cannot be decoded.
    """
    if isinstance(message, CompressedImage):
        return imaging.decode_compressed(message.data, message.format, on_hint)
    if (
        _bridge is not None
        and message.encoding in _BY_BRIDGE
        and not message.is_bigendian
        and not (on_hint is not None and message.encoding.endswith("16"))
        and 0 < message.height * message.width <= imaging.MAX_PIXELS
    ):
        try:
            image = np.ascontiguousarray(_bridge.imgmsg_to_cv2(message, "rgb8"))
            if image.dtype == np.uint8 and image.shape == (message.height, message.width, 3):
                return image
        except Exception:
            pass  # imaging says what is wrong in words of its own
    return imaging.to_rgb(
        message.data,
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
        on_hint,
    )


def is_empty(message: Image | CompressedImage) -> bool:
    """Whether a message carries no image at all."""
    if isinstance(message, Image):
        return len(message.data) == 0 and message.height == 0 and message.width == 0
    return len(message.data) == 0


def to_pose_stamped(pose: Pose | None, stamp_ns: int) -> PoseStamped:
    """A pose with its stamp and frame; NaN without a frame for None."""
    pose = pose or UNKNOWN_POSE
    message = PoseStamped()
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.header.frame_id = pose.frame_id
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(v) for v in pose.position_m)
    q.x, q.y, q.z, q.w = (float(v) for v in pose.orientation)
    return message


def to_place(keyframe: Keyframe, hypothesis: Hypothesis | None = None) -> PlaceHypothesis:
    """A keyframe of the map, with its scores where it is a hypothesis."""
    message = PlaceHypothesis(
        place_id=int(keyframe.id),
        session=keyframe.session,
        camera=keyframe.camera,
        stamp=ns_to_stamp(keyframe.stamp_ns),
        has_pose=keyframe.pose is not None,
        pose=to_pose_stamped(keyframe.pose, keyframe.stamp_ns),
        relative_heading=math.nan,
        position_stddev_m=math.nan,
    )
    if hypothesis is not None:
        message.distance = int(hypothesis.distance_bits)
        message.similarity = float(hypothesis.similarity)
        message.distinctness = float(hypothesis.distinctness)
        message.probability = float(hypothesis.probability)
        message.sequence_support = float(hypothesis.sequence_support)
        message.votes = min(hypothesis.votes, 255)
        for field, value in hypothesis.relation().items():
            setattr(message, field, value)
    return message


def to_hypotheses(
    decision: Decision, header: Header, decode_ms: float = 0.0, total_ms: float = 0.0
) -> PlaceHypotheses:
    """What is published for every image; the header is the image's own."""
    return PlaceHypotheses(
        header=header,
        camera=decision.camera,
        session=decision.session,
        keyframe_id=int(decision.keyframe_id),
        map_id=decision.map_id,
        hypotheses=[to_place(h.keyframe, h) for h in decision.hypotheses],
        new_place_probability=float(decision.new_place_probability),
        accepted=decision.accepted,
        reason=decision.reason.value,
        times=StageTimes(
            decode=float(decode_ms),
            total=float(total_ms),
            **{stage: float(ms) for stage, ms in decision.times.by_stage().items()},
        ),
    )


def to_loop_closure(decision: Decision, header: Header, query_map_id: str = "") -> LoopClosure:
    """The accepted pair of a decision; with a map's id, of an image that another robot has."""
    best = decision.hypotheses[0]
    match = best.keyframe
    return LoopClosure(
        header=header,
        map_id=decision.map_id,
        query_stamp=ns_to_stamp(decision.stamp_ns),
        match_stamp=ns_to_stamp(match.stamp_ns),
        query_keyframe_id=int(decision.keyframe_id),
        query_map_id=query_map_id or decision.map_id,
        match_keyframe_id=int(match.id),
        query_session=decision.session,
        match_session=match.session,
        query_camera=decision.camera,
        match_camera=match.camera,
        has_query_pose=decision.pose is not None,
        query_pose=to_pose_stamped(decision.pose, decision.stamp_ns),
        has_match_pose=match.pose is not None,
        match_pose=to_pose_stamped(match.pose, match.stamp_ns),
        distance=int(best.distance_bits),
        similarity=float(best.similarity),
        probability=float(best.probability),
        **best.relation(),
    )


def to_ledger(decision: Decision, ledger: Ledger, header: Header) -> DecisionLedger:
    """How a decision came about."""
    matching = ledger.matching
    return DecisionLedger(
        header=header,
        camera=decision.camera,
        session=decision.session,
        keyframe_id=int(decision.keyframe_id),
        map_id=decision.map_id,
        keyframes=int(ledger.keyframes),
        mode=ledger.mode.value,
        has_newest_allowed=ledger.newest_allowed_ns is not None,
        newest_allowed=ns_to_stamp(ledger.newest_allowed_ns or 0),
        temporal=matching.temporal,
        target_precision=float(matching.target_precision),
        min_sequence_support=float(matching.min_sequence_support),
        max_drift=float(matching.max_drift),
        reason=decision.reason.value,
        new_place_probability=float(decision.new_place_probability),
        hypotheses=[to_place(h.keyframe, h) for h in decision.hypotheses],
        candidates=[_to_ledger_candidate(e) for e in ledger.entries],
    )


def _to_ledger_candidate(entry: LedgerEntry) -> LedgerCandidate:
    c, keyframe = entry.candidate, entry.keyframe
    return LedgerCandidate(
        place_id=int(keyframe.id),
        session=keyframe.session,
        camera=keyframe.camera,
        stamp=ns_to_stamp(keyframe.stamp_ns),
        distance=int(c.distance_bits),
        similarity=float(c.similarity),
        rank_hash=int(c.rank_hash),
        rank=int(c.rank),
        belief=float(entry.belief),
        reason=entry.reason.value,
    )


def to_descriptor(decision: Decision, header: Header, fingerprint: str) -> PlaceDescriptor:
    """The descriptor of an image, its feature in half precision."""
    return PlaceDescriptor(
        header=header,
        camera=decision.camera,
        map_id=decision.map_id,
        session=decision.session,
        keyframe_id=int(decision.keyframe_id),
        model_fingerprint=fingerprint,
        code=decision.descriptor.code,
        feature_encoding=PlaceDescriptor.ENCODING_FLOAT16,
        feature=array.array("B", decision.descriptor.feature.astype("<f2").tobytes()),
        has_pose=decision.pose is not None,
        pose=to_pose_stamped(decision.pose, decision.stamp_ns),
    )


def from_descriptor(message: PlaceDescriptor, fingerprint: str, feature_dim: int) -> Descriptor:
    """The descriptor in a message.

    Args:
        fingerprint, feature_dim: of the model that must have made it.

    Raises:
        ConfigError: another model made it, or it is malformed.
    """
    if message.model_fingerprint != fingerprint:
        raise ConfigError(
            f"made by model {message.model_fingerprint[:12]!r}, and {fingerprint[:12]} is in use; "
            "run one model on all robots"
        )
    for what in ("camera", "map_id", "session"):
        length = len(getattr(message, what))
        if length > _LONGEST_NAME:
            raise ConfigError(f"its {what} has {length} characters; {_LONGEST_NAME} are the most")
    kinds = {PlaceDescriptor.ENCODING_FLOAT32: "<f4", PlaceDescriptor.ENCODING_FLOAT16: "<f2"}
    kind = kinds.get(message.feature_encoding)
    if kind is None:
        raise ConfigError(f"there is no feature_encoding {message.feature_encoding}")
    raw = np.array(message.feature, np.uint8).tobytes()
    if len(raw) != feature_dim * np.dtype(kind).itemsize:
        raise ConfigError(f"its feature has {len(raw)} bytes, which are not {feature_dim} numbers")
    feature = np.frombuffer(raw, kind).astype(np.float32)
    norm = float(np.linalg.norm(feature))
    if not 0.9 < norm < 1.1:  # of NaN neither
        raise ConfigError(f"its feature has the length {norm:g}, not 1")
    return Descriptor(np.array(message.code, np.uint8), feature / norm)


def from_pose(message: PoseMessage, frame_id: str = "map") -> Pose:
    """A geometry_msgs/Pose in its frame, its quaternion of length 1; it may be invalid."""
    p, q = message.position, message.orientation
    return unit(Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w), frame_id))


def to_jpeg_message(jpeg: bytes | None) -> CompressedImage:
    """A thumbnail of the map; without data for None."""
    if not jpeg:
        return CompressedImage()
    return CompressedImage(format="jpeg", data=array.array("B", jpeg))


def decode_request(image: Image, compressed: CompressedImage) -> tuple[NDArray[np.uint8], Header]:
    """The image of a Recognize request and its header.

    Raises:
        ImageError: neither holds an image, or it cannot be decoded.
    """
    if not is_empty(image):
        return decode(image), image.header
    if not is_empty(compressed):
        return decode(compressed), compressed.header
    raise ImageError("the request holds no image: fill `image` or `compressed`")
