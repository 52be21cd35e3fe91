"""Loop closures on a long rendered course of look-alike stretches, with drifting odometry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.engine.base import DescriptorEngine, EngineInfo
from hashvpr_ros.engine.preprocess import describe_image
from hashvpr_ros.evaluation.ground_truth import TruthByPose
from hashvpr_ros.evaluation.metrics import median_p95
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.evaluation.run_result import Answer, answer_of, count, judge
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode, Pose


@dataclass(frozen=True)
class Drive:
    """Described images of a drive with exact and drifting poses."""

    info: EngineInfo
    codes: NDArray[np.uint8]  # [n, 64]
    features: NDArray[np.float32]  # [n, D]
    stamps_ns: NDArray[np.int64]
    exact: list[Pose]
    odometry: list[Pose]


def describe_drive(
    shots: Iterator[tuple[NDArray[np.uint8], int, Pose, Pose]],
    engine: DescriptorEngine,
    progress: Callable[[], None] = lambda: None,
) -> Drive:
    """Describe images as they are rendered.

    Args:
        shots: image, stamp, exact pose, odometry.
        progress: called after each.
    """
    codes, features, stamps, exact, odometry = [], [], [], [], []
    for rgb, stamp_ns, true, drifted in shots:
        descriptor = describe_image(engine, rgb)
        codes.append(descriptor.code)
        features.append(descriptor.feature)
        stamps.append(stamp_ns)
        exact.append(true)
        odometry.append(drifted)
        progress()
    return Drive(
        engine.info,
        np.array(codes),
        np.array(features),
        np.array(stamps, np.int64),
        exact,
        odometry,
    )


def close_loops(
    drive: Drive,
    config: Config,
    *,
    odometry: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Answer], list[float]]:
    """Run the recognizer in mode slam over a drive.

    Args:
        odometry: whether the recognizer gets the drifting poses.

    Returns:
        judged answers, and milliseconds that each image took beside the network.
    """
    recorded = RecordedEngine(drive.info, drive.codes, drive.features)
    answers, times = [], []
    with PlaceMap.open("", drive.info.fingerprint, drive.info.feature_dim) as place_map:
        recognizer = Recognizer(recorded, place_map, config, mode=Mode.SLAM)
        for stamp_ns, pose in zip(drive.stamps_ns.tolist(), drive.odometry, strict=True):
            decision = recognizer.process(recorded.blank, stamp_ns, pose if odometry else None)
            answers.append(answer_of(decision))
            times.append(decision.times.outside_engine_ms)
            progress()
    poses = dict(zip(drive.stamps_ns.tolist(), drive.exact, strict=True))
    truth = TruthByPose(poses.get, poses, config.matching.exclude_recent_s)
    return judge(answers, truth), times


def summary(answers: list[Answer], times_ms: list[float]) -> dict[str, Any]:
    """Counts and shares of a run, shares in percent."""
    counts = count(answers)
    return {
        "images": len(answers),
        "revisits": counts["revisits"],
        "recall_at_1": counts["recall_at_1"],
        "accepted": counts["closures_accepted"],
        "wrong": counts["closures_wrong"],
        "precision": counts["closure_precision"],
        "closed": counts["closure_recall"],
        "ms": median_p95(times_ms),
    }
