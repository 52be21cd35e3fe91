"""Where images of a bag were taken: by a topic of the bag, or by a file beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from hashvpr_ros.datasets.bag import open_bag, read_poses
from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.poses import PoseTrack
from hashvpr_ros.types import Pose

# Poses of a ground truth come often; further than this from an image, one says nothing of it.
_AGE_S = 0.2


def read_truth(bag: Path, truth: str) -> Callable[[int], Pose | None]:
    """Poses by stamp in nanoseconds, None where none is near.

    Args:
        truth: path of a TUM trajectory, or a pose topic of the bag.

    Raises:
        DatasetError: the file is malformed; the bag is damaged, or lacks the topic.
    """
    if Path(truth).is_file():
        track = PoseTrack(keep=0)
        for stamp_ns, pose in read_tum(Path(truth)):
            track.add(stamp_ns, pose)
    else:
        with closing(open_bag(bag)) as reader:
            track = read_poses(reader, bag, truth)
    return lambda stamp_ns: track.at(stamp_ns, _AGE_S)
