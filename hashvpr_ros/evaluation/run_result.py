"""A run of the node beside ground truth: what was right, what was missed, what it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.bag import read_hypotheses, stamp_ns
from hashvpr_ros.evaluation.metrics import average_precision, median_p95, precision_recall
from hashvpr_ros.types import Pose

STAGES = ("decode", "preprocess", "engine", "search", "rerank", "store", "total")


@dataclass(frozen=True)
class Answer:
    """One PlaceHypotheses message, judged."""

    stamp_ns: int
    possible: bool  # the map holds this place
    right: bool  # the best hypothesis shows it
    accepted: bool
    reason: str
    probability: float
    similarity: float
    match_id: int  # keyframe of the best hypothesis, 0 for none
    match_stamp_ns: int
    times_ms: dict[str, float]


@dataclass(frozen=True)
class RunResult:
    """All answers of a run, and what the report draws beside them."""

    title: str
    answers: list[Answer]
    played: int
    end_to_end_ms: list[float]
    node_cpu: float
    settings: Mapping[str, Any]
    # Images by stamp, for the gallery; positions by stamp, for the map; indices, for the matrix.
    query_image: Callable[[int], NDArray[np.uint8] | None]
    match_image: Callable[[int], NDArray[np.uint8] | None]  # by keyframe id
    query_position: dict[int, tuple[float, float]] = field(default_factory=dict)
    match_position: Callable[[Answer], tuple[float, float] | None] = lambda _: None

    def summary(self) -> dict[str, Any]:
        """The numbers that the demo prints."""
        possible = [a for a in self.answers if a.possible]
        accepted = [a for a in self.answers if a.accepted]
        right = [a for a in accepted if a.right]
        matched = [a for a in self.answers if a.match_id]
        _, precision, recall = precision_recall(
            [a.probability for a in matched], [a.right for a in matched], len(possible)
        )
        return {
            "images_played": self.played,
            "images_answered": len(self.answers),
            "images_lost": self.played - len(self.answers),
            "revisits": len(possible),
            "recall_at_1": percent(sum(a.right for a in possible), len(possible)),
            "closures_accepted": len(accepted),
            "closure_precision": percent(len(right), len(accepted)),
            "closure_recall": percent(sum(a.possible for a in right), len(possible)),
            "average_precision": round(average_precision(precision, recall), 4),
            "latency_ms": {
                "end_to_end": median_p95(self.end_to_end_ms),
                **{s: median_p95([a.times_ms[s] for a in self.answers]) for s in STAGES},
            },
            "node_cpu_cores": round(self.node_cpu, 2),
        }


def percent(part: int, whole: int) -> float | None:
    """Percent with one decimal, None of nothing."""
    return round(100.0 * part / whole, 1) if whole else None


@dataclass(frozen=True)
class TruthByPose:
    """Right is what was taken near here and looking the same way.

    Args:
        pose_at: exact pose of an image by stamp.
        stamps: of all images played, ascending.
        exclude_recent_s: what is younger than this is no revisit.
    """

    pose_at: Callable[[int], Pose | None]
    stamps: list[int]
    exclude_recent_s: float
    radius_m: float = 4.0
    angle_rad: float = math.radians(40)

    def near(self, a: int, b: int) -> bool:
        """Whether the images stamped a and b show the same place."""
        p, q = self.pose_at(a), self.pose_at(b)
        if p is None or q is None:
            return False
        turn = abs(sum(x * y for x, y in zip(p.orientation, q.orientation, strict=True)))
        angle = 2 * math.acos(min(1.0, turn))
        return math.dist(p.position_m, q.position_m) <= self.radius_m and angle <= self.angle_rad

    def possible(self, stamp: int) -> bool:
        """Whether the place was seen before, outside the excluded recent past."""
        until = stamp - self.exclude_recent_s * 1e9
        return any(self.near(stamp, s) for s in self.stamps if s <= until)

    def right(self, stamp: int, match_id: int, match_stamp: int) -> bool:
        """Whether a match is right."""
        return self.near(stamp, match_stamp)


@dataclass(frozen=True)
class TruthByIndex:
    """Right is what the ground truth of a dataset names; keyframe ids count references from 1."""

    positives: Mapping[int, set[int]]  # by stamp

    def possible(self, stamp: int) -> bool:
        """Whether any reference shows the place."""
        return bool(self.positives[stamp])

    def right(self, stamp: int, match_id: int, match_stamp: int) -> bool:
        """Whether a match is right."""
        return match_id - 1 in self.positives[stamp]


def read_answers(bag: Path, truth: TruthByPose | TruthByIndex) -> list[Answer]:
    """Judge the PlaceHypotheses of a recorded bag, in the order of their stamps.

    Raises:
        DatasetError: the bag cannot be read.
    """
    answers = []
    for stamp, m in read_hypotheses(bag):
        best = m.hypotheses[0] if len(m.hypotheses) else None
        match_id = int(best.place_id) if best else 0
        match_stamp = stamp_ns(best.stamp) if best else 0
        answers.append(
            Answer(
                stamp,
                truth.possible(stamp),
                bool(best) and truth.right(stamp, match_id, match_stamp),
                bool(m.accepted),
                str(m.reason),
                float(best.probability) if best else 0.0,
                float(best.similarity) if best else 0.0,
                match_id,
                match_stamp,
                {s: float(getattr(m.times, s)) for s in STAGES},
            )
        )
    return sorted(answers, key=lambda a: a.stamp_ns)
