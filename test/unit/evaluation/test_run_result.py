"""What a run counts: right, wrong, and what the ground truth says nothing of."""

import math

import pytest

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.evaluation.ground_truth import TruthByPose
from hashvpr_ros.evaluation.run_result import Answer, RunResult, count, judge

S = 10**9


def answer(stamp_s, match_s=None, accepted=False, probability=0.5):
    match_id = 0 if match_s is None else match_s + 1
    return Answer(stamp_s * S, accepted, "accepted" if accepted else "new_place", probability, 0.5,
                  match_id, (match_s or 0) * S, {"engine": 1.0})  # fmt: skip


def lap(known):
    """Two laps of 10 places, 1 s and 10 m apart, whose pose is known of some images."""
    poses = {i * S: planar_pose(10.0 * (i % 10), 0, 0) for i in known}
    return TruthByPose(poses.get, [i * S for i in range(20)], 5.0)


ANSWERS = [
    *(answer(i) for i in range(10)),
    *(answer(10 + i, i, accepted=i < 8, probability=0.9 - i / 100) for i in range(6)),
    answer(16, 3, accepted=True, probability=0.95),  # wrong
    answer(17, 2, accepted=False),
    answer(18),
    answer(19, 9, accepted=True),
]


def test_all_is_known():
    found = count(judge(ANSWERS, lap(range(20))))
    assert found["images_without_ground_truth"] == found["closures_unknown"] == 0
    assert (found["revisits"], found["revisits_judged"]) == (10, 10)
    assert (found["closures_accepted"], found["closures_right"], found["closures_wrong"]) == (
        8,
        7,
        1,
    )
    assert found["closure_precision"] == 87.5 and found["closure_recall"] == 70.0
    assert found["recall_at_1"] == 70.0


@pytest.mark.parametrize(
    ("known", "unknown", "right", "wrong", "without"),
    [
        (range(15), 3, 5, 0, 5),  # the end is missing
        ([*range(3), *range(5, 20)], 3, 5, 0, 2),  # the wrong match is with an image in the gap
        ([*range(12), *range(15, 20)], 3, 4, 1, 3),  # one in the second
        (range(10, 20), 8, 0, 0, 10),  # the places of the map are not known
        ((), 8, 0, 0, 20),
    ],
)
def test_what_is_missing_is_unknown(known, unknown, right, wrong, without):
    judged = judge(ANSWERS, lap(known))
    found = count(judged)
    numbers = [found[f"closures_{k}"] for k in ("unknown", "right", "wrong")]
    assert numbers == [unknown, right, wrong] and sum(numbers) == found["closures_accepted"] == 8
    assert found["images_without_ground_truth"] == without
    if not right + wrong:
        assert found["closure_precision"] is None
    run = RunResult("", judged, len(judged), {}, lambda _: {}, lambda _: {})
    assert not math.isnan(run.summary()["average_precision"])


def test_less_ground_truth_never_makes_a_right_closure_wrong():
    whole = judge(ANSWERS, lap(range(20)))
    for first in range(20):
        for last in range(first, 21):
            for a, b in zip(whole, judge(ANSWERS, lap(range(first, last))), strict=True):
                assert b.right in (a.right, None)
                assert b.possible in (a.possible, None, False)
