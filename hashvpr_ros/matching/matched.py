"""What the images of an instant show, each by itself and as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hashvpr_ros.matching.distinct import SamePlaces, show_one_place
from hashvpr_ros.matching.runs import View
from hashvpr_ros.types import Candidate, Hypothesis, LedgerEntry, Reason


@dataclass(frozen=True)
class Matched:
    """What an image shows, by its descriptor and the past of the robot."""

    reason: Reason
    hypotheses: tuple[Hypothesis, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    new_place_probability: float = 1.0
    search_ms: float = 0.0
    rerank_ms: float = 0.0
    temporal_ms: float = 0.0
    newest_allowed_ns: int | None = None  # keyframes stamped later were too recent
    view: View | None = None  # places that it may show, for the images that follow
    entries: tuple[LedgerEntry, ...] = ()  # of all candidates, where a ledger is asked for


def vote(matched: dict[str, Matched], same: SamePlaces) -> dict[str, Matched]:
    """Count which cameras see the place of each hypothesis; of a quarrel the surest wins.

    Of places of two sessions, whose odometry begins anywhere, nobody knows whether they are one.

    Args:
        matched: what each camera's image shows.
        same: stretches of the map that are one place.
    """
    if len(matched) < 2:
        return matched
    bests = [m.hypotheses[0] for m in matched.values() if m.hypotheses]
    surest = max(
        (m.hypotheses[0] for m in matched.values() if m.reason is Reason.ACCEPTED),
        key=lambda h: h.probability,
        default=None,
    )
    result = {}
    for camera, m in matched.items():
        hypotheses = tuple(
            replace(h, votes=sum(show_one_place(h.keyframe, b.keyframe, same) for b in bests))
            for h in m.hypotheses
        )
        reason = m.reason
        if reason is Reason.ACCEPTED and surest is not None:
            best = hypotheses[0].keyframe
            one_session = best.session == surest.keyframe.session
            if one_session and not show_one_place(best, surest.keyframe, same):
                reason = Reason.OUTVOTED
        result[camera] = replace(m, hypotheses=hypotheses, reason=reason)
    return result
