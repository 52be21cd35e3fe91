"""Fits how sure the matches of a map are, to images of its places and to impostors.

Platt (1999): a logistic in the log odds that are given without it. Impostors are taken from the
map itself: against the half of the map in which it does not lie, whatever an image matches is
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.engine.base import DescriptorEngine, EngineInfo
from hashvpr_ros.engine.preprocess import describe_image
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.evaluation.ground_truth import near_poses
from hashvpr_ros.evaluation.metrics import brier, expected_calibration_error
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Descriptor, Mode, Pose, Verdict

LEAST = 50  # right matches, and wrong ones, below which nothing is fitted
# Keyframes beside a place that are not of another place for sure.
_MARGIN_KEYFRAMES = 20
_MOST_LOG_ODDS = 30.0


@dataclass(frozen=True)
class Queries:
    """Described images of the map's places, in the order in which they were taken."""

    codes: NDArray[np.uint8]  # [n, 64]
    features: NDArray[np.float32]  # [n, D]
    stamps_ns: list[int]
    poses: list[Pose | None]


@dataclass(frozen=True)
class Fit:
    """A calibration and what it came to on the matches that it was fitted to."""

    calibration: Calibration
    queries: int
    queries_with_ground_truth: int  # that show a place of the map; the others say nothing
    accepted_before: tuple[int, int]  # matches of at least the target precision: right, wrong
    accepted_after: tuple[int, int]
    error_before: float  # expected calibration error
    error_after: float
    brier_before: float
    brier_after: float


def describe_queries(
    frames: Iterable[tuple[NDArray[np.uint8], int, Pose | None]],
    engine: DescriptorEngine,
    progress: Callable[[], None] = lambda: None,
) -> Queries:
    """Describe images: pixels, stamp in ns, pose."""
    codes, features, stamps, poses = [], [], [], []
    for rgb, stamp_ns, pose in frames:
        descriptor = describe_image(engine, rgb)
        codes.append(descriptor.code)
        features.append(descriptor.feature)
        stamps.append(stamp_ns)
        poses.append(pose)
        progress()
    return Queries(
        np.array(codes).reshape(-1, 64),
        np.array(features, np.float32).reshape(-1, engine.info.feature_dim),
        stamps,
        poses,
    )


def right_by_pose(
    queries: Queries, place_map: PlaceMap, radius_m: float, angle_rad: float
) -> list[set[int]]:
    """The keyframes of a map that show each query's place, by poses of one frame.

    Raises:
        ConfigError: the map or the queries have no poses, or none of a common frame.
    """
    keyframes = [k for k in place_map.keyframes(place_map.ids()) if k.pose is not None]
    frames = {k.pose.frame_id for k in keyframes if k.pose is not None}
    common = frames & {p.frame_id for p in queries.poses if p is not None}
    if not common:
        raise ConfigError(
            "the map's keyframes and the images have no poses of a common frame (the map's: "
            f"{', '.join(sorted(frames)) or 'none'}); give the pose topic that the map was made "
            "with"
        )
    known = [k for k in keyframes if k.pose is not None and k.pose.frame_id in common]
    ids = np.array([k.id for k in known])
    positions = np.array([k.pose.position_m for k in known if k.pose is not None])
    turns = np.array([k.pose.orientation for k in known if k.pose is not None])
    found: list[set[int]] = []
    for pose in queries.poses:
        if pose is None or pose.frame_id not in common:
            found.append(set())
            continue
        near = near_poses(pose, positions, turns, radius_m, angle_rad)
        found.append(set(ids[near].tolist()))
    return found


