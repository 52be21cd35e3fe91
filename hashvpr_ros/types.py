"""Values passed between the layers.

Stamps are integers: nanoseconds since the epoch of the ROS clock that made them. Ids of keyframes
start at 1 and fit a positive int32; 0 means "none" wherever an id may be absent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import MatchingConfig

CODE_BITS = 512
CODE_BYTES = CODE_BITS // 8


class Mode(str, Enum):
    """What the recognizer does with an image."""

    MAPPING = "mapping"  # add keyframes, do not query
    LOCALIZATION = "localization"  # query, never write
    SLAM = "slam"  # query, then add


class Reason(str, Enum):
    """Why the best hypothesis of a decision was or was not accepted as a loop closure."""

    ACCEPTED = "accepted"
    BELOW_TARGET = "below_target"  # its probability is below `matching.target_precision`
    NEW_PLACE = "new_place"  # the place is probably not in the map
    NOT_DISTINCT = "not_distinct"  # below the target, and another place scores almost as high
    NO_SEQUENCE_SUPPORT = (
        "no_sequence_support"  # the preceding views do not match the same part of the map
    )
    ODOMETRY_CONFLICT = "odometry_conflict"  # odometry excludes all candidates
    REJECTED = "rejected"  # the back end has rejected the candidates that odometry allows
    OUTVOTED = "outvoted"  # another camera of the frame set is more confident of another place
    NO_CANDIDATE = "no_candidate"  # the map has no keyframe outside the excluded recent ones
    MAP_EMPTY = "map_empty"
    MAPPING_ONLY = "mapping_only"  # mode `mapping` does not query


class Verdict(str, Enum):
    """Feedback of the back end on a loop closure."""

    ACCEPTED = "accepted"
    REJECTED_BY_GEOMETRY = "rejected_by_geometry"
    REJECTED_BY_GRAPH = "rejected_by_graph"


class CandidateReason(str, Enum):
    """What became of a candidate."""

    CHOSEN = "chosen"  # it is one of the hypotheses
    SAME_PLACE = "same_place"  # a neighbour of a hypothesis, which stands for it
    ODOMETRY_CONFLICT = "odometry_conflict"  # odometry excludes it
    REJECTED = "rejected"  # the back end has rejected this pair of places
    LESS_LIKELY = "less_likely"  # other places are more likely


@dataclass(frozen=True)
class Pose:
    """A rigid pose: position in metres, orientation as a unit quaternion (x, y, z, w)."""

    position_m: tuple[float, float, float]
    orientation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    frame_id: str = "map"

    def is_valid(self) -> bool:
        """Whether all numbers are finite and the quaternion can be normalised."""
        numbers = (*self.position_m, *self.orientation)
        if not all(math.isfinite(v) for v in numbers):
            return False
        return sum(v * v for v in self.orientation) > 1e-12


# As messages have a pose that is not known: whoever forgets to ask cannot take it for a place.
UNKNOWN_POSE = Pose((math.nan,) * 3, (math.nan,) * 4, frame_id="")


@dataclass(frozen=True)
class Descriptor:
    """What the engine says of one image."""

    code: NDArray[np.uint8]  # [64], 512 bits, most significant bit first (numpy.packbits order)
    feature: NDArray[np.float32]  # [D], L2-normalised
    # [rows, columns, V], L2-normalised, times 256; None: the model has none
    local: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class Keyframe:
    """One place of the map as one camera saw it, without its descriptor."""

    id: int
    session: str
    camera: str
    stamp_ns: int
    pose: Pose | None = None
    # Views of several cameras at one instant have one; along a session it ascends by one.
    place: int = 0  # 0: the id

    def __post_init__(self) -> None:
        if not self.place:
            object.__setattr__(self, "place", self.id)


@dataclass(frozen=True)
class Candidate:
    """A keyframe found by Hamming distance, and what re-ranking made of it."""

    keyframe_id: int
    distance_bits: int
    similarity: float  # cosine of the float features
    rank_hash: int  # 0-based rank by Hamming distance
    rank: int  # 0-based rank after re-ranking


@dataclass(frozen=True)
class LedgerEntry:
    """A candidate and what became of it."""

    candidate: Candidate
    keyframe: Keyframe
    belief: float  # of the filter, in it and its neighbours, 0 to 1; 0 where there is no filter
    reason: CandidateReason


@dataclass(frozen=True)
class Hypothesis:
    """A place that a query image may show."""

    keyframe: Keyframe
    distance_bits: int
    similarity: float
    distinctness: float  # similarity less that of the best candidate at another place
    probability: float  # that this match is right, 0 to 1
    sequence_support: float  # share of the views that lead to it, 0 to 1
    # How the robot is turned against that which made the keyframe, -pi to pi; None: unknown.
    relative_heading_rad: float | None = None
    position_stddev_m: float | None = None  # along the path; None: unknown
    votes: int = 1  # cameras of the instant whose best hypothesis is of this place

    def relation(self) -> dict[str, bool | float]:
        """How the query lies to the keyframe, by the fields that messages have for it."""
        return {
            "has_relative_heading": self.relative_heading_rad is not None,
            "relative_heading": _number(self.relative_heading_rad),
            "position_stddev_m": _number(self.position_stddev_m),
        }


def _number(value: float | None) -> float:
    """The value as messages have it: NaN for what is not known."""
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Ledger:
    """How a decision came about: with what settings, and all candidates."""

    mode: Mode
    matching: MatchingConfig
    keyframes: int  # in the map, before the image
    newest_allowed_ns: int | None = None  # keyframes stamped later were too recent; None: none was
    entries: tuple[LedgerEntry, ...] = ()  # best first


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds spent on one image."""

    preprocess_ms: float = 0.0
    engine_ms: float = 0.0
    search_ms: float = 0.0
    rerank_ms: float = 0.0
    temporal_ms: float = 0.0  # filter, sequence and verdict
    store_ms: float = 0.0  # keyframe selection and writing, the periodic commit included

    def by_stage(self) -> dict[str, float]:
        """Milliseconds by the name that a stage has in messages and reports."""
        return {f.name.removesuffix("_ms"): getattr(self, f.name) for f in fields(self)}

    @property
    def matching_ms(self) -> float:
        """From the descriptor to the decision."""
        return self.search_ms + self.rerank_ms + self.temporal_ms

    @property
    def outside_engine_ms(self) -> float:
        """The sum of all stages but the engine."""
        return self.preprocess_ms + self.matching_ms + self.store_ms


# What a StageTimes message holds: the node knows of two stages around the recognizer's, too.
ALL_STAGES = ("decode", *StageTimes().by_stage(), "total")


@dataclass(frozen=True)
class Decision:
    """Everything that the recognizer concludes from one image."""

    stamp_ns: int
    camera: str
    map_id: str
    descriptor: Descriptor
    reason: Reason
    keyframe_id: int = 0  # of the query, when it was added to the map
    session: str = ""  # of the query
    pose: Pose | None = None  # of the query
    hypotheses: tuple[Hypothesis, ...] = ()  # best first
    candidates: tuple[Candidate, ...] = ()  # best first, all that were re-ranked
    new_place_probability: float = 1.0
    times: StageTimes = field(default_factory=StageTimes)
    store_error: str = ""  # why the keyframe or the open batch could not be written
    ledger: Ledger | None = None  # where `publish.ledger` asks for it

    @property
    def accepted(self) -> bool:
        """Whether the best hypothesis is a loop closure."""
        return self.reason is Reason.ACCEPTED
