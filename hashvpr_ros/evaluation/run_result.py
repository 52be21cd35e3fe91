"""A run beside ground truth, live or replayed: what was right, what was missed, what it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.bag import Losses, read_own, stamp_ns
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.evaluation.ground_truth import Truth
from hashvpr_ros.evaluation.metrics import average_precision, median_p95, precision_recall
from hashvpr_ros.types import ALL_STAGES, Decision


@dataclass(frozen=True)
class Answer:
    """What was concluded from one image."""

    stamp_ns: int
    accepted: bool
    reason: str
    probability: float
    similarity: float
    match_id: int  # keyframe of the best hypothesis, 0 for none
    match_stamp_ns: int
    times_ms: dict[str, float]
    # What `judge` adds; None: the ground truth does not say.
    possible: bool | None = None  # the map holds this place
    right: bool | None = None  # the best hypothesis shows it


@dataclass(frozen=True)
class RunResult:
    """All answers of a run, and what the report draws beside them."""

    title: str
    answers: list[Answer]
    played: int
    settings: Mapping[str, Any]
    # For the gallery: images of stamps and of keyframes, where there are any.
    query_images: Callable[[Sequence[int]], Mapping[int, NDArray[np.uint8]]]
    match_images: Callable[[Sequence[int]], Mapping[int, NDArray[np.uint8]]]  # by keyframe id
    end_to_end_ms: Sequence[float] = ()  # published to answered; none of a replay
    node_cpu: float = math.nan  # cores
    query_position: dict[int, tuple[float, float]] = field(default_factory=dict)
    match_position: Callable[[Answer], tuple[float, float] | None] = lambda _: None

    def summary(self) -> dict[str, Any]:
        """The numbers that the demo prints."""
        counts = count(self.answers)
        matched = [a for a in self.answers if a.match_id and a.right is not None]
        _, precision, recall = precision_recall(
            [a.probability for a in matched],
            [bool(a.right) for a in matched],
            counts["revisits_judged"],
        )
        latency = {"end_to_end": median_p95(self.end_to_end_ms)} if self.end_to_end_ms else {}
        for stage in self.answers[0].times_ms if self.answers else ():
            latency[stage] = median_p95([a.times_ms[stage] for a in self.answers])
        return {
            "images_played": self.played,
            "images_answered": len(self.answers),
            "images_lost": self.played - len(self.answers),
            **counts,
            "average_precision": round(average_precision(precision, recall), 4),
            "latency_ms": latency,
            "node_cpu_cores": round(self.node_cpu, 2),
        }


def count(answers: Sequence[Answer]) -> dict[str, Any]:
    """What was counted of judged answers, and the shares in percent; None of nothing.

    An image that the ground truth says nothing of is unknown, as is a match with one. It counts
    neither as right nor as wrong.
    """
    revisits = [a for a in answers if a.possible]
    judged = [a for a in revisits if a.right is not None]
    accepted = [a for a in answers if a.accepted]
    right = sum(a.right is True for a in accepted)
    wrong = sum(a.right is False for a in accepted)
    return {
        "images_without_ground_truth": sum(a.possible is None for a in answers),
        "revisits": len(revisits),
        "revisits_judged": len(judged),
        "recall_at_1": percent(sum(bool(a.right) for a in judged), len(judged)),
        "closures_accepted": len(accepted),
        "closures_right": right,
        "closures_wrong": wrong,
        "closures_unknown": len(accepted) - right - wrong,
        "closure_precision": percent(right, right + wrong),
        "closure_recall": percent(sum(bool(a.accepted and a.right) for a in judged), len(judged)),
    }


def percent(part: int, whole: int) -> float | None:
    """Percent with one decimal, None of nothing."""
    return round(100.0 * part / whole, 1) if whole else None


def read_answers(bag: Path) -> list[Answer]:
    """The PlaceHypotheses of a recorded bag in the order of their stamps, not yet judged.

    Raises:
        DatasetError: the bag cannot be read, or a message in it is damaged.
    """
    losses = Losses()
    answers = []
    for stamp, m in read_own(bag, "PlaceHypotheses", losses):
        best = m.hypotheses[0] if len(m.hypotheses) else None
        answers.append(
            Answer(
                stamp,
                bool(m.accepted),
                str(m.reason),
                float(best.probability) if best else 0.0,
                float(best.similarity) if best else 0.0,
                int(best.place_id) if best else 0,
                stamp_ns(best.stamp) if best else 0,
                {s: float(getattr(m.times, s)) for s in ALL_STAGES},
            )
        )
    if losses.skipped:
        raise DatasetError(f"{bag}: {losses.skipped[0]}; record the answers again")
    return sorted(answers, key=lambda a: a.stamp_ns)


def answer_of(decision: Decision) -> Answer:
    """What a replayed decision says, not yet judged."""
    best = decision.hypotheses[0] if decision.hypotheses else None
    return Answer(
        decision.stamp_ns,
        decision.accepted,
        decision.reason.value,
        best.probability if best else 0.0,
        best.similarity if best else 0.0,
        best.keyframe.id if best else 0,
        best.keyframe.stamp_ns if best else 0,
        decision.times.by_stage(),
    )


def judge(answers: Sequence[Answer], truth: Truth) -> list[Answer]:
    """The same answers with what the truth says of them; None where it does not say."""
    judged = []
    for a in answers:
        possible = truth.possible(a.stamp_ns)
        right: bool | None
        if a.match_id:
            right = truth.right(a.stamp_ns, a.match_stamp_ns)
        else:
            right = None if possible is None else False
        judged.append(replace(a, possible=possible, right=right))
    return judged
