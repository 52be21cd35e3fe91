"""A pose graph on GTSAM: drifting odometry and loop closures in, a corrected trajectory out.

No ROS here: `pose_graph_node.py` feeds it from topics, `close_the_loop.py` from a replay.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gtsam
import numpy as np

from hashvpr_ros.poses import unit
from hashvpr_ros.types import Pose

_NODE_EVERY_M = 0.5
_NODE_EVERY_RAD = 0.35  # else a turn on the spot would be one node, which looks nowhere
_START_SIGMA = 1e-3  # m and rad: the first node stays where odometry began
# A closure says that two images show one place, not how they lie to each other: the factor takes
# them to be in one spot, and these are how far from that they are (docs/back_end.md).
_SAME_PLACE_M = 2.0
_SAME_HEADING_RAD = 0.3
# A closure is an inlier where its error is below this quantile of the chi-squared distribution.
_INLIER_PROBABILITY = 0.99


@dataclass(frozen=True)
class Drift:
    """How fast odometry errs: standard deviations after one metre, growing with the way's root.

    A root since the factors of consecutive nodes are independent of each other in the graph. A
    bias grows faster than that: choose the values so that over the longest way between closures
    the root reaches what the bias makes of it. The defaults allow 0.35 rad and 1.7 m (one
    standard deviation) after 300 m. Too small, and right closures are rejected as impossible.
    A turn by 1 rad counts as a way of 1 m.
    """

    heading_rad: float = 0.02
    tilt_rad: float = 0.005  # roll and pitch, which gravity shows to most odometry
    position_m: float = 0.1

    def sigmas(self, way_m: float) -> np.ndarray:
        """Standard deviations after a way, in the order of GTSAM's Pose3: rotation, position."""
        each = [self.tilt_rad, self.tilt_rad, self.heading_rad, *[self.position_m] * 3]
        return np.array(each) * math.sqrt(max(way_m, 1e-6))


@dataclass(frozen=True)
class Optimised:
    """What became of the loop closures."""

    used: int
    rejected: int  # as outliers, by the robust kernel