def calibrate(
    queries: Queries,
    right: Sequence[set[int]],
    place_map: PlaceMap,
    info: EngineInfo,
    config: Config,
    progress: Callable[[], None] = lambda: None,
) -> Fit:
    """Fit the probabilities of matches with a map.

    What back ends have said of closures with this map counts beside the images.

    Args:
        queries: not those that the map was made of.
        right: ids of the keyframes that show each query's place; a query without any says nothing.
        info: of the engine that described them.
        config: of the node; `matching` is used, in mode localization.
        progress: called three times for each query.

    Raises:
        ConfigError: there are too few matches, or right and wrong ones look the same.
    """
    ids = place_map.ids()
    middle = int(ids[len(ids) // 2]) if len(ids) else 0
    odds, matched = _matches(queries, place_map, info, config, progress)
    known = np.array([bool(r) for r in right])
    correct = np.array(
        [match in r for match, r in zip(matched.tolist(), right, strict=True)], bool
    )
    taken = known & (matched > 0)
    scores, targets = [odds[taken]], [correct[taken]]
    for first, last in ((0, middle - 1), (middle, int(ids[-1]) if len(ids) else 0)):
        part = ids[(ids >= first) & (ids <= last)]
        with _copy_of(place_map, part) as half:
            odds, matched = _matches(queries, half, info, config, progress)
        # Whose place is in the other half, and not just beyond the border.
        elsewhere = np.array(
            [
                bool(r)
                and all(not first - _MARGIN_KEYFRAMES <= i <= last + _MARGIN_KEYFRAMES for i in r)
                for r in right
            ],
            bool,
        )
        taken = elsewhere & (matched > 0)
        scores.append(odds[taken])
        targets.append(np.zeros(int(taken.sum()), bool))
    judged = [v for v in place_map.read_verdicts() if v.log_odds is not None]
    scores.append(
        np.clip([float(v.log_odds or 0.0) for v in judged], -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    )
    targets.append(np.array([v.verdict == Verdict.ACCEPTED.value for v in judged], bool))
    return _fit(
        np.concatenate(scores),
        np.concatenate(targets),
        config.matching.target_precision,
        (len(right), int(known.sum())),
    )


def _matches(
    queries: Queries,
    place_map: PlaceMap,
    info: EngineInfo,
    config: Config,
    progress: Callable[[], None],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log odds, uncalibrated, and keyframe of each query's best match; 0 for none."""
    recorded = RecordedEngine(info, queries.codes, queries.features)
    recognizer = Recognizer(recorded, place_map, config, mode=Mode.LOCALIZATION, calibrated=False)
    odds, matched = [], []
    for stamp_ns, pose in zip(queries.stamps_ns, queries.poses, strict=True):
        decision = recognizer.process(recorded.blank, stamp_ns, pose)
        best = decision.hypotheses[0] if decision.hypotheses else None
        p = 0.5 if best is None else best.probability
        value = math.log(max(p, 1e-15) / max(1.0 - p, 1e-15))
        odds.append(max(-_MOST_LOG_ODDS, min(_MOST_LOG_ODDS, value)))
        matched.append(0 if best is None else best.keyframe.id)
        progress()
    return np.array(odds, float), np.array(matched, np.int64)


def _copy_of(place_map: PlaceMap, ids: NDArray[np.int32]) -> PlaceMap:
    """Some keyframes of a map, in memory, under ids of their own."""
    copy = PlaceMap.open("", place_map.fingerprint, place_map.feature_dim)
    session = ""
    for begin in range(0, len(ids), 1000):
        part = ids[begin : begin + 1000]
        features = place_map.features(part)
        codes = place_map.codes_of(part)
        for keyframe, code, feature in zip(
            place_map.keyframes(part), codes, features, strict=True
        ):
            if keyframe.session != session:
                session = keyframe.session
                copy.start_session(session)
            copy.add(
                camera=keyframe.camera,
                stamp_ns=keyframe.stamp_ns,
                pose=keyframe.pose,
                descriptor=Descriptor(code, feature),
            )
    return copy


def _fit(
    scores: NDArray[np.float64],
    right: NDArray[np.bool_],
    target: float,
    queries: tuple[int, int],
) -> Fit:
    """Fit a calibration.

    Args:
        queries: all, and those of which a place of the map is known.
    """
    from sklearn.linear_model import LogisticRegression

    counts = int(right.sum()), int((~right).sum())
    if min(counts) < LEAST:
        raise ConfigError(
            f"of {queries[0]} images {queries[1]} show a place of the map by their ground truth: "
            f"there are {counts[0]} right and {counts[1]} wrong matches to fit to, and at least "
            f"{LEAST} of each are needed; give more images of the map's places, or a larger map"
        )
    model = LogisticRegression(C=1.0).fit(scores[:, np.newaxis], right)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise ConfigError(
            "right and wrong matches look the same here, so nothing can be fitted; are these "
            "images of the map's places, and are their poses right?"
        )
    before = 1 / (1 + np.exp(-scores))
    after = 1 / (1 + np.exp(-(slope * scores + intercept)))

    def accepted(probabilities: NDArray[np.float64]) -> tuple[int, int]:
        taken = probabilities >= target
        return int((taken & right).sum()), int((taken & ~right).sum())

    return Fit(
        Calibration(slope, intercept, *counts),
        *queries,
        accepted(before),
        accepted(after),
        expected_calibration_error(before, right),
        expected_calibration_error(after, right),
        brier(before, right),
        brier(after, right),
    )
