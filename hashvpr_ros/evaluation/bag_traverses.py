"""Two drives in bags as queries, references and ground truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from hashvpr_ros.datasets.bag import BagFrames
from hashvpr_ros.datasets.truth import TruePoses
from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.evaluation.ground_truth import near_poses
from hashvpr_ros.poses import turned_rad
from hashvpr_ros.types import Pose

_TURN_RAD = 0.5  # after which an image is taken, however far the last one is


class BagTraverses:
    """Images of two drives, as far apart as keyframes; see `datasets.base.Traverses`.

    Args:
        queries, references: of one image topic each, with their ground truth. Images without a
            pose are left out, see `notes`.
        folder: an empty one, to which they are written as PNG.
        spacing_m: from one image to the next.
        radius_m, angle_rad: what is within both shows the place of a query.
        progress: called after each image that is read.

    Attributes:
        notes: how many images had no ground truth, a sentence for each bag.

    Raises:
        DatasetError: a bag is damaged, no image has a pose, or the poses are of several frames.
    """

    def __init__(
        self,
        queries: tuple[BagFrames, TruePoses],
        references: tuple[BagFrames, TruePoses],
        folder: Path,
        *,
        spacing_m: float = 1.0,
        radius_m: float = 4.0,
        angle_rad: float = math.radians(40),
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._radius_m, self._angle_rad = radius_m, angle_rad
        self.notes: list[str] = []
        self.queries, self._query_poses = _extract(
            *queries, folder / "query", spacing_m, progress, self.notes
        )
        self.references, self._reference_poses = _extract(
            *references, folder / "ref", spacing_m, progress, self.notes
        )
        frames = {p.frame_id for p in (*self._query_poses, *self._reference_poses)}
        if len(frames) > 1:
            raise DatasetError(
                f"{queries[0].path}, {references[0].path}: their poses are of several frames "
                f"({', '.join(sorted(map(repr, frames)))}); give poses of both in one"
            )

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """The references near each query, that look the same way.

        Args:
            tolerance: 0: poses say what is near.

        Raises:
            ConfigError: another tolerance. DatasetError: no query has any.
        """
        if tolerance:
            raise ConfigError(
                "--tolerance is of no use with bags, whose poses count: set --radius"
            )
        positions = np.array([p.position_m for p in self._reference_poses])
        turns = np.array([p.orientation for p in self._reference_poses])
        found = [
            near_poses(pose, positions, turns, self._radius_m, self._angle_rad)
            for pose in self._query_poses
        ]
        if not any(near.any() for near in found):
            raise DatasetError(
                f"no query is within {self._radius_m:g} m and "
                f"{math.degrees(self._angle_rad):g} degrees of a reference; give poses of one "
                "origin for both bags, or a wider --radius"
            )
        return [set(np.flatnonzero(near).tolist()) for near in found]


def _extract(
    frames: BagFrames,
    truth: TruePoses,
    folder: Path,
    spacing_m: float,
    progress: Callable[[], None],
    notes: list[str],
) -> tuple[list[Path], list[Pose]]:
    """Paths and poses of the images that are taken."""
    paths: list[Path] = []
    poses: list[Pose] = []
    stamps: list[int] = []
    unknown = 0
    folder.mkdir()
    for frame in frames:
        progress()
        stamps.append(frame.stamp_ns)
        pose = truth.at(frame.stamp_ns)
        if pose is None:
            unknown += 1
            continue
        if (
            poses
            and math.dist(pose.position_m, poses[-1].position_m) < spacing_m
            and turned_rad(pose, poses[-1]) < _TURN_RAD
        ):
            continue
        path = folder / f"{len(paths):06d} at {frame.stamp_ns / 1e9:.3f} s.png"
        if not cv2.imwrite(str(path), cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)):
            raise DatasetError(f"{path}: cannot be written; free some space or set TMPDIR")
        paths.append(path)
        poses.append(pose)
    if not paths:
        truth.require(stamps)
    if unknown:
        notes.append(
            f"{frames.path}: {unknown} of {len(stamps)} images have no ground truth and are left "
            "out"
        )
    return paths, poses
