"""How much better a match is than the best match at any other place.

The cosine by itself says little: in a street of one style all images are alike, in a varied one
none are, so that no threshold carries over. That no other place of the map comes near does carry
over (Lowe's ratio test, IJCV 2004, section 7.1, made for places).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.poses import apart_m
from hashvpr_ros.types import Candidate, Keyframe

# What is nearer than this to a keyframe shows the same place.
NEAR_KEYFRAMES = 12
NEAR_NS = 5_000_000_000
NEAR_M = 6.0
# A map with fewer other places than this says nothing of what looks alike.
MIN_OTHER_PLACES = 20
_CHUNK = 16


class SamePlaces:
    """Stretches of the map that accepted closures have shown to be the same.

    On a third lap two stretches match, and neither is the other's rival.
    """

    def __init__(self) -> None:
        self._linked: dict[int, set[int]] = {}

    def add(self, query_place: int, match_place: int) -> None:
        """Remember that two places, by their numbers, are one."""
        a, b = query_place // NEAR_KEYFRAMES, match_place // NEAR_KEYFRAMES
        self._linked.setdefault(a, set()).add(b)
        self._linked.setdefault(b, set()).add(a)

    def remove(self, query_place: int, match_place: int) -> None:
        """Forget that two places are one, which was wrong."""
        a, b = query_place // NEAR_KEYFRAMES, match_place // NEAR_KEYFRAMES
        self._linked.get(a, set()).discard(b)
        self._linked.get(b, set()).discard(a)

    def linked(self, a_place: int, b_place: int) -> bool:
        """Whether places near a and near b were matched."""
        a, b = a_place // NEAR_KEYFRAMES, b_place // NEAR_KEYFRAMES
        for near in (a - 1, a, a + 1):  # no `any` of all pairs: asked a hundred times an image
            linked = self._linked.get(near)
            if linked and not linked.isdisjoint((b - 1, b, b + 1)):
                return True
        return False


class RankedCandidates:
    """Candidates, best first, with their keyframes read from the map as they are needed."""

    def __init__(self, place_map: PlaceMap, found: Sequence[Candidate]) -> None:
        self._map = place_map
        self._keyframes: list[Keyframe] = []
        self.found = found

    def keyframe(self, rank: int) -> Keyframe:
        """The keyframe of a candidate."""
        if rank >= len(self._keyframes):
            begin = len(self._keyframes)
            end = max(rank + 1, begin + _CHUNK)
            ids = [c.keyframe_id for c in self.found[begin:end]]
            self._keyframes += self._map.keyframes(ids)
        return self._keyframes[rank]

    def of_one_session(self) -> bool:
        """Whether all candidates are of one session."""
        return len({self.keyframe(i).session for i in range(len(self.found))}) == 1

    def rivals(self, match: Keyframe, same: SamePlaces) -> Iterator[float]:
        """Similarities of the candidates that show another place than a match, best first."""
        for i, candidate in enumerate(self.found):
            if candidate.keyframe_id != match.id and _is_elsewhere(match, self.keyframe(i), same):
                yield candidate.similarity


def distinctness(
    ranked: RankedCandidates, match: Keyframe, similarity: float, top_k: int, same: SamePlaces
) -> float:
    """Similarity of a match less that of the best candidate at another place.

    Args:
        ranked: all candidates.
        match, similarity: in question; usually one of them.
        top_k: how many candidates were asked for.
        same: stretches of the map that are one place.

    Returns:
        -2 to 2; at most 0 where the map, or what it holds of the session, is too small to tell.
    """
    rivals = ranked.rivals(match, same)
    rival = next(rivals, None)
    full = len(ranked.found) >= top_k  # else these are all keyframes that there are
    if rival is None:
        if not full or not ranked.of_one_session():
            return 0.0
        # Before any other place came the stretch around this one: the last of it stands for them.
        return similarity - ranked.found[-1].similarity
    if not full and 1 + sum(1 for _ in rivals) < MIN_OTHER_PLACES:
        return min(0.0, similarity - rival)
    return similarity - rival


def _is_elsewhere(a: Keyframe, b: Keyframe, same: SamePlaces) -> bool:
    # Another session may well show the same place: it can neither support nor contradict.
    return a.session == b.session and not show_one_place(a, b, same)


def show_one_place(a: Keyframe, b: Keyframe, same: SamePlaces) -> bool:
    """Whether two keyframes are known to show the same place: by session, id, stamp or pose."""
    if a.session != b.session:
        return False
    if abs(a.place - b.place) <= NEAR_KEYFRAMES or abs(a.stamp_ns - b.stamp_ns) <= NEAR_NS:
        return True
    if same.linked(a.place, b.place):
        return True
    metres = apart_m(a.pose, b.pose)
    return metres is not None and metres <= NEAR_M


class KeyframeArrays:
    """Keyframes as arrays, for `show_one_place` of one with many.

    Args:
        keyframes: n of them.
    """

    def __init__(self, keyframes: Sequence[Keyframe]) -> None:
        self._places = np.array([k.place for k in keyframes], np.int64)
        self._stamps_ns = np.array([k.stamp_ns for k in keyframes], np.int64)
        self._sessions = np.array([k.session for k in keyframes])
        self._frames = np.array([k.pose.frame_id if k.pose else "" for k in keyframes])
        nowhere = (math.nan,) * 3
        self._positions = np.array([k.pose.position_m if k.pose else nowhere for k in keyframes])

    def elsewhere(
        self, match: Keyframe, near_keyframes: float, same: SamePlaces
    ) -> NDArray[np.bool_]:
        """Which show another place of a match's session, as `show_one_place` has it, bool [n].

        Args:
            near_keyframes: in the place of NEAR_KEYFRAMES.
        """
        far = self._sessions == match.session
        far &= np.abs(self._places - match.place) > near_keyframes
        far &= np.abs(self._stamps_ns - match.stamp_ns) > NEAR_NS
        if match.pose is not None:
            metres = np.linalg.norm(self._positions - match.pose.position_m, axis=1)
            far &= ~((metres <= NEAR_M) & (self._frames == match.pose.frame_id))
        for i in np.flatnonzero(far).tolist():
            far[i] = not same.linked(match.place, int(self._places[i]))
        return far