class PoseGraph:
    """Keyframe nodes from odometry, joined by odometry and by loop closures.

    Wrong closures are the danger: least squares bends the whole map for a single one. Graduated
    non-convexity with truncated least squares (Yang et al., RA-L 2020; `GncLMOptimizer`) begins
    with least squares and tightens step by step, until each closure counts fully or not at all.
    Odometry is declared an inlier. Cauchy's kernel was tried, too: it survives one wrong closure
    among hundreds of right ones as well, but is pulled by one among few.

    The graph is solved anew from odometry every time, so that the result depends on the
    measurements alone, and an outlier that was once believed leaves nothing behind.

    Args:
        drift: of the odometry.
        robust: False: least squares, to see what a wrong closure does.
    """

    def __init__(self, drift: Drift | None = None, *, robust: bool = True) -> None:
        self._drift = drift or Drift()
        self._robust = robust
        self._stamps_ns: list[int] = []
        self._odometry: list[gtsam.Pose3] = []
        self._corrected: list[gtsam.Pose3] = []  # of the first nodes, as of the last `optimise`
        self._closures: list[tuple[int, int]] = []

    def add_odometry(self, stamp_ns: int, pose: Pose) -> bool:
        """Take in where odometry believes to be.

        A node is made of the first pose, and of each that is 0.5 m or 0.35 rad from the last.

        Returns:
            whether a node was made. Poses that are invalid or older than the last node make none.
        """
        if not pose.is_valid():
            return False
        new = _to_gtsam(pose)
        if self._odometry:
            distance_m, angle_rad = _size(self._odometry[-1].between(new))
            moved = distance_m >= _NODE_EVERY_M or angle_rad >= _NODE_EVERY_RAD
            if stamp_ns <= self._stamps_ns[-1] or not moved:
                return False
        self._stamps_ns.append(stamp_ns)
        self._odometry.append(new)
        return True

    def add_closure(self, query_ns: int, match_ns: int) -> None:
        """Take in that the images of two stamps show one place.

        Odometry may come later: the closure waits. It is not used where a stamp is from before
        odometry began.
        """
        self._closures.append((query_ns, match_ns))

    def optimise(self) -> Optimised:
        """Correct the trajectory by all closures whose nodes are there."""
        pairs = self._pairs()
        graph, values = self._odometry_graph()
        odometry_factors = graph.size()
        together = np.array([_SAME_HEADING_RAD] * 3 + [_SAME_PLACE_M] * 3)
        noise = gtsam.noiseModel.Diagonal.Sigmas(together)
        for match, query in pairs:
            graph.add(gtsam.BetweenFactorPose3(match, query, gtsam.Pose3(), noise))
        weights = np.ones(len(pairs))
        if pairs and self._robust:
            parameters = gtsam.GncLMParams()
            parameters.setLossType(gtsam.GncLossType.TLS)
            parameters.setKnownInliers(list(range(odometry_factors)))
            optimizer = gtsam.GncLMOptimizer(graph, values, parameters)
            optimizer.setInlierCostThresholdsAtProbability(_INLIER_PROBABILITY)
            values = optimizer.optimize()
            weights = optimizer.getWeights()[odometry_factors:]
        elif pairs:
            values = gtsam.LevenbergMarquardtOptimizer(graph, values).optimize()
        self._corrected = [values.atPose3(i) for i in range(len(self._odometry))]
        used = int((weights > 0.5).sum())
        return Optimised(used, len(pairs) - used)

    def trajectory(self) -> list[tuple[int, Pose]]:
        """Stamps and poses of all nodes, corrected.

        Those that came after the last `optimise` are where odometry leads from there.
        """
        poses = list(self._corrected)
        if poses:
            correction = poses[-1].compose(self._odometry[len(poses) - 1].inverse())
        else:
            correction = gtsam.Pose3()
        poses += [correction.compose(p) for p in self._odometry[len(poses) :]]
        return self._stamped(poses)

    def odometry(self) -> list[tuple[int, Pose]]:
        """The same nodes where odometry has them."""
        return self._stamped(self._odometry)

    def _stamped(self, poses: Sequence[gtsam.Pose3]) -> list[tuple[int, Pose]]:
        return [(s, _from_gtsam(p)) for s, p in zip(self._stamps_ns, poses, strict=True)]

    def _pairs(self) -> list[tuple[int, int]]:
        """Nodes that closures join, each pair once: images of one node are hardly independent."""
        pairs = set()
        for stamps in self._closures:
            match, query = sorted(self._node_at(stamp) for stamp in stamps)
            if 0 <= match < query:
                pairs.add((match, query))
        return sorted(pairs)

    def _node_at(self, stamp_ns: int) -> int:
        """The last node until a stamp, from which the robot had not got away then; -1 for none."""
        if not self._stamps_ns or stamp_ns > self._stamps_ns[-1]:
            return -1  # the robot may be further on than odometry has told
        return bisect.bisect_right(self._stamps_ns, stamp_ns) - 1

    def _odometry_graph(self) -> tuple[gtsam.NonlinearFactorGraph, gtsam.Values]:
        graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        for i, pose in enumerate(self._odometry):
            values.insert(i, pose)
            if i == 0:
                noise = gtsam.noiseModel.Isotropic.Sigma(6, _START_SIGMA)
                graph.add(gtsam.PriorFactorPose3(0, pose, noise))
                continue
            step = self._odometry[i - 1].between(pose)
            noise = gtsam.noiseModel.Diagonal.Sigmas(self._drift.sigmas(sum(_size(step))))
            graph.add(gtsam.BetweenFactorPose3(i - 1, i, step, noise))
        return graph, values


def write_tum(path: Path, trajectory: Sequence[tuple[int, Pose]]) -> None:
    """Write stamps (ns) and poses in the format of TUM, which evo and `read_tum` read."""
    lines = []
    for stamp_ns, pose in trajectory:
        seconds, rest = divmod(stamp_ns, 10**9)
        numbers = " ".join(f"{v:.9f}" for v in (*pose.position_m, *pose.orientation))
        lines.append(f"{seconds}.{rest:09d} {numbers}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text("".join(lines))
    os.replace(unfinished, path)


def _size(step: gtsam.Pose3) -> tuple[float, float]:
    """Metres and radians of a motion."""
    turn = gtsam.Rot3.Logmap(step.rotation())
    return float(np.linalg.norm(step.translation())), float(np.linalg.norm(turn))


def _to_gtsam(pose: Pose) -> gtsam.Pose3:
    x, y, z, w = unit(pose).orientation
    return gtsam.Pose3(gtsam.Rot3.Quaternion(w, x, y, z), np.array(pose.position_m))


def _from_gtsam(pose: gtsam.Pose3) -> Pose:
    x, y, z = (float(v) for v in pose.translation())
    q = pose.rotation().toQuaternion()
    return Pose((x, y, z), (q.x(), q.y(), q.z(), q.w()))
