"""What messages say of what is not known: NaN, in every field that a flag or a comment names."""

import math

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from std_msgs.msg import Header
from vpr_process import ROOT

from hashvpr_ros.config import Config
from hashvpr_ros.ros import conversions
from hashvpr_ros.types import (
    Decision,
    Descriptor,
    Hypothesis,
    Keyframe,
    Ledger,
    Mode,
    Pose,
    Reason,
)

POSE = Pose((1.0, 2.0, 3.0), (0.0, 0.0, 0.6, 0.8), "odom")


def messages(pose):
    """One of each that holds poses, all of them `pose`."""
    keyframe = Keyframe(3, "one", "left", 10**9, pose)
    hypothesis = Hypothesis(keyframe, 10, 0.9, 0.1, 0.99, 1.0)
    descriptor = Descriptor(np.zeros(64, np.uint8), np.ones(4, np.float32) / 2)
    ledger = Ledger(Mode.SLAM, Config().matching, 3)
    decision = Decision(
        2 * 10**9, "left", "map", descriptor, Reason.ACCEPTED, pose=pose, hypotheses=(hypothesis,)
    )
    return [
        conversions.to_place(keyframe),
        conversions.to_hypotheses(decision, Header()),
        conversions.to_loop_closure(decision, Header()),
        conversions.to_ledger(decision, ledger, Header()),
        conversions.to_descriptor(decision, Header(), "ab"),
    ]


def within(message):
    """A message and all that it holds."""
    yield message
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(part, "get_fields_and_field_types"):
                yield from within(part)


def numbers(pose):
    p, q = pose.pose.position, pose.pose.orientation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]


@pytest.mark.parametrize("message", messages(None), ids=lambda m: type(m).__name__)
def test_a_pose_that_is_not_known_is_nan(message):
    poses = [part for part in within(message) if isinstance(part, PoseStamped)]
    assert poses
    for pose in poses:
        assert all(math.isnan(v) for v in numbers(pose))
        assert pose.header.frame_id == ""
    flags = [
        getattr(part, name)
        for part in within(message)
        for name in part.get_fields_and_field_types()
        if name.startswith("has_") and name.endswith("pose")
    ]
    assert len(flags) == len(poses) and not any(flags)


@pytest.mark.parametrize("message", messages(POSE), ids=lambda m: type(m).__name__)
def test_a_pose_that_is_known_is_given(message):
    for part in within(message):
        if isinstance(part, PoseStamped):
            assert numbers(part) == [*POSE.position_m, *POSE.orientation]
            assert part.header.frame_id == "odom"


@pytest.mark.parametrize("message", messages(None), ids=lambda m: type(m).__name__)
def test_a_relation_that_is_not_known_is_nan(message):
    for part in within(message):
        if "relative_heading" in part.get_fields_and_field_types():
            assert not part.has_relative_heading
            assert math.isnan(part.relative_heading) and math.isnan(part.position_stddev_m)


def test_a_closure_has_the_stamp_by_which_verdicts_find_it():
    """Where the image has none, it is the time of arrival, which only the decision knows."""
    closure = messages(POSE)[2]
    assert closure.header.stamp.sec == 0 and closure.query_stamp.sec == 2


def test_the_definitions_say_so():
    for path in [*(ROOT / "msg").glob("*.msg"), *(ROOT / "srv").glob("*.srv")]:
        for line in path.read_text().splitlines():
            if line.startswith("bool has_") and "newest" not in line:
                assert "NaN" in line, f"{path.name}: {line}"
