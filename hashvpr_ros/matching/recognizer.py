"""The recognizer: image and pose in, decision out. The node and every offline tool call it."""

from __future__ import annotations

import dataclasses
import threading
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import check_rgb, resize
from hashvpr_ros.errors import MapError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.mapping.keyframes import KeyframeSelector
from hashvpr_ros.matching.distinct import RankedCandidates, SamePlaces, distinctness
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.matching.rerank import candidates, rerank
from hashvpr_ros.matching.sequence import SequenceMemory
from hashvpr_ros.types import (
    Candidate,
    Decision,
    Descriptor,
    Hypothesis,
    Mode,
    Pose,
    Reason,
    StageTimes,
)

_THUMBNAIL_QUALITY = 80


class Recognizer:
    """Recognises places in a map, and adds to it, according to the mode.

    Safe to call from several threads; one image is processed at a time.

    Args:
        engine: its model must be the map's.
        place_map: open; writable unless the mode is `localization`.
        config: `matching`, `keyframes` and `map.thumbnail_px` are used.
    """

    def __init__(
        self, engine: DescriptorEngine, place_map: PlaceMap, config: Config, *, mode: Mode
    ) -> None:
        self._engine = engine
        self._map = place_map
        self._config = config
        self._mode = mode
        self._lock = threading.RLock()
        self._probability = ProbabilityModel.of(engine.info.probability_curve)
        self._sequences: dict[str, SequenceMemory] = {}
        self._selectors: dict[str, KeyframeSelector] = {}
        self._same_places = SamePlaces()

    @property
    def mode(self) -> Mode:
        """What is done with images."""
        return self._mode

    @property
    def has_built_in_probability(self) -> bool:
        """Whether the model brought no probability curve, so that a conservative one is used."""
        return self._probability.built_in

    def set_mode(self, mode: Mode) -> None:
        """Change what is done with images, from the next one on."""
        with self._lock:
            self._mode = mode

    def set_map(self, place_map: PlaceMap) -> None:
        """Use another map; the sequence and the last keyframe are forgotten."""
        with self._lock:
            self._map = place_map
            self._same_places = SamePlaces()
            self.reset_sequence()

    def set_config(self, config: Config) -> None:
        """Use other settings, from the next image on."""
        with self._lock:
            if config.matching.sequence_length != self._config.matching.sequence_length:
                self._sequences.clear()
            self._config = config
            for selector in self._selectors.values():
                selector.config = config.keyframes

    def reset_sequence(self) -> None:
        """Forget the preceding images and keyframes, as after a jump in time or place."""
        with self._lock:
            self._sequences.clear()
            self._selectors.clear()

    def process(
        self,
        image: NDArray[np.uint8],
        stamp_ns: int,
        pose: Pose | None = None,
        camera: str = "camera",
    ) -> Decision:
        """Recognise the place of an image and, by the mode, add it to the map.

        Args:
            image: RGB, uint8 [H, W, 3], of any size.
            stamp_ns: when it was taken; those of a session ascend.
            pose: of the keyframe that may be made of it; None or NaN: stored without.
            camera: name of the camera; each has a sequence and keyframes of its own.

        Returns:
            the decision; where the map could not be written, it says so in `store_error`.

        Raises:
            ImageError: not such an image. EngineError: the network failed. MapError: the map could
            not be read. Nothing has changed then.
        """
        with self._lock:
            descriptor, times = self._describe(image)
            if self._mode is Mode.MAPPING:
                decision = Decision(
                    stamp_ns,
                    camera,
                    self._map.map_id,
                    descriptor,
                    Reason.MAPPING_ONLY,
                    times=times,
                )
            else:
                memory = self._memory(camera)
                memory.begin(stamp_ns)
                decision = self._decide(
                    descriptor,
                    stamp_ns,
                    camera,
                    memory,
                    times,
                    self._config.matching.max_hypotheses,
                    exclude=self._mode is Mode.SLAM,
                )
                best = decision.hypotheses[0] if decision.hypotheses else None
                memory.add(
                    stamp_ns,
                    descriptor.code,
                    best.keyframe if best else None,
                    best.distinctness if best else 0.0,
                )
            if pose is not None and not pose.is_valid():
                pose = None
            decision = dataclasses.replace(decision, pose=pose)
            if self._mode is not Mode.LOCALIZATION:
                decision = self._store(decision, image)
            if decision.accepted and decision.keyframe_id:
                self._same_places.add(decision.keyframe_id, decision.hypotheses[0].keyframe.id)
            return decision

    def recognize(
        self, image: NDArray[np.uint8], camera: str = "camera", max_hypotheses: int = 0
    ) -> Decision:
        """Recognise one image by itself; changes neither the map nor the sequence.

        The whole map is searched, and no preceding image supports the answer, so that it is
        accepted only where one image may be (`matching.min_sequence_support` 0).
        """
        with self._lock:
            descriptor, times = self._describe(image)
            return self._decide(
                descriptor,
                0,
                camera,
                SequenceMemory(self._config.matching.sequence_length),
                times,
                max_hypotheses or self._config.matching.max_hypotheses,
                exclude=False,
            )

    def _describe(self, image: NDArray[np.uint8]) -> tuple[Descriptor, StageTimes]:
        info = self._engine.info
        started = time.perf_counter()
        batch = resize(image, info.height, info.width)[np.newaxis]
        resized = time.perf_counter()
        codes, features = self._engine.describe(batch)
        ended = time.perf_counter()
        times = StageTimes(
            preprocess_ms=1e3 * (resized - started), engine_ms=1e3 * (ended - resized)
        )
        return Descriptor(codes[0], features[0]), times

    def _memory(self, camera: str) -> SequenceMemory:
        if camera not in self._sequences:
            self._sequences[camera] = SequenceMemory(self._config.matching.sequence_length)
        return self._sequences[camera]

    def _decide(
        self,
        descriptor: Descriptor,
        stamp_ns: int,
        camera: str,
        memory: SequenceMemory,
        times: StageTimes,
        max_hypotheses: int,
        exclude: bool,
    ) -> Decision:
        matching = self._config.matching
        started = time.perf_counter()
        if exclude:
            ids, distances = self._map.search(
                descriptor.code,
                matching.top_k,
                exclude_session=self._map.session,
                exclude_after_ns=stamp_ns - int(matching.exclude_recent_s * 1e9),
            )
        else:
            ids, distances = self._map.search(descriptor.code, matching.top_k)
        searched = time.perf_counter()
        found: tuple[Candidate, ...] = ()
        hypotheses: tuple[Hypothesis, ...] = ()
        if len(ids):
            order, similarities = rerank(self._map, ids, distances, descriptor.feature)
            found = candidates(ids, distances, order, similarities)
            hypotheses = self._hypotheses(found, max_hypotheses, descriptor.code, memory)
        times = dataclasses.replace(
            times,
            search_ms=1e3 * (searched - started),
            rerank_ms=1e3 * (time.perf_counter() - searched),
        )
        return Decision(
            stamp_ns,
            camera,
            self._map.map_id,
            descriptor,
            self._judge(hypotheses),
            hypotheses=hypotheses,
            candidates=found,
            new_place_probability=1.0 - hypotheses[0].probability if hypotheses else 1.0,
            times=times,
        )

    def _hypotheses(
        self,
        found: tuple[Candidate, ...],
        count: int,
        code: NDArray[np.uint8],
        memory: SequenceMemory,
    ) -> tuple[Hypothesis, ...]:
        ranked = RankedCandidates(self._map, found)
        hypotheses = []
        for rank, candidate in enumerate(found[:count]):
            keyframe = ranked.keyframe(rank)
            distinct = distinctness(ranked, rank, self._config.matching.top_k, self._same_places)
            run = memory.run(code, keyframe, distinct)
            hypotheses.append(
                Hypothesis(
                    keyframe,
                    candidate.distance_bits,
                    candidate.similarity,
                    distinct,
                    self._probability(distinct, run.support, run.distinctness),
                    run.support,
                )
            )
        return tuple(hypotheses)

    def _judge(self, hypotheses: tuple[Hypothesis, ...]) -> Reason:
        if not hypotheses:
            return Reason.MAP_EMPTY if len(self._map) == 0 else Reason.NO_CANDIDATE
        best, matching = hypotheses[0], self._config.matching
        if best.sequence_support < matching.min_sequence_support:
            return Reason.NO_SEQUENCE_SUPPORT
        if best.probability < matching.target_precision:
            return Reason.BELOW_TARGET
        return Reason.ACCEPTED

    def _store(self, decision: Decision, image: NDArray[np.uint8]) -> Decision:
        started = time.perf_counter()
        if decision.camera not in self._selectors:
            self._selectors[decision.camera] = KeyframeSelector(self._config.keyframes)
        selector = self._selectors[decision.camera]
        stamp_ns, pose, code = decision.stamp_ns, decision.pose, decision.descriptor.code
        keyframe_id, problem = 0, ""
        try:
            if selector.should_add(stamp_ns, pose, code):
                keyframe_id = self._map.add(
                    camera=decision.camera,
                    stamp_ns=stamp_ns,
                    pose=pose,
                    descriptor=decision.descriptor,
                    thumbnail=thumbnail_jpeg(image, self._config.map.thumbnail_px),
                )
                selector.added(stamp_ns, pose, code)
            self._map.flush_if_due()
        except MapError as e:  # the robot still wants to know where it is
            problem = str(e)
        times = dataclasses.replace(decision.times, store_ms=1e3 * (time.perf_counter() - started))
        return dataclasses.replace(
            decision,
            keyframe_id=keyframe_id,
            session=self._map.session,
            times=times,
            store_error=problem,
        )


def thumbnail_jpeg(image: NDArray[np.uint8], longer_side_px: int) -> bytes | None:
    """A small JPEG of an RGB image; None for a size of 0.

    Raises:
        ImageError: not uint8 [H, W, 3].
    """
    if longer_side_px <= 0:
        return None
    check_rgb(image)
    height, width = image.shape[:2]
    scale = longer_side_px / max(height, width)
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])
    return jpeg.tobytes() if done else None
