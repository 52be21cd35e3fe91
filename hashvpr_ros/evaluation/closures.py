"""What the node accepts as loop closures at its defaults, on described images."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from hashvpr_ros.config import Config
from hashvpr_ros.evaluation.ground_truth import TruthByStamp
from hashvpr_ros.evaluation.metrics import expected_calibration_error, median_p95
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.evaluation.run_result import Answer, answer_of, count, judge, percent
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode

HIGH_PROBABILITY = 0.99
_PERIOD_NS = 10**9


def stamp_of(index: int) -> int:
    """Stamp of an image in nanoseconds: images are 1 s apart, and the first has 1 s."""
    return (index + 1) * _PERIOD_NS


def index_of(stamp_ns: int) -> int:
    """Index of the image with a stamp of `stamp_of`."""
    return stamp_ns // _PERIOD_NS - 1


def localize(
    place_map: PlaceMap,
    engine: RecordedEngine,
    positives: Sequence[set[int]],
) -> list[Answer]:
    """Play the queries to the node's recognizer in mode localization, 1 s apart, without poses.

    Args:
        place_map: its keyframes are the references, in order, with the stamps of `stamp_of`.
        engine: gives the descriptors of the queries.
        positives: correct references of each query.

    Returns:
        judged answers, one for each query. The stamps of the queries follow those of the map.
    """
    recognizer = Recognizer(engine, place_map, Config(), mode=Mode.LOCALIZATION)
    return _play(recognizer, engine, len(place_map), positives, [bool(p) for p in positives])


def drive(
    engine: RecordedEngine,
    earlier: Sequence[set[int]],
    revisits: Sequence[bool],
) -> list[Answer]:
    """Play a drive to the node's recognizer in mode slam, 1 s apart, without poses.

    The recognizer selects its keyframes itself, in a map in memory.

    Args:
        engine: gives the descriptors of the images.
        earlier: of each image, the earlier images that are correct matches.
        revisits: of each image, whether the robot is back at a place.

    Returns:
        judged answers, one for each image.
    """
    with PlaceMap.open("", engine.info.fingerprint, engine.info.feature_dim) as place_map:
        recognizer = Recognizer(engine, place_map, Config(), mode=Mode.SLAM)
        return _play(recognizer, engine, 0, earlier, revisits)


def _play(
    recognizer: Recognizer,
    engine: RecordedEngine,
    first: int,
    correct: Sequence[set[int]],
    revisits: Sequence[bool],
) -> list[Answer]:
    """Play the recorded images 1 s apart, the first with the stamp of index `first`, and judge."""
    stamps = [stamp_of(first + i) for i in range(len(correct))]
    answers = [answer_of(recognizer.process(engine.blank, stamp)) for stamp in stamps]
    truth = TruthByStamp(
        {stamp: set(map(stamp_of, right)) for stamp, right in zip(stamps, correct, strict=True)},
        {stamp for stamp, revisit in zip(stamps, revisits, strict=True) if revisit},
    )
    return judge(answers, truth)


def closures(answers: Sequence[Answer], correct: Sequence[Set[int]]) -> dict[str, Any]:
    """The key `closures` of `hashvpr evaluate`.

    Args:
        answers: judged, one for each query.
        correct: correct references of each query, without any tolerance.

    Returns:
        `accepted`; `correct`, the accepted that are right: one for a query without any correct
        reference is wrong; `unknown`, the accepted that the ground truth says nothing of;
        `precision_percent`, the share of the correct in the others; `revisits`, the queries with
        a correct reference; `closed_percent`, the share of these with a correct closure;
        `position_error_frames`, see `position_error`, its median and 95th percentile over the
        accepted. A value is None where there is nothing to compute it from.
    """
    accepted = [(a, right) for a, right in zip(answers, correct, strict=True) if a.accepted]
    counts = count(answers)
    errors = [position_error(index_of(a.match_stamp_ns), places) for a, places in accepted]
    return {
        "accepted": counts["closures_accepted"],
        "correct": counts["closures_right"],
        "unknown": counts["closures_unknown"],
        "precision_percent": counts["closure_precision"],
        "revisits": counts["revisits"],
        "closed_percent": counts["closure_recall"],
        "position_error_frames": {
            name: None if math.isnan(value) else value
            for name, value in median_p95([e for e in errors if e is not None]).items()
        },
    }


def position_error(match: int, correct: Set[int]) -> float | None:
    """Frames from a match to the middle of the correct references nearest to it.

    The correct references of a query are mostly a few runs of consecutive images, one for each
    time that the place was seen. The middle of a run is taken for the best match. The run that
    counts is that with the image nearest to the match.

    Args:
        match: index of the matched reference.
        correct: indices of the correct references.

    Returns:
        the distance in frames; None without any correct reference.
    """
    if not correct:
        return None
    indices = np.array(sorted(correct))
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    nearest = min(runs, key=lambda run: int(np.abs(run - match).min()))
    return float(abs(match - (nearest[0] + nearest[-1]) / 2))


def calibration(answers: Sequence[Answer]) -> dict[str, Any]:
    """The key `calibration` of `hashvpr evaluate`, over the queries with a judged hypothesis.

    Args:
        answers: judged, one for each query.

    Returns:
        `queries`; `expected_calibration_error`, see `metrics`; `at_least_0_99`: `count`,
        `correct` and `precision_percent` of the best hypotheses whose probability is at least
        0.99. A value is None where there is nothing to compute it from.
    """
    matched = [a for a in answers if a.match_id and a.right is not None]
    error = expected_calibration_error(
        [a.probability for a in matched], [bool(a.right) for a in matched]
    )
    high = [a for a in matched if a.probability >= HIGH_PROBABILITY]
    right = sum(bool(a.right) for a in high)
    return {
        "queries": len(matched),
        "expected_calibration_error": None if math.isnan(error) else round(error, 4),
        "at_least_0_99": {
            "count": len(high),
            "correct": right,
            "precision_percent": percent(right, len(high)),
        },
    }
