"""Where images of a bag were taken: by a topic of the bag, or by a file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hashvpr_ros.datasets.bag import Losses, read_poses
from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.types import Pose

# Poses of a ground truth come often; further than this from an image, one says nothing of it.
_AGE_S = 0.2


class TruePoses:
    """Poses of a ground truth by stamp.

    Args:
        track: the poses.
        source: file or topic, for messages to people.
    """

    def __init__(self, track: PoseTrack, source: str) -> None:
        self._track, self.source = track, source

    def at(self, stamp_ns: int) -> Pose | None:
        """The pose of an image by its stamp, None where no pose is within 0.2 s."""
        return self._track.at(stamp_ns, _AGE_S)

    def require(self, stamps_ns: Sequence[int]) -> None:
        """Check that at least one of some images has a pose.

        Args:
            stamps_ns: of the images.

        Raises:
            DatasetError: none has, or there is no image.
        """
        if any(self.at(stamp) is not None for stamp in stamps_ns):
            return
        span = self._track.span_ns
        if not stamps_ns or span is None:
            raise DatasetError(
                f"{self.source}: nothing can be judged, for there is no "
                f"{'pose' if stamps_ns else 'image'}; give a ground truth of these images"
            )
        nearest_s = min(abs(self._track.gap_ns(stamp) or 0) for stamp in stamps_ns) / 1e9
        raise DatasetError(
            f"{self.source}: nothing can be judged, for none of the {len(stamps_ns)} images has a "
            f"pose within {_AGE_S:g} s: the poses are from {_seconds(span[0])} to "
            f"{_seconds(span[1])} s, the images from {_seconds(min(stamps_ns))} to "
            f"{_seconds(max(stamps_ns))} s, and the nearest are {nearest_s:,.3f} s apart; give a "
            f"ground truth of the same clock, with poses at most {2 * _AGE_S:g} s apart"
        )


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns / 1e9:.3f}"


def read_truth(bag: Path, truth: str, losses: Losses) -> TruePoses:
    """The ground truth of a bag's images.

    Args:
        truth: path of a TUM trajectory, or a pose topic of the bag.
        losses: learns what could not be read of the bag.

    Raises:
        DatasetError: the file is malformed; the bag is damaged, or lacks the topic.
    """
    path = Path(os.path.expanduser(truth))
    if not path.exists() or path.is_dir():
        return TruePoses(read_poses(bag, truth, losses), f"{bag}: topic {truth}")
    track = PoseTrack(keep=0)
    for stamp_ns, pose in read_tum(path):
        track.add(stamp_ns, pose)
    return TruePoses(track, str(path))
