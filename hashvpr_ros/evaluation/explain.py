"""Why a match was or was not made, in words, from a DecisionLedger message."""

from __future__ import annotations

from typing import Any

from hashvpr_ros.datasets.bag import stamp_ns

# What each reason of a decision means, and what may help where it should have been otherwise.
_REASONS = {
    "accepted": "it is a loop closure",
    "below_target": "the probability of the best place is below matching.target_precision; "
    "`hashvpr calibrate` fits the probabilities to your map",
    "not_distinct": "another place of the map scores almost as high as the best one; odometry or "
    "a longer sequence of views may tell them apart",
    "new_place": "the place is probably not in the map; if it is, the view differs too much "
    "(illumination, direction, occlusion)",
    "no_sequence_support": "too few of the preceding views match the same part of the map "
    "(matching.min_sequence_support): it is the first view of a revisit, or similar by chance",
    "rejected": "the back end has rejected this pair of places before, on ~/verdicts",
    "outvoted": "another camera of the same frame set is more confident of another place",
    "odometry_conflict": "odometry excludes all candidates (matching.max_drift); if your odometry "
    "drifts more than that, raise it",
    "no_candidate": "all keyframes of the map are excluded as too recent "
    "(matching.exclude_recent_s, _m, _keyframes)",
    "map_empty": "the map has no keyframes yet",
    "mapping_only": "in mode mapping nothing is searched; use mode slam or localization",
}
_CANDIDATES = {
    "chosen": "it is one of the hypotheses",
    "same_place": "it shows the place of a hypothesis, which represents it",
    "odometry_conflict": "odometry excludes it (matching.max_drift)",
    "rejected": "the back end has rejected this pair of places before, on ~/verdicts",
    "less_likely": "other places are more likely",
}


def explain(ledger: Any) -> list[str]:
    """The decision in sentences, one a line.

    Args:
        ledger: a DecisionLedger, as `datasets.bag.read_own` gives it.
    """
    reason = str(ledger.reason)
    lines = [
        f"image of camera {ledger.camera} at {_seconds(ledger.header.stamp)} s: "
        f"{reason.replace('_', ' ')}: {_REASONS.get(reason, 'an unknown reason')}",
        f"the map held {ledger.keyframes} keyframes (mode {ledger.mode}, evidence over time: "
        f"{ledger.temporal})",
    ]
    if ledger.has_newest_allowed:
        lines.append(
            f"keyframes of its session after {_seconds(ledger.newest_allowed)} s were too recent"
        )
    if not len(ledger.candidates):
        return lines
    counts: dict[str, int] = {}
    for c in ledger.candidates:
        counts[str(c.reason)] = counts.get(str(c.reason), 0) + 1
    told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items())
    lines.append(f"{len(ledger.candidates)} candidates were compared: {told}")
    for i, h in enumerate(ledger.hypotheses):
        lines.append(f"{'best' if i == 0 else 'next'}: {_hypothesis(ledger, h)}")
    if len(ledger.hypotheses):
        lines += _tests(ledger)
    return lines


def explain_place(ledger: Any, place_id: int) -> str:
    """What became of one keyframe of the map, in a sentence."""
    c = next((c for c in ledger.candidates if c.place_id == place_id), None)
    if c is not None:
        reason = str(c.reason)
        return (
            f"keyframe {place_id} ({_seconds(c.stamp)} s): {_scores(c)}: "
            f"{_CANDIDATES.get(reason, reason)}"
        )
    if any(h.place_id == place_id for h in ledger.hypotheses):
        return f"keyframe {place_id}: the filter's belief alone led to it; it is a hypothesis"
    if not len(ledger.candidates):
        return f"keyframe {place_id}: nothing was compared"
    furthest = max(int(c.distance) for c in ledger.candidates)
    return (
        f"keyframe {place_id}: was not compared: it is too recent, not in the map, or further "
        f"than {furthest} bits, which the candidates are not (matching.top_k; there are "
        f"{len(ledger.candidates)})"
    )


def _hypothesis(ledger: Any, h: Any) -> str:
    c = next((c for c in ledger.candidates if c.place_id == h.place_id), None)
    seen = _scores(c) if c is not None else f"similarity {h.similarity:.3f}, no candidate"
    return (
        f"keyframe {h.place_id} ({_seconds(h.stamp)} s, camera {h.camera}): {seen}, "
        f"{h.distinctness:+.3f} over any other place, "
        f"sequence support {h.sequence_support:.2f}, probability {h.probability:.4f}"
    )


def _scores(c: Any) -> str:
    return (
        f"similarity {c.similarity:.3f} (rank {c.rank + 1}), {c.distance} bits (rank "
        f"{c.rank_hash + 1} of the search), belief {c.belief:.2f}"
    )


def _tests(ledger: Any) -> list[str]:
    """What the best hypothesis had to pass."""
    best = ledger.hypotheses[0]
    tests = [("probability", best.probability, ledger.target_precision)]
    if str(ledger.temporal) in ("sequence", "both"):
        tests.append(("sequence support", best.sequence_support, ledger.min_sequence_support))
    return [
        f"{name} {value:.4f}, needed {needed:.4f}: {'enough' if value >= needed else 'too little'}"
        for name, value, needed in tests
    ]


def _seconds(stamp: Any) -> str:
    return f"{stamp_ns(stamp) / 1e9:.3f}"
