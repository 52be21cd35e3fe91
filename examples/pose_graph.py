"""A pose graph on GTSAM: drifting odometry and loop closures in, a corrected trajectory out.

No ROS here: `pose_graph_node.py` feeds it from topics, `close_the_loop.py` from a replay.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gtsam
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.file_io import replacing
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
# Where odometry was interrupted nobody knows how the robot moved meanwhile.
_LOST_M = 10.0
_LOST_RAD = 1.0


@dataclass(frozen=True)
class Noise:
    """How fast odometry errs: standard deviations after one metre, growing with the way's root.

    A root since the factors of consecutive nodes are independent of each other in the graph. A
    bias grows faster than that: choose the values so that over the longest way between closures
    the root reaches what the bias makes of it. The defaults allow 0.16 rad and 6.6 m (one
    standard deviation) after 700 m, as of wheels whose distances err by 1 %. Too small, and right
    closures are rejected as impossible; too large, and a wrong one that has few others against it
    is believed. A turn by 1 rad counts as a way of 1 m.
    """

    heading_rad: float = 0.006
    position_m: float = 0.25
    tilt_rad: float = 0.002  # roll and pitch, which gravity shows to most odometry

    def sigmas(self, way_m: float) -> NDArray[np.float64]:
        """Standard deviations after a way, in the order of GTSAM's Pose3: rotation, position."""
        each = [self.tilt_rad, self.tilt_rad, self.heading_rad, *[self.position_m] * 3]
        return np.array(each) * math.sqrt(max(way_m, 1e-6))


@dataclass(frozen=True)
class Closure:
    """That the images of two stamps show one place."""

    query_ns: int
    match_ns: int
    relative_heading_rad: float = 0.0  # how the robot is turned at the query against the match
    probability: float = 1.0  # where closures join the same nodes, the likeliest counts


