"""From descriptors to hypotheses and a verdict: candidates, evidence over time, votes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.bayes import likelihood_ratios
from hashvpr_ros.matching.choice import Choice, choose
from hashvpr_ros.matching.distinct import (
    NEAR_KEYFRAMES,
    NEAR_M,
    KeyframeArrays,
    SamePlaces,
    distinctness,
    show_one_place,
)
from hashvpr_ros.matching.finder import Finder, Found, Recent
from hashvpr_ros.matching.ledger import judge_candidates
from hashvpr_ros.matching.local import KeyframeLocals
from hashvpr_ros.matching.matched import Matched, vote
from hashvpr_ros.matching.odometer import Odometer, spacing_of
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.runs import (
    MIN_ELSEWHERE,
    Position,
    RunEvidence,
    RunScores,
    View,
    evidence_for,
)
from hashvpr_ros.matching.track import Place, Track
from hashvpr_ros.matching.verdicts import Closure, Verdicts
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

# Keyframes next to the newest that may be a candidate.
_BORDER_KEYFRAMES = 3
# By which a match may be wrong in a dense map.
_TOLERANCE_M = 1.5


class Matcher:
    """Judges images against a map, and remembers what the robot has seen.

    Args:
        place_map: that is searched.
        config: `matching`, `keyframes` and `publish.ledger` are used.
        probability: of a match from the evidence for it.
    """

    def __init__(self, place_map: PlaceMap, config: Config, probability: ProbabilityModel) -> None:
        self.map = place_map
        self.config = config
        self.headings_rad: Mapping[str, float] = {}  # of cameras in the robot, as far as known
        self._probability = probability
        self._same_places = SamePlaces()
        self._map_spacing_m: float | None = None  # 0 where it cannot be known
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, as after a jump in time or place."""
        self.odometer = Odometer(self.config.matching.max_drift)
        self._finder = Finder(self.map, self.odometer)
        self._verdicts = Verdicts()
        self._recent = Recent()
        self._now_ns: int | None = None  # stamp of the image; None: it has no past
        self._forget_track()

    def _forget_track(self) -> None:
        self._track = Track(
            self.config.matching.sequence_length, self.config.keyframes, self._sessions_of
        )

    def set_config(self, config: Config) -> None:
        """Use other settings, from the next image on."""
        before, self.config = self.config, config
        if config.keyframes != before.keyframes:  # they say how quickly places pass
            self._forget_track()
        self.odometer.max_drift = config.matching.max_drift

    def match(
        self,
        descriptors: Mapping[str, Descriptor],
        stamps_ns: Mapping[str, int],
        stamp_ns: int,
        pose: Pose | None,
        *,
        exclude: bool,
    ) -> dict[str, Matched]:
        """Judge the images of an instant.

        Args:
            descriptors: by camera.
            stamps_ns: of the images by camera.
            stamp_ns: of the instant.
            exclude: leave out the recent past of the session that is recorded.
        """
        matching = self.config.matching
        moved = self.odometer.move(pose)
        self._now_ns = stamp_ns
        self._recent = Recent()
        if exclude:
            newest_ns = self.odometer.newest_allowed_ns(
                stamp_ns,
                matching.exclude_recent_s,
                matching.exclude_recent_m,
                matching.exclude_recent_keyframes,
            )
            self._recent = Recent(self.map.session, newest_ns)
        track = self._track
        codes = {camera: d.code for camera, d in descriptors.items()}
        track.begin(stamp_ns, codes, moved, self._spacing_m())
        matched = self._judge(descriptors, track, matching.max_hypotheses)
        for camera, m in matched.items():
            best = m.hypotheses[0] if m.hypotheses else None
            track.views(camera).add(
                stamp_ns,
                codes[camera],
                best.keyframe if best else None,
                best.distinctness if best else 0.0,
                self._copies(best.keyframe, m.candidates) if best else (),
                m.view,
            )
            if best is not None and m.reason is Reason.ACCEPTED:
                self._verdicts.accepted(
                    Closure(
                        stamps_ns[camera],
                        stamp_ns,
                        camera,
                        best.keyframe.id,
                        best.keyframe.place,
                        self._evidence(best),
                    )
                )
        self._anchor(matched, stamp_ns)
        return matched

    def _anchor(self, matched: Mapping[str, Matched], stamp_ns: int) -> None:
        """Let odometry know of the surest accepted match whose direction is known."""
        known = [
            (m.hypotheses[0], heading)
            for camera, m in matched.items()
            if m.reason is Reason.ACCEPTED
            and (heading := self._heading(camera, m.hypotheses[0])) is not None
        ]
        if known:
            best, heading_rad = max(known, key=lambda item: item[0].probability)
            match = best.keyframe
            self.odometer.close(stamp_ns, match.place, heading_rad)

    def _heading(self, camera: str, match: Hypothesis) -> float | None:
        """How the robot is turned against that of a match; None: unknown."""
        if match.relative_heading_rad is not None:
            return match.relative_heading_rad
        return 0.0 if match.keyframe.camera == camera else None

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

        Args:
            stamp_ns, camera: of the query.
            match_id: keyframe of the map.

        Returns:
            the match; None where there was none such, or it is too long ago.
        """
        closure = self._verdicts.find(stamp_ns, camera, match_id)
        if closure is None or verdict is Verdict.ACCEPTED:
            return closure
        # Once: a back end that says it again and again must not cost the belief each time.
        if self._verdicts.reject(closure):
            self.odometer.forget(closure.instant_ns, closure.match_place)
            if closure.query_place:
                self._same_places.remove(closure.query_place, closure.match_place)
            self._forget_track()
        return closure

    def _copies(self, keyframe: Keyframe, found: Sequence[Candidate]) -> list[int]:
        """Places of candidates that show the place of a keyframe on other laps of its session."""
        places = self.map.places_of(np.array([keyframe.id, *(c.keyframe_id for c in found)]))
        return places[1:][self._finder.at_first(places)[1:]].tolist()

    def match_alone(
        self,
        descriptor: Descriptor,
        camera: str,
        count: int,
        local: KeyframeLocals | None = None,
    ) -> Matched:
        """Judge one image by itself against the whole map; nothing is remembered.

        Args:
            count: hypotheses at most.
            local: to order the best candidates by local descriptors. Of a run of images its order
                tells more, and costs nothing.
        """
        self._recent, self._now_ns = Recent(), None
        return self._judge({camera: descriptor}, None, count, local)[camera]

    def stored(
        self,
        keyframe_ids: Mapping[str, int],
        stamps_ns: Mapping[str, int],
        stamp_ns: int,
        matched: Mapping[str, Matched],
    ) -> None:
        """Learn that the images of an instant became keyframes, by camera."""
        place = int(self.map.places_of(np.array([min(keyframe_ids.values())]))[0])
        self.odometer.mark(place, stamp_ns)
        for camera, m in matched.items():
            if m.reason is Reason.ACCEPTED:
                match = m.hypotheses[0].keyframe
                self._same_places.add(place, match.place)
                closure = self._verdicts.find(stamps_ns[camera], camera, match.id)
                if closure is not None:
                    self._verdicts.accepted(replace(closure, query_place=place))

    def _spacing_m(self) -> float | None:
        """Metres between places of this session, else of the map; None if unknown."""
        own = self.odometer.spacing_m()
        if own is not None:
            return own
        if self._map_spacing_m is None:
            self._map_spacing_m = spacing_of(self.map)
        return self._map_spacing_m or None

    def _sessions_of(self, places: NDArray[np.integer]) -> NDArray[np.integer]:
        """Sessions of places at which the robot may be; -1 for others."""
        sessions = self.map.sessions_of(
            places, exclude_session=self._recent.session, exclude_after_ns=self._recent.after_ns
        )
        if self._recent.after_ns is not None:
            sessions[~self.odometer.possible(places)] = -1
        sessions[self._barred(places)] = -1
        return sessions

    def _barred(self, places: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which places the back end has rejected as that where the robot is, bool [n]."""
        if self._now_ns is None:
            return np.zeros(len(places), bool)
        return self._verdicts.barred(places, self._now_ns, self.odometer)

    def _is_gated(self, keyframe: Keyframe) -> bool:
        """Whether odometry could have said that the robot is not at a keyframe."""
        return self._recent.after_ns is not None and self.odometer.knows(keyframe.place)

    def _judge(
        self,
        descriptors: Mapping[str, Descriptor],
        track: Track | None,
        count: int,
        local: KeyframeLocals | None = None,
    ) -> dict[str, Matched]:
        matching = self.config.matching
        found = {
            camera: self._finder.find(descriptor, camera, matching.top_k, self._recent, local)
            for camera, descriptor in descriptors.items()
        }
        started = time.perf_counter()
        sessions = {camera: self._sessions_of(f.places) for camera, f in found.items()}
        filtering = track if matching.temporal in ("filter", "both") else None
        places: Sequence[Place] = ()
        if filtering is not None:
            for camera, f in found.items():
                if len(f.places):
                    ratios = likelihood_ratios(f.similarities, self._finder.others(f.places))
                    here = sessions[camera] >= 0
                    filtering.update(camera, f.places[here], ratios[here])
            places = filtering.places(count, self.odometer.positions)
        matched = {}
        for camera, f in found.items():
            matched[camera] = self._conclude(camera, f, sessions[camera], track, places, count)
        matched = vote(matched, self._same_places)
        temporal_ms = 1e3 * (time.perf_counter() - started) / len(matched)
        return {
            camera: replace(
                m,
                temporal_ms=temporal_ms,
                entries=self._entries(found[camera], sessions[camera] >= 0, m, filtering),
            )
            for camera, m in matched.items()
        }

    def _conclude(
        self,
        camera: str,
        found: Found,
        sessions: NDArray[np.integer],
        track: Track | None,
        places: Sequence[Place],
        count: int,
    ) -> Matched:
        """What one camera's image shows."""
        matching = self.config.matching
        hypotheses: tuple[Hypothesis, ...] = ()
        here = sessions >= 0
        view = None
        if track is not None and here.any():
            view = View.of(found.places[here], found.similarities[here])
        if not found.candidates:
            reason = Reason.MAP_EMPTY if len(self.map) == 0 else Reason.NO_CANDIDATE
        else:
            chosen = choose(found, sessions, places, self._finder, self._same_places, count)
            hypotheses = tuple(self._weigh(camera, found, track, each) for each in chosen)
            run = None
            if matching.temporal == "both" and track is not None and view is not None:
                runs = track.views(camera).score(found.descriptor.code, view)
                hypotheses, run = self._weigh_runs(
                    camera, found, sessions, runs, hypotheses, count
                )
            reason = self._why(found, sessions, hypotheses, run, alone=track is None)
        return Matched(
            reason,
            hypotheses,
            found.candidates,
            1.0 - hypotheses[0].probability if hypotheses else 1.0,
            found.search_ms,
            found.rerank_ms,
            newest_allowed_ns=self._recent.after_ns,
            view=view,
        )

    def _entries(
        self,
        found: Found,
        possible: NDArray[np.bool_],
        matched: Matched,
        filtering: Track | None,
    ) -> tuple[LedgerEntry, ...]:
        if not self.config.publish.ledger:  # it reads a keyframe of the map for each candidate
            return ()
        return judge_candidates(
            found.ranked,
            possible,
            self._barred(found.places),
            None if filtering is None else filtering.filter.around(found.places),
            matched.hypotheses,
            self._same_places,
        )

    def _weigh(
        self,
        camera: str,
        found: Found,
        track: Track | None,
        choice: Choice,
    ) -> Hypothesis:
        matching, keyframe = self.config.matching, choice.keyframe
        distinct = distinctness(
            found.ranked, keyframe, choice.similarity, matching.top_k, self._same_places
        )
        support, run_distinct = 0.0, distinct
        if track is not None:
            run = track.views(camera).run(found.descriptor.code, keyframe, distinct)
            support, run_distinct = run.support, run.distinctness
        temporal = matching.temporal if track is not None else "none"
        if temporal == "none":
            probability = self._probability(distinct)
        elif temporal == "sequence":
            probability = self._probability(distinct, support, run_distinct)
        elif temporal == "filter":
            probability = choice.mass
        else:
            probability = self._probability.by_odometry(choice.mass, support, run_distinct)
        return Hypothesis(
            keyframe,
            choice.distance_bits,
            choice.similarity,
            distinct,
            probability,
            support,
            self._relative_heading(camera, keyframe),
        )

    def _weigh_runs(
        self,
        camera: str,
        found: Found,
        sessions: NDArray[np.integer],
        runs: Sequence[RunScores],
        hypotheses: tuple[Hypothesis, ...],
        count: int,
    ) -> tuple[tuple[Hypothesis, ...], RunEvidence | None]:
        """Judge by their runs of views the hypotheses that odometry cannot judge.

        Args:
            runs: that end with the present image, of several lengths.
            hypotheses: by filter and similarity.

        Returns:
            hypotheses, the likeliest first, and the run's evidence for that one; None where
            odometry judges it, or the map holds too few other places.
        """
        rank_of: dict[int, int] = {}
        for rank in np.flatnonzero(sessions >= 0).tolist():
            rank_of.setdefault(int(found.places[rank]), rank)  # the best of each place
        known = {h.keyframe.place: h for h in hypotheses}
        keyframes = {
            n: found.ranked.keyframe(rank_of[n]) for n in dict.fromkeys(r.best_place for r in runs)
        }
        keyframes |= {n: h.keyframe for n, h in known.items()}
        open_to = {n: k for n, k in keyframes.items() if not self._is_gated(k)}
        if not open_to:  # odometry judges them all
            return tuple(
                replace(h, position_stddev_m=self._in_metres(runs[0].position(n)))
                for n, h in known.items()
            ), None
        candidates = KeyframeArrays(
            [found.ranked.keyframe(rank_of[int(n)]) for n in runs[0].places]
        )
        decided: list[tuple[Hypothesis, RunEvidence | None]] = []
        undecided: list[tuple[Hypothesis, RunEvidence | None]] = []
        for number, keyframe in keyframes.items():
            if number in open_to:
                elsewhere = self._elsewhere(candidates, keyframe)
                hypothesis, run = self._weigh_run(
                    camera, found, rank_of, runs, number, keyframe, elsewhere
                )
                (undecided if run is None else decided).append((hypothesis, run))
            elif number in known:
                stddev_m = self._in_metres(runs[0].position(number))
                decided.append((replace(known[number], position_stddev_m=stddev_m), None))
        # Stable: of equals, that of the longest run comes first.
        for judged in (decided, undecided):
            judged.sort(key=lambda item: -item[0].probability)
        kept: list[tuple[Hypothesis, RunEvidence | None]] = []
        for hypothesis, run in decided + undecided:
            if not any(
                show_one_place(hypothesis.keyframe, h.keyframe, self._same_places) for h, _ in kept
            ):
                kept.append((hypothesis, run))
        kept = kept[:count]
        return tuple(h for h, _ in kept), kept[0][1] if kept else None

    def _weigh_run(
        self,
        camera: str,
        found: Found,
        rank_of: Mapping[int, int],
        runs: Sequence[RunScores],
        number: int,
        keyframe: Keyframe,
        elsewhere: NDArray[np.bool_],
    ) -> tuple[Hypothesis, RunEvidence | None]:
        """A place, judged by the run that speaks for it most clearly.

        Args:
            rank_of: the best candidate of each place.
            runs: that end with the present image, of several lengths.
            number, keyframe: of the place.
            elsewhere: which places of the runs are surely other places, bool [m].
        """
        own, target = self._is_own(keyframe), self.config.matching.target_precision
        tolerance_keyframes = self._tolerance_keyframes()
        # What is just old enough to be a candidate looks like the present image while the robot
        # drives away from it: no revisit.
        leaving = own and number >= int(runs[0].places[-1]) - _BORDER_KEYFRAMES
        most = min(0.9, 0.9 * target) if leaving else 1.0
        options: list[tuple[float, RunEvidence | None, Position]] = []
        for scores in runs:
            run, position = evidence_for(scores, number, elsewhere), scores.position(number)
            if run is None:  # too small a map to tell: undecided, and no closure
                options.append((min(0.5, 0.9 * target), None, position))
                break
            value = self._probability.by_run(
                run, position, own_session=own, tolerance_keyframes=tolerance_keyframes
            )
            options.append((min(value, most), run, position))
        probability, best, position = max(options, key=lambda option: option[0])
        rank = rank_of.get(position.place, rank_of.get(number))
        if rank is None:  # the filter's, and no candidate
            keyframe, distance_bits, similarity = self._finder.best_view(number, found.descriptor)
        else:
            keyframe, candidate = found.ranked.keyframe(rank), found.ranked.found[rank]
            distance_bits, similarity = candidate.distance_bits, candidate.similarity
        hypothesis = Hypothesis(
            keyframe,
            distance_bits,
            similarity,
            distinctness(
                found.ranked, keyframe, similarity, self.config.matching.top_k, self._same_places
            ),
            probability,
            0.0 if best is None else best.hits / best.views,
            self._relative_heading(camera, keyframe),
            position_stddev_m=self._in_metres(position),
        )
        return hypothesis, best

    def _tolerance_keyframes(self) -> float:
        """By how many keyframes a match may be wrong: two, or more where the map is dense."""
        spacing_m = self._spacing_m()
        return 2.5 if spacing_m is None else max(2.5, _TOLERANCE_M / spacing_m)

    def _in_metres(self, position: Position) -> float | None:
        spacing_m = self._spacing_m()
        return None if spacing_m is None else position.stddev_keyframes * spacing_m

    def _elsewhere(self, candidates: KeyframeArrays, match: Keyframe) -> NDArray[np.bool_]:
        """Which candidates surely show another place than a match, bool [m].

        Where a map holds few places, nearer ones count as well: the margin over them is smaller.
        """
        spacing_m = self._spacing_m()
        near = NEAR_KEYFRAMES if spacing_m is None else max(NEAR_KEYFRAMES, NEAR_M / spacing_m)
        far = candidates.elsewhere(match, near, self._same_places)
        if int(far.sum()) >= MIN_ELSEWHERE:
            return far
        return candidates.elsewhere(match, NEAR_KEYFRAMES // 2, self._same_places)

    def _is_own(self, keyframe: Keyframe) -> bool:
        """Whether a keyframe is of the session that is being recorded."""
        return self._recent.after_ns is not None and keyframe.session == self._recent.session

    def _relative_heading(self, camera: str, match: Keyframe) -> float | None:
        """How the robot is turned against that which made a keyframe, where headings are known.

        Both cameras look the same way, each turned by its heading in its robot.
        """
        own, other = self.headings_rad.get(camera), self.map.headings_rad.get(match.camera)
        if own is None or other is None:
            return None
        return math.remainder(other - own, 2.0 * math.pi)

    def _why(
        self,
        found: Found,
        sessions: NDArray[np.integer],
        hypotheses: Sequence[Hypothesis],
        run: RunEvidence | None,
        *,
        alone: bool,
    ) -> Reason:
        """Why the best hypothesis is accepted or not, or why there is none.

        A keyframe that was made while odometry was missing can be ruled out by nothing, so it is
        always among the hypotheses. Where nothing speaks for it, it must not hide what odometry
        says of all others: then the reason is the one that there would be without it.
        """
        if hypotheses:
            reason = self._reason(hypotheses[0], run, alone=alone)
            if not (reason is Reason.NEW_PLACE or (reason is Reason.NOT_DISTINCT and run is None)):
                return reason
            lacking = self._lack_poses([h.keyframe.place for h in hypotheses])
            judged = [h for h, lacks in zip(hypotheses, lacking, strict=True) if not lacks]
            if lacking[0] and judged:
                return self._reason(judged[0], None, alone=alone)
            near = sessions >= 0
            if judged or near.all() or not self._lack_poses(found.places[near]).all():
                return reason
        return Reason.REJECTED if self._barred(found.places).any() else Reason.ODOMETRY_CONFLICT

    def _lack_poses(self, places: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which places odometry cannot judge for want of a pose, though it judges others."""
        lacking = self.odometer.lacks_pose(np.asarray(places))
        return lacking & (self._recent.after_ns is not None)

    def _reason(self, best: Hypothesis, run: RunEvidence | None, *, alone: bool) -> Reason:
        matching = self.config.matching
        below = best.probability < matching.target_precision
        gated = self._is_gated(best.keyframe)
        by_run = not alone and matching.temporal == "both" and not gated
        # The views lead there, but another place explains them as well; or the map holds too few
        # places to tell.
        if by_run and below and (run is None or (run.views >= 4 and run.hits >= 0.75 * run.views)):
            return Reason.NOT_DISTINCT
        # One image by itself is too little to say that a place is new.
        if not alone and best.probability < min(0.5, matching.target_precision):
            return Reason.NEW_PLACE
        asks_support = not alone and not by_run and matching.temporal in ("sequence", "both")
        if asks_support and best.sequence_support < matching.min_sequence_support:
            return Reason.NO_SEQUENCE_SUPPORT
        if below:
            # Where odometry helps, a similar place elsewhere counts little.
            similar = best.distinctness <= 0.0 and not gated and not by_run
            return Reason.NOT_DISTINCT if similar else Reason.BELOW_TARGET
        return Reason.ACCEPTED
