"""Which distant places of a map look alike: where a single image must not be believed.

Two keyframes are alike when they are at least as similar as a keyframe and the one some metres
further on usually are in this map: no threshold carries over from one map to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.distinct import NEAR_KEYFRAMES, SamePlaces, show_one_place
from hashvpr_ros.poses import apart_m
from hashvpr_ros.types import Keyframe

_AHEAD_KEYFRAMES = 2  # about 1 m with the default spacing
_OTHER_SESSION_M = 20.0  # poses of two sessions may be apart by their drift
_CANDIDATES = 40  # nearest by code that are compared, neighbours of the place itself included


@dataclass(frozen=True)
class AlikePair:
    """Two stretches of a map that look alike, by their most similar keyframes."""

    first: Keyframe
    second: Keyframe
    distance_bits: int
    similarity: float
    count: int  # pairs of keyframes of the two stretches that are alike
    apart_m: float | None  # where both have poses of one frame


@dataclass(frozen=True)
class Audit:
    """What looks alike in a map."""

    keyframes: int
    threshold: float  # similarity from which on two places are alike
    alike: int  # keyframes that have a double elsewhere
    pairs: list[AlikePair]  # the most similar first
    without_pose: int = 0  # keyframes that are compared with those of their own session only


def audit(place_map: PlaceMap, progress: Callable[[int], object] = lambda _: None) -> Audit:
    """Compare every keyframe with those of other places.

    Other sessions count where both have poses of one frame: without them nobody knows whether they
    show the same place.

    Args:
        progress: called with the number of keyframes done.
    """
    ids = place_map.ids()
    if not len(ids):
        return Audit(0, 1.0, 0, [])
    threshold = _threshold(place_map)
    keyframes: dict[int, Keyframe] = {}
    nothing = SamePlaces()
    found: dict[tuple[int, int], list[tuple[float, int, int, int]]] = {}
    alike: set[int] = set()
    for id_ in ids.tolist():
        code = place_map.codes_of(np.array([id_]))[0]
        near, distances = place_map.search(code, _CANDIDATES)
        others = [(int(o), int(d)) for o, d in zip(near, distances, strict=True) if o != id_]
        wanted = [i for i in (id_, *(o for o, _ in others)) if i not in keyframes]
        keyframes |= {k.id: k for k in place_map.keyframes(wanted)}
        here = keyframes[id_]
        elsewhere = [(o, d) for o, d in others if _is_elsewhere(here, keyframes[o], nothing)]
        if elsewhere:
            rows = place_map.features([id_, *(o for o, _ in elsewhere)])
            similarity = rows[1:] @ rows[0]
            for (other, distance), s in zip(elsewhere, similarity.tolist(), strict=True):
                if s >= threshold:
                    alike.add(id_)
                    key = tuple(sorted((id_ // NEAR_KEYFRAMES, other // NEAR_KEYFRAMES)))
                    a, b = sorted((id_, other))
                    found.setdefault((key[0], key[1]), []).append((s, distance, a, b))
        progress(1)
    pairs = []
    for group in found.values():
        s, distance, a, b = max(group)
        first, second = keyframes[a], keyframes[b]
        count = len({(x[2], x[3]) for x in group})
        pairs.append(
            AlikePair(first, second, distance, s, count, apart_m(first.pose, second.pose))
        )
    pairs.sort(key=lambda p: -p.similarity)
    without_pose = sum(keyframes[i].pose is None for i in ids.tolist())
    return Audit(len(ids), threshold, len(alike), pairs, without_pose)


def _threshold(place_map: PlaceMap) -> float:
    """Median similarity of views and those a few places further on in their session."""
    ids = place_map.first_views()
    last = len(ids) - 1 - _AHEAD_KEYFRAMES
    if last < 0:
        return 1.0
    sample = np.linspace(0, last, min(last + 1, 2000)).astype(int)
    here, ahead = ids[sample], ids[sample + _AHEAD_KEYFRAMES]
    sessions = [place_map.sessions_of(place_map.places_of(of)) for of in (here, ahead)]
    there = sessions[0] == sessions[1]
    if not there.any():
        return 1.0
    first, second = place_map.features(here[there]), place_map.features(ahead[there])
    return float(np.median(np.einsum("nd,nd->n", first, second)))


def _is_elsewhere(a: Keyframe, b: Keyframe, nothing: SamePlaces) -> bool:
    if a.session == b.session:
        return not show_one_place(a, b, nothing)
    metres = apart_m(a.pose, b.pose)
    return metres is not None and metres > _OTHER_SESSION_M
