"""The candidates of one image: search by code, order by feature, other places among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.nearness import bits_apart
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.distinct import (
    MIN_OTHER_PLACES,
    NEAR_KEYFRAMES,
    NEAR_M,
    RankedCandidates,
)
from hashvpr_ros.matching.local import KeyframeLocals
from hashvpr_ros.matching.odometer import Odometer
from hashvpr_ros.matching.rerank import candidates, rerank, rerank_locally
from hashvpr_ros.types import Candidate, Descriptor, Keyframe

# Of a hundred candidates so many are of other places than the one that was passed most often, else
# so many times more are looked at: on the twentieth lap the nearest hundred would all show one
# place, and nothing would be left to compare it with.
_OTHERS, _DEEPER = 30, 10


@dataclass(frozen=True)
class Recent:
    """What is left out as the recent past of the session that is recorded."""

    session: str = ""
    after_ns: int | None = None  # keyframes stamped later; None: nothing


@dataclass(frozen=True)
class Found:
    """Candidates of one image, best first."""

    descriptor: Descriptor  # of the image
    candidates: tuple[Candidate, ...]
    ranked: RankedCandidates  # the same, with their keyframes
    places: NDArray[np.int64]  # `Keyframe.place` of each, [k]
    similarities: NDArray[np.float32]  # [k]
    order: Sequence[int]  # of the candidates, best first by all that was compared
    search_ms: float
    rerank_ms: float


class Finder:
    """Finds candidates in a map.

    Args:
        place_map: that is searched.
        odometer: knows which places were passed before.
    """

    def __init__(self, place_map: PlaceMap, odometer: Odometer) -> None:
        self._map = place_map
        self._odometer = odometer
        self._deep: set[str] = set()  # cameras whose last image had to look deeper

    def find(
        self,
        descriptor: Descriptor,
        camera: str,
        top_k: int,
        recent: Recent,
        local: KeyframeLocals | None = None,
    ) -> Found:
        """The candidates of an image; there may be none.

        Args:
            local: to order the best of them by local descriptors; None: not to.
        """
        started = time.perf_counter()
        ids, distances = self._search(descriptor, camera, top_k, recent)
        searched = time.perf_counter()
        order, similarities = rerank(self._map, ids, distances, descriptor.feature)
        found = candidates(ids, distances, order, similarities)
        final: Sequence[int] = range(len(ids))
        if local is not None:
            final = rerank_locally(local, ids[order], similarities[order], descriptor).tolist()
        return Found(
            descriptor,
            found,
            RankedCandidates(self._map, found),
            self._map.places_of(ids[order]),
            similarities[order],
            final,
            1e3 * (searched - started),
            1e3 * (time.perf_counter() - searched),
        )

    def _search(
        self, descriptor: Descriptor, camera: str, top_k: int, recent: Recent
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Candidates by Hamming distance, not nearly all of one place that was passed often."""

        def nearest(count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
            return self._map.search(
                descriptor.code,
                count,
                exclude_session=recent.session,
                exclude_after_ns=recent.after_ns,
            )

        most = max(1, top_k - max(_OTHERS * top_k // 100, MIN_OTHER_PLACES + 4))
        # Places passed often follow one another: a second scan for each would cost the most.
        deep = camera in self._deep
        ids, distances = nearest(_DEEPER * top_k if deep else top_k)
        self._deep.discard(camera)
        if len(ids) < top_k:
            return ids, distances
        same = self._with_first(ids)
        if int(same[:top_k].sum()) <= most:
            return ids[:top_k], distances[:top_k]
        # Other indexes find others where they are asked for more: candidates would depend on what
        # was asked before.
        if self._map.index_in_use.startswith("exact"):
            self._deep.add(camera)
        if len(ids) == top_k:
            ids, distances = nearest(_DEEPER * top_k)
            same = self._with_first(ids)
        chosen = np.flatnonzero(~same | (np.cumsum(same) <= most))[:top_k]
        return ids[chosen], distances[chosen]

    def _with_first(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        return self.at_first(self._map.places_of(ids))

    def at_first(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which places are known, by odometry, to be that of the first, bool [n]."""
        positions = self._odometer.positions(places)
        # NaN is near nothing.
        return np.asarray(np.linalg.norm(positions - positions[0], axis=1) <= NEAR_M)

    def best_view(self, place: int, descriptor: Descriptor) -> tuple[Keyframe, int, float]:
        """The view of a place that is most like an image, which found none of them.

        Returns:
            keyframe, Hamming distance, similarity.
        """
        ids = self._map.views_of(place)
        similarities = self._map.features(ids) @ descriptor.feature
        best = ids[[int(np.argmax(similarities))]]
        distance = int(bits_apart(self._map.codes_of(best)[0], descriptor.code))
        return self._map.keyframes(best)[0], distance, float(similarities.max())

    def others(self, places: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which candidates, best first, are known to show another place than the best."""
        same = self.at_first(places)
        if not same[0]:
            return None
        others = ~same & (np.abs(places - places[0]) > NEAR_KEYFRAMES)
        return others if int(others.sum()) >= MIN_OTHER_PLACES else None
