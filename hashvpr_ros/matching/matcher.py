"""From a descriptor to hypotheses and a verdict: search, re-ranking, evidence over time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.bayes import likelihood_ratios
from hashvpr_ros.matching.distinct import (
    RankedCandidates,
    SamePlaces,
    distinctness,
    show_one_place,
)
from hashvpr_ros.matching.odometer import Odometer
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.rerank import candidates, rerank
from hashvpr_ros.matching.track import Track
from hashvpr_ros.types import Candidate, Descriptor, Hypothesis, Keyframe, Pose, Reason

# Keyframes on either side of the likeliest one among which the best candidate is taken for it.
_NEAR_KEYFRAMES = 4


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


class Matcher:
    """Judges images against a map, and remembers what each camera has seen.

    Args:
        place_map: that is searched.
        config: `matching` and `keyframes` are used.
        probability: of a match from the evidence for it.
    """

    def __init__(self, place_map: PlaceMap, config: Config, probability: ProbabilityModel) -> None:
        self.map = place_map
        self.config = config
        self._probability = probability
        self._same_places = SamePlaces()
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, as after a jump in time or place."""
        self._tracks: dict[str, Track] = {}
        self.odometer = Odometer(self.config.matching.max_drift)
        self._exclude_session = ""
        self._exclude_after_ns: int | None = None

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
        track.begin(stamp_ns, descriptor.code, moved)
        matched = self._judge(descriptor, track, matching.max_hypotheses)
        best = matched.hypotheses[0] if matched.hypotheses else None
        track.views.add(
            stamp_ns,
            descriptor.code,
            best.keyframe if best else None,
            best.distinctness if best else 0.0,
        )
        if best is not None and matched.reason is Reason.ACCEPTED:
            self.odometer.close(pose, best.keyframe.id, best.keyframe.pose)
        return matched

    def match_alone(self, descriptor: Descriptor, count: int) -> Matched:
        """Judge one image by itself against the whole map; nothing is remembered.

        Args:
            count: hypotheses at most.
        """
        self._exclude_session, self._exclude_after_ns = "", None
        return self._judge(descriptor, None, count)

    def stored(self, keyframe_id: int, stamp_ns: int, pose: Pose | None, matched: Matched) -> None:
        """Learn that an image became a keyframe."""
        self.odometer.mark(keyframe_id, stamp_ns, pose)
        if matched.reason is Reason.ACCEPTED:
            self._same_places.add(keyframe_id, matched.hypotheses[0].keyframe.id)

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
        return sessions

    def _is_gated(self, keyframe: Keyframe) -> bool:
        """Whether odometry could have said that the robot is not at a keyframe."""
        return self._exclude_after_ns is not None and self.odometer.knows(keyframe.id)

    def _judge(self, descriptor: Descriptor, track: Track | None, count: int) -> Matched:
        matching = self.config.matching
        started = time.perf_counter()
        ids, distances = self.map.search(
            descriptor.code,
            matching.top_k,
            exclude_session=self._exclude_session,
            exclude_after_ns=self._exclude_after_ns,
        )
        searched = time.perf_counter()
        if not len(ids):
            empty = Reason.MAP_EMPTY if len(self.map) == 0 else Reason.NO_CANDIDATE
            return Matched(empty, search_ms=1e3 * (searched - started))
        order, similarities = rerank(self.map, ids, distances, descriptor.feature)
        found = candidates(ids, distances, order, similarities)
        ranked = RankedCandidates(self.map, found)
        reranked = time.perf_counter()
        use_filter = track is not None and matching.temporal in ("filter", "both")
        possible = self._sessions_of(ids[order]) >= 0
        if use_filter:
            assert track is not None
            ratios = likelihood_ratios(similarities[order])
            track.update(ids[order][possible], ratios[possible])
        hypotheses = self._hypotheses(
            descriptor, ranked, np.flatnonzero(possible).tolist(), track, count
        )
        reason = self._verdict(hypotheses)
        new = 1.0 - hypotheses[0].probability if hypotheses else 1.0
        return Matched(
            reason,
            hypotheses,
            found,
            new,
            1e3 * (searched - started),
            1e3 * (reranked - searched),
            1e3 * (time.perf_counter() - reranked),
        )

    def _hypotheses(
        self,
        descriptor: Descriptor,
        ranked: RankedCandidates,
        possible: Sequence[int],
        track: Track | None,
        count: int,
    ) -> tuple[Hypothesis, ...]:
        """The likeliest places, each by one keyframe; by the filter first, then by similarity."""
        chosen: list[tuple[Keyframe, int, float, float]] = []  # and distance, similarity, mass

        def is_new(keyframe: Keyframe) -> bool:
            return not any(
                show_one_place(keyframe, other[0], self._same_places) for other in chosen
            )

        if track is not None and self.config.matching.temporal in ("filter", "both"):
            ids = np.array([ranked.found[i].keyframe_id for i in possible], np.int64)
            for place in track.places(count):
                near = np.flatnonzero(np.abs(ids - place.keyframe_id) <= _NEAR_KEYFRAMES)
                if len(near):
                    rank = possible[near[0]]
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
        return tuple(self._weigh(descriptor, ranked, track, *each) for each in chosen)

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

    def _verdict(self, hypotheses: Sequence[Hypothesis]) -> Reason:
        if not hypotheses:  # there were candidates
            return Reason.ODOMETRY_CONFLICT
        best, matching = hypotheses[0], self.config.matching
        if (
            matching.temporal in ("sequence", "both")
            and best.sequence_support < matching.min_sequence_support
        ):
            return Reason.NO_SEQUENCE_SUPPORT
        if best.probability < matching.target_precision:
            return Reason.BELOW_TARGET
        return Reason.ACCEPTED
