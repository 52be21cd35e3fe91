"""What became of each candidate of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.matching.distinct import RankedCandidates, SamePlaces, show_one_place
from hashvpr_ros.types import CandidateReason, Hypothesis, LedgerEntry


def judge_candidates(
    ranked: RankedCandidates,
    possible: NDArray[np.bool_],
    barred: NDArray[np.bool_],
    belief: NDArray[np.float64] | None,
    hypotheses: Sequence[Hypothesis],
    same: SamePlaces,
) -> tuple[LedgerEntry, ...]:
    """Why each candidate is or is not among the hypotheses, best first.

    Args:
        ranked: all candidates.
        possible: whether the robot may be there, bool [k], best first.
        barred: whether that is not since the back end has rejected it, bool [k].
        belief: of the filter in each with its neighbours, float64 [k]; None without a filter.
        hypotheses: that were made of them.
        same: stretches of the map that are one place.
    """
    chosen = {h.keyframe.id for h in hypotheses}

    def reason(rank: int) -> CandidateReason:
        keyframe = ranked.keyframe(rank)
        if not possible[rank]:
            told = CandidateReason
            return told.REJECTED if barred[rank] else told.ODOMETRY_CONFLICT
        if keyframe.id in chosen:
            return CandidateReason.CHOSEN
        if any(show_one_place(keyframe, h.keyframe, same) for h in hypotheses):
            return CandidateReason.SAME_PLACE
        return CandidateReason.LESS_LIKELY

    return tuple(
        LedgerEntry(
            candidate,
            ranked.keyframe(rank),
            0.0 if belief is None else float(belief[rank]),
            reason(rank),
        )
        for rank, candidate in enumerate(ranked.found)
    )
