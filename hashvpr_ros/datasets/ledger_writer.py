"""Writes decision ledgers as a rosbag2, as the node would have published them; no ROS needed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer

from hashvpr_ros.datasets.bag import typestore
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.types import (
    UNKNOWN_POSE,
    Decision,
    Hypothesis,
    Keyframe,
    Ledger,
    LedgerEntry,
    Pose,
)

LEDGER_TOPIC = "/vpr_node/ledger"
_LEDGER = "hashvpr_ros/msg/DecisionLedger"


class LedgerWriter:
    """A bag of DecisionLedger messages, to be used in a `with` block.

    Args:
        path: of the bag's folder, which must not exist.

    Raises:
        DatasetError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store = typestore()
        self._writer = Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3)
        try:
            self._writer.open()
        except Exception as e:  # the library has errors of its own
            raise DatasetError(f"{path}: cannot be written: {e}; give another path") from e
        self._connection = self._writer.add_connection(
            LEDGER_TOPIC, _LEDGER, typestore=self._store
        )

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, decision: Decision, ledger: Ledger) -> None:
        """Append the ledger of a decision, at the stamp of its image."""
        raw = self._store.serialize_cdr(self._message(decision, ledger), _LEDGER)
        try:
            self._writer.write(self._connection, decision.stamp_ns, raw)
        except (OSError, sqlite3.Error) as e:
            raise DatasetError(f"{self._path}: cannot be written: {e}; free some space") from e

    def _make(self, kind: str, **fields: Any) -> Any:
        return self._store.types[kind](**fields)

    def _message(self, decision: Decision, ledger: Ledger) -> Any:
        matching = ledger.matching
        return self._make(
            _LEDGER,
            header=self._header(decision.stamp_ns, ""),
            camera=decision.camera,
            session=decision.session,
            keyframe_id=decision.keyframe_id,
            map_id=decision.map_id,
            keyframes=ledger.keyframes,
            mode=ledger.mode.value,
            has_newest_allowed=ledger.newest_allowed_ns is not None,
            newest_allowed=self._time(ledger.newest_allowed_ns or 0),
            temporal=matching.temporal,
            target_precision=matching.target_precision,
            min_sequence_support=matching.min_sequence_support,
            max_drift=matching.max_drift,
            reason=decision.reason.value,
            new_place_probability=decision.new_place_probability,
            hypotheses=[self._place(h.keyframe, h) for h in decision.hypotheses],
            candidates=[self._candidate(e) for e in ledger.entries],
        )

    def _time(self, ns: int) -> Any:
        sec, nanosec = divmod(ns, 1_000_000_000)
        return self._make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        return self._make("std_msgs/msg/Header", stamp=self._time(stamp_ns), frame_id=frame_id)

    def _place(self, keyframe: Keyframe, hypothesis: Hypothesis) -> Any:
        return self._make(
            "hashvpr_ros/msg/PlaceHypothesis",
            place_id=keyframe.id,
            session=keyframe.session,
            camera=keyframe.camera,
            stamp=self._time(keyframe.stamp_ns),
            has_pose=keyframe.pose is not None,
            pose=self._pose(keyframe.pose, keyframe.stamp_ns),
            distance=hypothesis.distance_bits,
            similarity=hypothesis.similarity,
            distinctness=hypothesis.distinctness,
            probability=hypothesis.probability,
            sequence_support=hypothesis.sequence_support,
            votes=min(hypothesis.votes, 255),
            **hypothesis.relation(),
        )

    def _candidate(self, entry: LedgerEntry) -> Any:
        keyframe, c = entry.keyframe, entry.candidate
        return self._make(
            "hashvpr_ros/msg/LedgerCandidate",
            place_id=keyframe.id,
            session=keyframe.session,
            camera=keyframe.camera,
            stamp=self._time(keyframe.stamp_ns),
            distance=c.distance_bits,
            similarity=c.similarity,
            rank_hash=c.rank_hash,
            rank=c.rank,
            belief=entry.belief,
            reason=entry.reason.value,
        )

    def _pose(self, pose: Pose | None, stamp_ns: int) -> Any:
        pose = pose or UNKNOWN_POSE
        return self._make(
            "geometry_msgs/msg/PoseStamped",
            header=self._header(stamp_ns, pose.frame_id),
            pose=self._make(
                "geometry_msgs/msg/Pose",
                position=self._make(
                    "geometry_msgs/msg/Point", **dict(zip("xyz", pose.position_m, strict=True))
                ),
                orientation=self._make(
                    "geometry_msgs/msg/Quaternion",
                    **dict(zip("xyzw", pose.orientation, strict=True)),
                ),
            ),
        )