class PoseGraph:
    """Nodes along the way of odometry, joined by odometry and by loop closures.

    Wrong closures are the danger: least squares bends the whole map for a single one. Graduated
    non-convexity with truncated least squares (Yang et al., RA-L 2020; `GncLMOptimizer`) begins
    with least squares and tightens step by step, until each closure counts fully or not at all.
    Odometry is declared an inlier.

    The graph is solved anew from odometry every time, so that the result depends on the
    measurements alone, and an outlier that was once believed leaves nothing behind.

    Args:
        noise: of the odometry.
        robust: False: least squares, to see what a wrong closure does.
    """

    def __init__(self, noise: Noise | None = None, *, robust: bool = True) -> None:
        self._noise = noise or Noise()
        self._robust = robust
        self._stamps_ns: list[int] = []
        self._odometry: list[gtsam.Pose3] = []  # of the nodes, as if it had never jumped
        self._jumps: set[int] = set()  # nodes to which nothing was measured
        self._anchor = gtsam.Pose3()  # from odometry as it comes to that of the nodes
        self._corrected: list[gtsam.Pose3] = []  # of the first nodes, as of the last `optimise`
        self._closures: list[Closure] = []
        self._used: list[bool | None] = []  # the first closures, as of the last `optimise`
        self.newest_ns = -1  # stamp of the last odometry; -1: none came

    def add_odometry(self, stamp_ns: int, pose: Pose, *, jumped: bool = False) -> bool:
        """Take in where odometry believes to be.

        A node is made of the first pose, and of each that is 0.5 m or 0.35 rad from the last.

        Args:
            stamp_ns: later than all before.
            pose: valid; see `Pose.is_valid`.
            jumped: odometry was interrupted and counts from elsewhere now. The robot goes on from
                the last node, and closures say what odometry does not.

        Returns:
            whether a node was made.

        Raises:
            ValueError: the stamp is not later, or the pose is invalid.
        """
        if stamp_ns <= self.newest_ns or not pose.is_valid():
            raise ValueError(f"odometry at {stamp_ns} ns is not later, or invalid: {pose}")
        self.newest_ns = stamp_ns
        new = _to_gtsam(pose)
        if jumped and self._odometry:
            self._anchor = self._odometry[-1].compose(new.inverse())
            self._jumps.add(len(self._odometry))
        new = self._anchor.compose(new)
        if self._odometry and not jumped:
            distance_m, angle_rad = _size(self._odometry[-1].between(new))
            if distance_m < _NODE_EVERY_M and angle_rad < _NODE_EVERY_RAD:
                return False
        self._stamps_ns.append(stamp_ns)
        self._odometry.append(new)
        return True

    def add_closure(self, closure: Closure) -> None:
        """Take in a closure.

        Odometry may come later: the closure waits. It is never used where a stamp is from before
        odometry began, nor where both are of one node.
        """
        self._closures.append(closure)

    @property
    def is_behind(self) -> bool:
        """Whether there are closures that `optimise` would use or reject for the first time."""
        judged = itertools.chain(self._used, itertools.repeat(None))
        return any(
            p is not None and u is None for p, u in zip(self._pairs(), judged, strict=False)
        )

    def optimise(self) -> list[bool | None]:
        """Correct the trajectory by all closures whose nodes are there.

        Returns:
            of each closure, in the order in which they were added, whether it is used; None: its
            nodes are not there.

        Raises:
            RuntimeError: GTSAM cannot solve it; the trajectory is as before.
        """
        pair_of = self._pairs()
        best: dict[tuple[int, int], Closure] = {}
        for pair, closure in zip(pair_of, self._closures, strict=True):
            if pair is not None and (
                pair not in best or closure.probability > best[pair].probability
            ):
                best[pair] = closure
        graph, values = self._odometry_graph()
        odometry_factors = graph.size()
        together = np.array([_SAME_HEADING_RAD] * 3 + [_SAME_PLACE_M] * 3)
        noise = gtsam.noiseModel.Diagonal.Sigmas(together)
        for (match, query), closure in best.items():
            turned = gtsam.Pose3(gtsam.Rot3.Yaw(closure.relative_heading_rad), np.zeros(3))
            graph.add(gtsam.BetweenFactorPose3(match, query, turned, noise))
        weights = np.ones(len(best))
        if best and self._robust:
            parameters = gtsam.GncLMParams()
            parameters.setLossType(gtsam.GncLossType.TLS)
            parameters.setKnownInliers(list(range(odometry_factors)))
            optimizer = gtsam.GncLMOptimizer(graph, values, parameters)
            optimizer.setInlierCostThresholdsAtProbability(_INLIER_PROBABILITY)
            values = optimizer.optimize()
            weights = optimizer.getWeights()[odometry_factors:]
        elif best:
            values = gtsam.LevenbergMarquardtOptimizer(graph, values).optimize()
        self._corrected = [values.atPose3(i) for i in range(len(self._odometry))]
        used = dict(zip(best, (weights > 0.5).tolist(), strict=True))
        self._used = [None if pair is None else used[pair] for pair in pair_of]
        return list(self._used)

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
        return [(s, _from_gtsam(p)) for s, p in zip(self._stamps_ns, poses, strict=True)]

    def _pairs(self) -> list[tuple[int, int] | None]:
        """The nodes that each closure joins, that of the match first; None: there are none yet."""
        pairs = [(self._node_at(c.match_ns), self._node_at(c.query_ns)) for c in self._closures]
        return [p if min(p) >= 0 and p[0] != p[1] else None for p in pairs]

    def _node_at(self, stamp_ns: int) -> int:
        """The last node until a stamp, from which the robot had not got away then; -1 for none."""
        if stamp_ns > self.newest_ns:
            return -1  # the robot may be further on than odometry has told
        return bisect.bisect_right(self._stamps_ns, stamp_ns) - 1

    def _odometry_graph(self) -> tuple[gtsam.NonlinearFactorGraph, gtsam.Values]:
        graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        lost = np.array([_LOST_RAD] * 3 + [_LOST_M] * 3)
        for i, pose in enumerate(self._odometry):
            values.insert(i, pose)
            if i == 0:
                noise = gtsam.noiseModel.Isotropic.Sigma(6, _START_SIGMA)
                graph.add(gtsam.PriorFactorPose3(0, pose, noise))
                continue
            step = self._odometry[i - 1].between(pose)
            sigmas = lost if i in self._jumps else self._noise.sigmas(sum(_size(step)))
            noise = gtsam.noiseModel.Diagonal.Sigmas(sigmas)
            graph.add(gtsam.BetweenFactorPose3(i - 1, i, step, noise))
        return graph, values


def write_tum(path: Path, trajectory: Sequence[tuple[int, Pose]]) -> None:
    """Write stamps (ns) and poses in the format of TUM, which evo and `read_tum` read.

    Raises:
        ConfigError: the file cannot be written; what was there stays.
    """
    lines = []
    for stamp_ns, pose in trajectory:
        seconds, rest = divmod(stamp_ns, 10**9)
        numbers = " ".join(f"{v:.9f}" for v in (*pose.position_m, *pose.orientation))
        lines.append(f"{seconds}.{rest:09d} {numbers}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(lines))


def _size(step: gtsam.Pose3) -> tuple[float, float]:
    """Metres and radians of a motion."""
    turn = gtsam.Rot3.Logmap(step.rotation())
    return float(np.linalg.norm(step.translation())), float(np.linalg.norm(turn))


def _to_gtsam(pose: Pose) -> gtsam.Pose3:
    x, y, z, w = unit(pose).orientation
    return gtsam.Pose3(gtsam.Rot3.Quaternion(w, x, y, z), np.array(pose.position_m))


def _from_gtsam(pose: gtsam.Pose3) -> Pose:
    x, y, z = pose.translation().tolist()
    qx, qy, qz, qw = pose.rotation().toQuaternion().coeffs().tolist()
    return Pose((x, y, z), (qx, qy, qz, qw))
