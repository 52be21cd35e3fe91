"""From a descriptor to hypotheses and a verdict: search, re-ranking, evidence over time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.bayes import likelihood_ratios
from hashvpr_ros.matching.distinct import (
    MIN_OTHER_PLACES,
    NEAR_KEYFRAMES,
    NEAR_M,
    RankedCandidates,
    SamePlaces,
    distinctness,
    show_one_place,
)
from hashvpr_ros.matching.ledger import judge_candidates
from hashvpr_ros.matching.odometer import Odometer
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.rerank import candidates, rerank
from hashvpr_ros.matching.track import Place, Track
from hashvpr_ros.matching.verdicts import Closure, Verdicts
from hashvpr_ros.poses import apart_m
from hashvpr_ros.types import (
    Candidate,
    Descriptor,
    Hypothesis,
    Keyframe,
    LedgerEntry,
    Pose,
    Reason,
    Verdict,
)

# Keyframes on either side of the likeliest one among which the best candidate is taken for it.
_SAME_VIEW_KEYFRAMES = 4
# Of a hundred candidates so many are of other places than the one that was passed most often, else
# so many times more are looked at: on the twentieth lap the nearest hundred would all show one
# place, and nothing would be left to compare it with.
_OTHERS, _DEEPER = 30, 10
_SAMPLE = 300  # keyframes to learn from how far apart they are


@dataclass(frozen=True)
class Matched:
    """What an image shows, by its descriptor and the past of its camera."""

    reason: Reason
    hypotheses: tuple[Hypothesis, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    new_place_probability: float = 1.0
    search_ms: float = 0.0
    rerank_ms: float = 0.0
    temporal_ms: float = 0.0
    newest_allowed_ns: int | None = None  # keyframes stamped later were too recent
    entries: tuple[LedgerEntry, ...] = ()  # of all candidates, where a ledger is asked for


class Matcher:
    """Judges images against a map, and remembers what each camera has seen.

    Args:
        place_map: that is searched.
        config: `matching`, `keyframes` and `publish.ledger` are used.
        probability: of a match from the evidence for it.
    """

    def __init__(self, place_map: PlaceMap, config: Config, probability: ProbabilityModel) -> None:
        self.map = place_map
        self.config = config
        self._probability = probability
        self._same_places = SamePlaces()
        self._map_spacing_m: float | None = None  # 0 where it cannot be known
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, as after a jump in time or place."""
        self._tracks: dict[str, Track] = {}
        self.odometer = Odometer(self.config.matching.max_drift)
        self._verdicts = Verdicts()
        self._exclude_session = ""
        self._exclude_after_ns: int | None = None
        self._now_ns: int | None = None  # stamp of the image; None: it has no past

    def set_config(self, config: Config) -> None:
        """Use other settings, from the next image on."""
        if config.matching.sequence_length != self.config.matching.sequence_length:
            self._tracks.clear()
        self.config = config
        self.odometer.max_drift = config.matching.max_drift

    def match(
        self,
        descriptor: Descriptor,
        stamp_ns: int,
        pose: Pose | None,
        camera: str,
        *,
        exclude: bool,
    ) -> Matched:
        """Judge the next image of a camera.

        Args:
            exclude: leave out the recent past of the session that is recorded.
        """
        matching = self.config.matching
        moved = self.odometer.move(pose)
        self._now_ns = stamp_ns
        self._exclude_session = self.map.session if exclude else ""
        self._exclude_after_ns = (
            self.odometer.newest_allowed_ns(
                stamp_ns,
                matching.exclude_recent_s,
                matching.exclude_recent_m,
                matching.exclude_recent_keyframes,
            )
            if exclude
            else None
        )
        track = self._track(camera)
        track.begin(stamp_ns, descriptor.code, moved, self._spacing_m())
        matched = self._judge(descriptor, track, matching.max_hypotheses)
        best = matched.hypotheses[0] if matched.hypotheses else None
        track.views.add(
            stamp_ns,
            descriptor.code,
            best.keyframe if best else None,
            best.distinctness if best else 0.0,
            self._copies(best.keyframe, matched.candidates) if best else (),
        )
        if best is not None and matched.reason is Reason.ACCEPTED:
            self.odometer.close(stamp_ns, pose, best.keyframe.id, best.keyframe.pose)
            self._verdicts.accepted(
                Closure(stamp_ns, camera, best.keyframe.id, self._evidence(best))
            )
        return matched

    def _evidence(self, match: Hypothesis) -> float | None:
        if self.config.matching.temporal != "both" or self._is_gated(match.keyframe):
            return None
        return self._probability.evidence(match.probability)

    def verdict(
        self, stamp_ns: int, camera: str, match_id: int, verdict: Verdict
    ) -> Closure | None:
        """Learn what the back end made of an accepted match.

        A rejected one is undone: what odometry was anchored to, and what was believed of late. The
        pair of places is not offered again.

        Returns:
            the match; None where there was none such, or it is too long ago.
        """
        closure = self._verdicts.find(stamp_ns, camera, match_id)
        if closure is not None and verdict is not Verdict.ACCEPTED:
            self._verdicts.reject(closure)
            self.odometer.forget(stamp_ns, match_id)
            if closure.query_id:
                self._same_places.remove(closure.query_id, match_id)
            self._tracks.clear()
        return closure

    def _copies(self, keyframe: Keyframe, found: Sequence[Candidate]) -> list[int]:
        """Candidates that show the place of a keyframe on other laps of its session."""
        ids = np.array([keyframe.id, *(c.keyframe_id for c in found)], np.int64)
        return ids[1:][self._with_first(ids)[1:]].tolist()

    def match_alone(self, descriptor: Descriptor, count: int) -> Matched:
        """Judge one image by itself against the whole map; nothing is remembered.

        Args:
            count: hypotheses at most.
        """
        self._exclude_session, self._exclude_after_ns, self._now_ns = "", None, None
        return self._judge(descriptor, None, count)

    def stored(
        self, keyframe_id: int, stamp_ns: int, pose: Pose | None, camera: str, matched: Matched
    ) -> None:
        """Learn that an image became a keyframe."""
        self.odometer.mark(keyframe_id, stamp_ns, pose)
        if matched.reason is Reason.ACCEPTED:
            match_id = matched.hypotheses[0].keyframe.id
            self._same_places.add(keyframe_id, match_id)
            closure = self._verdicts.find(stamp_ns, camera, match_id)
            if closure is not None:
                self._verdicts.accepted(replace(closure, query_id=keyframe_id))

    def _spacing_m(self) -> float | None:
        """Metres between keyframes of this session, else of the map; None if unknown."""
        own = self.odometer.spacing_m()
        if own is not None:
            return own
        if self._map_spacing_m is None:
            self._map_spacing_m = _spacing_of(self.map)
        return self._map_spacing_m or None

    def _track(self, camera: str) -> Track:
        if camera not in self._tracks:
            self._tracks[camera] = Track(
                self.config.matching.sequence_length, self.config.keyframes, self._sessions_of
            )
        return self._tracks[camera]

    def _sessions_of(self, ids: NDArray[np.integer]) -> NDArray[np.integer]:
        """Sessions of keyframes at which the robot may be; -1 for others."""
        sessions = self.map.sessions_of(
            ids, exclude_session=self._exclude_session, exclude_after_ns=self._exclude_after_ns
        )
        if self._exclude_after_ns is not None:
            sessions[~self.odometer.possible(ids)] = -1
        sessions[self._barred(ids)] = -1
        return sessions

    def _barred(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which keyframes the back end has rejected as matches of where the robot is, bool [n]."""
        if self._now_ns is None:
            return np.zeros(len(ids), bool)
        return self._verdicts.barred(ids, self._now_ns, self.odometer)

    def _is_gated(self, keyframe: Keyframe) -> bool:
        """Whether odometry could have said that the robot is not at a keyframe."""
        return self._exclude_after_ns is not None and self.odometer.knows(keyframe.id)

    def _judge(self, descriptor: Descriptor, track: Track | None, count: int) -> Matched:
        matching = self.config.matching
        started = time.perf_counter()
        ids, distances = self._search(descriptor.code)
        searched = time.perf_counter()
        if not len(ids):
            empty = Reason.MAP_EMPTY if len(self.map) == 0 else Reason.NO_CANDIDATE
            return Matched(
                empty,
                search_ms=1e3 * (searched - started),
                newest_allowed_ns=self._exclude_after_ns,
            )
        order, similarities = rerank(self.map, ids, distances, descriptor.feature)
        found = candidates(ids, distances, order, similarities)
        ranked = RankedCandidates(self.map, found)
        reranked = time.perf_counter()
        possible = self._sessions_of(ids[order]) >= 0
        filtering = track if matching.temporal in ("filter", "both") else None
        if filtering is not None:
            ratios = likelihood_ratios(similarities[order], self._others(ids[order]))
            filtering.update(ids[order][possible], ratios[possible])
        places = [] if filtering is None else filtering.places(count, self.odometer.positions)
        chosen = self._choose(descriptor, ranked, np.flatnonzero(possible).tolist(), places, count)
        hypotheses = tuple(self._weigh(descriptor, ranked, track, *each) for each in chosen)
        barred = self._barred(ids[order])
        if hypotheses:
            reason = self._reason(hypotheses[0], alone=track is None)
        else:
            reason = Reason.REJECTED if barred.any() else Reason.ODOMETRY_CONFLICT
        new = 1.0 - hypotheses[0].probability if hypotheses else 1.0
        judged = time.perf_counter()
        entries: tuple[LedgerEntry, ...] = ()
        if self.config.publish.ledger:  # reads a keyframe of the map for each candidate
            belief = None if filtering is None else filtering.filter.around(ids[order])
            entries = judge_candidates(
                ranked, possible, barred, belief, hypotheses, self._same_places
            )
        return Matched(
            reason,
            hypotheses,
            found,
            new,
            1e3 * (searched - started),
            1e3 * (reranked - searched),
            1e3 * (judged - reranked),
            self._exclude_after_ns,
            entries,
        )

    def _search(self, code: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Candidates by Hamming distance, not nearly all of one place that was passed often."""
        top_k = self.config.matching.top_k
        most = max(1, top_k - max(_OTHERS * top_k // 100, MIN_OTHER_PLACES + 4))
        ids, distances = self._nearest(code, top_k)
        if len(ids) == top_k and int(self._with_first(ids).sum()) > most:
            ids, distances = self._nearest(code, _DEEPER * top_k)
            same = self._with_first(ids)
            chosen = np.flatnonzero(~same | (np.cumsum(same) <= most))[:top_k]
            ids, distances = ids[chosen], distances[chosen]
        return ids, distances

    def _with_first(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which keyframes are known, by odometry, to show the place of the first, bool [n]."""
        positions = self.odometer.positions(ids)
        # NaN is near nothing.
        return np.asarray(np.linalg.norm(positions - positions[0], axis=1) <= NEAR_M)

    def _nearest(
        self, code: NDArray[np.uint8], count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.map.search(
            code,
            count,
            exclude_session=self._exclude_session,
            exclude_after_ns=self._exclude_after_ns,
        )

    def _others(self, ids: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """Which candidates, best first, are known to show another place than the best."""
        same = self._with_first(ids)
        if not same[0]:
            return None
        others = ~same & (np.abs(ids - ids[0]) > NEAR_KEYFRAMES)
        return others if int(others.sum()) >= MIN_OTHER_PLACES else None

    def _choose(
        self,
        descriptor: Descriptor,
        ranked: RankedCandidates,
        possible: Sequence[int],
        places: Sequence[Place],
        count: int,
    ) -> list[tuple[Keyframe, int, float, float]]:
        """The likeliest places, each by one keyframe; the filter's first, then by similarity.

        Returns:
            keyframe, Hamming distance, similarity, and the filter's belief in the place.
        """
        chosen: list[tuple[Keyframe, int, float, float]] = []

        def is_new(keyframe: Keyframe) -> bool:
            return not any(
                show_one_place(keyframe, other[0], self._same_places) for other in chosen
            )

        ids = np.array([ranked.found[i].keyframe_id for i in possible], np.int64)
        for place in places:
            near = np.abs(ids - place.keyframe_id) <= _SAME_VIEW_KEYFRAMES
            if not near.any():  # perhaps on another lap
                near = self._with_first(np.append(place.keyframe_id, ids))[1:]
            if near.any():
                rank = possible[int(np.argmax(near))]  # the best of them
                c, keyframe = ranked.found[rank], ranked.keyframe(rank)
                seen = (keyframe, c.distance_bits, c.similarity, place.mass)
            else:
                (keyframe,) = self.map.keyframes([place.keyframe_id])
                seen = (keyframe, *self._compare(keyframe.id, descriptor), place.mass)
            if is_new(keyframe):
                chosen.append(seen)
        for rank in possible:
            if len(chosen) >= count:
                break
            keyframe = ranked.keyframe(rank)
            if is_new(keyframe):
                c = ranked.found[rank]
                chosen.append((keyframe, c.distance_bits, c.similarity, 0.0))
        return chosen

    def _compare(self, keyframe_id: int, descriptor: Descriptor) -> tuple[int, float]:
        """Hamming distance and similarity of a keyframe that is no candidate."""
        code = self.map.codes_of(np.array([keyframe_id]))[0]
        distance = int(np.unpackbits(code ^ descriptor.code).sum())
        return distance, float(self.map.features([keyframe_id])[0] @ descriptor.feature)

    def _weigh(
        self,
        descriptor: Descriptor,
        ranked: RankedCandidates,
        track: Track | None,
        keyframe: Keyframe,
        distance_bits: int,
        similarity: float,
        mass: float,
    ) -> Hypothesis:
        matching = self.config.matching
        distinct = distinctness(ranked, keyframe, similarity, matching.top_k, self._same_places)
        support, run_distinct = 0.0, distinct
        if track is not None:
            run = track.views.run(descriptor.code, keyframe, distinct)
            support, run_distinct = run.support, run.distinctness
        temporal = matching.temporal if track is not None else "none"
        if temporal == "none":
            probability = self._probability(distinct)
        elif temporal == "sequence":
            probability = self._probability(distinct, support, run_distinct)
        elif temporal == "filter":
            probability = mass
        else:
            probability = self._probability.over_time(
                mass, support, run_distinct, by_odometry=self._is_gated(keyframe)
            )
        return Hypothesis(keyframe, distance_bits, similarity, distinct, probability, support)

    def _reason(self, best: Hypothesis, *, alone: bool) -> Reason:
        matching = self.config.matching
        # One image by itself is too little to say that a place is new.
        if not alone and best.probability < min(0.5, matching.target_precision):
            return Reason.NEW_PLACE
        if (
            matching.temporal in ("sequence", "both")
            and best.sequence_support < matching.min_sequence_support
        ):
            return Reason.NO_SEQUENCE_SUPPORT
        if best.probability < matching.target_precision:
            # Where odometry helps, what looks alike elsewhere counts little.
            alike = best.distinctness <= 0.0 and not self._is_gated(best.keyframe)
            return Reason.NOT_DISTINCT if alike else Reason.BELOW_TARGET
        return Reason.ACCEPTED


def _spacing_of(place_map: PlaceMap) -> float:
    """Median metres between keyframes that follow one another; 0 where they have no poses."""
    ids = place_map.ids()
    firsts = ids[np.linspace(0, max(len(ids) - 2, 0), min(len(ids), _SAMPLE)).astype(int)]
    firsts = firsts[place_map.sessions_of(firsts + 1) > 0]
    pairs = zip(place_map.keyframes(firsts), place_map.keyframes(firsts + 1), strict=True)
    steps = [
        metres
        for a, b in pairs
        if (a.session, a.camera) == (b.session, b.camera)
        and (metres := apart_m(a.pose, b.pose)) is not None
    ]
    return float(np.median(steps)) if steps else 0.0
