"""Each candidate of an image has a reason, also where nothing was accepted."""

from collections import Counter

import pytest
from test_matcher import World, drive, make, place_map  # noqa: F401

from hashvpr_ros.types import CandidateReason, Reason


def test_nothing_is_told_unless_it_is_asked_for(place_map):  # noqa: F811
    matches = drive(make(place_map), World(60), range(90))
    assert all(m.entries == () for m in matches)


@pytest.mark.parametrize("temporal", ["none", "sequence", "filter", "both"])
def test_each_candidate_has_a_reason(place_map, temporal):  # noqa: F811
    matcher = make(place_map, publish__ledger=True, matching__temporal=temporal)
    matches = drive(matcher, World(60), range(115))
    assert matches[-1].reason is Reason.ACCEPTED
    for i, matched in enumerate(matches):
        assert [e.candidate for e in matched.entries] == list(matched.candidates)
        chosen = {h.keyframe.id for h in matched.hypotheses}
        for e in matched.entries:
            assert e.candidate.keyframe_id == e.keyframe.id
            assert (e.reason is CandidateReason.CHOSEN) == (e.keyframe.id in chosen)
            # What is too recent is told by the stamp, and not compared.
            assert e.keyframe.stamp_ns <= matched.newest_allowed_ns == (i - 20) * 10**9
    counts = Counter(e.reason for m in matches for e in m.entries)
    assert counts[CandidateReason.SAME_PLACE] > 100
    # On the first lap the robot has driven away from whatever it could be taken back to.
    assert counts[CandidateReason.ODOMETRY_CONFLICT] > 100
    belief = max(e.belief for e in matches[-1].entries)
    assert belief > 0.9 if temporal in ("filter", "both") else belief == 0.0
