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
from hashvpr_ros.map.verdicts import StoredVerdict
from hashvpr_ros.mapping.keyframes import KeyframeSelector
from hashvpr_ros.matching.matcher import Matched, Matcher
from hashvpr_ros.matching.probability import ProbabilityModel
from hashvpr_ros.types import (
    Decision,
    Descriptor,
    Ledger,
    Mode,
    Pose,
    Reason,
    StageTimes,
    Verdict,
)

_THUMBNAIL_QUALITY = 80


class Recognizer:
    """Recognises places in a map, and adds to it, according to the mode.

    Safe to call from several threads; one image is processed at a time.

    Args:
        engine: its model must be the map's.
        place_map: open; writable unless the mode is `localization`.
        config: `matching`, `keyframes`, `map.thumbnail_px` and `publish.ledger` are used.
        calibrated: whether the map's own calibration, if it has one, is used.
    """

    def __init__(
        self,
        engine: DescriptorEngine,
        place_map: PlaceMap,
        config: Config,
        *,
        mode: Mode,
        calibrated: bool = True,
    ) -> None:
        self._engine = engine
        self._config = config
        self._mode = mode
        self._calibrated = calibrated
        self._lock = threading.RLock()
        self._selectors: dict[str, KeyframeSelector] = {}
        self._use(place_map)

    def _use(self, place_map: PlaceMap) -> None:
        self._map = place_map
        self._probability = ProbabilityModel.of(
            self._engine.info.probability_curve,
            place_map.calibration if self._calibrated else None,
        )
        self._matcher = Matcher(place_map, self._config, self._probability)

    @property
    def mode(self) -> Mode:
        """What is done with images."""
        return self._mode

    @property
    def probability_source(self) -> str:
        """Where the probabilities of matches come from, for people."""
        return self._probability.source

    def set_mode(self, mode: Mode) -> None:
        """Change what is done with images, from the next one on."""
        with self._lock:
            self._mode = mode

    def set_map(self, place_map: PlaceMap) -> None:
        """Use another map; the sequence and the last keyframe are forgotten."""
        with self._lock:
            self._use(place_map)  # with a matcher that has seen nothing
            self._selectors.clear()

    def set_config(self, config: Config) -> None:
        """Use other settings, from the next image on."""
        with self._lock:
            self._config = config
            self._matcher.set_config(config)
            for selector in self._selectors.values():
                selector.config = config.keyframes

    def reset_sequence(self) -> None:
        """Forget the preceding images and keyframes, as after a jump in time or place."""
        with self._lock:
            self._matcher.reset()
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
            if pose is not None and not pose.is_valid():
                pose = None
            if self._mode is Mode.MAPPING:
                matched = Matched(Reason.MAPPING_ONLY)
            else:
                matched = self._matcher.match(
                    descriptor, stamp_ns, pose, camera, exclude=self._mode is Mode.SLAM
                )
            decision = self._decision(stamp_ns, camera, descriptor, matched, times)
            decision = dataclasses.replace(decision, pose=pose, ledger=self._ledger(matched))
            if self._mode is not Mode.LOCALIZATION:
                decision = self._store(decision, matched, image)
            return decision

    def verdict(self, stamp_ns: int, camera: str, match_id: int, verdict: Verdict) -> bool:
        """Learn what the back end made of an accepted match, and keep it in the map.

        Args:
            stamp_ns, camera: of the query.
            match_id: keyframe of the map.

        Returns:
            whether there was such a match of late.

        Raises:
            MapError: it could not be written; it counts all the same until the map is closed.
        """
        with self._lock:
            closure = self._matcher.verdict(stamp_ns, camera, match_id, verdict)
            if closure is not None and not self._map.read_only:
                self._map.add_verdict(
                    StoredVerdict(stamp_ns, match_id, verdict.value, closure.log_odds)
                )
            return closure is not None

    def recognize(
        self, image: NDArray[np.uint8], camera: str = "camera", max_hypotheses: int = 0
    ) -> Decision:
        """Recognise one image by itself; changes neither the map nor what is remembered.

        The whole map is searched, and no preceding image supports the answer, so that it is
        accepted only by the distinctness of this one image.
        """
        with self._lock:
            descriptor, times = self._describe(image)
            count = max_hypotheses or self._config.matching.max_hypotheses
            matched = self._matcher.match_alone(descriptor, count)
            return self._decision(0, camera, descriptor, matched, times)

    def _decision(
        self,
        stamp_ns: int,
        camera: str,
        descriptor: Descriptor,
        matched: Matched,
        times: StageTimes,
    ) -> Decision:
        return Decision(
            stamp_ns,
            camera,
            self._map.map_id,
            descriptor,
            matched.reason,
            hypotheses=matched.hypotheses,
            candidates=matched.candidates,
            new_place_probability=matched.new_place_probability,
            times=dataclasses.replace(
                times,
                search_ms=matched.search_ms,
                rerank_ms=matched.rerank_ms,
                temporal_ms=matched.temporal_ms,
            ),
        )

    def _ledger(self, matched: Matched) -> Ledger | None:
        if not self._config.publish.ledger:
            return None
        return Ledger(
            self._mode,
            self._config.matching,
            len(self._map),
            matched.newest_allowed_ns,
            matched.entries,
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

    def _store(self, decision: Decision, matched: Matched, image: NDArray[np.uint8]) -> Decision:
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
                self._matcher.stored(keyframe_id, stamp_ns, pose, decision.camera, matched)
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
