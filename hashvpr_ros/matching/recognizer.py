"""The recognizer: image and pose in, decision out. The node and every offline tool call it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import Config
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import check_rgb, describe_batch, resize
from hashvpr_ros.errors import MapError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.rows import NewPlace
from hashvpr_ros.map.verdicts import StoredVerdict
from hashvpr_ros.mapping.keyframes import KeyframeSelector
from hashvpr_ros.matching.local import KeyframeLocals
from hashvpr_ros.matching.matched import Matched
from hashvpr_ros.matching.matcher import Matcher
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
_MOST_PEERS = 16  # robots whose past is remembered; the one heard longest ago makes room


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
        self._headings_rad: dict[str, float] = {}
        self._use(place_map)

    def _use(self, place_map: PlaceMap) -> None:
        self._map = place_map
        self._probability = ProbabilityModel.of(
            self._engine.info.probability_curve,
            place_map.calibration if self._calibrated else None,
        )
        self._matcher = Matcher(place_map, self._config, self._probability)
        self._local = KeyframeLocals(self._engine, place_map)
        self._matcher.headings_rad = self._headings_rad
        # By topic, map and session: several robots may share any two of them.
        self._peers: dict[tuple[str, str, str], Matcher] = {}

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
            with suppress(MapError):  # a map that cannot be written says so with the next image
                self._keep_headings()

    def set_map(self, place_map: PlaceMap) -> None:
        """Use another map; the sequence and the last keyframe are forgotten."""
        with self._lock:
            self._use(place_map)  # with a matcher that has seen nothing
            self._selectors.clear()
            with suppress(MapError):  # the batch that cannot be written either says why
                self._keep_headings()

    def set_config(self, config: Config) -> None:
        """Use other settings, from the next image on."""
        with self._lock:
            self._config = config
            for matcher in (self._matcher, *self._peers.values()):
                matcher.set_config(config)
            for selector in self._selectors.values():
                selector.config = config.keyframes

    def reset_sequence(self) -> None:
        """Forget the preceding images and keyframes, as after a jump in time or place."""
        with self._lock:
            self._matcher.reset()
            self._selectors.clear()
            self._peers.clear()

    def set_headings(self, headings_rad: Mapping[str, float]) -> None:
        """Say how cameras are turned in the robot, radians to the left; kept in the map.

        Raises:
            MapError: the map could not be written; they count all the same.
        """
        with self._lock:
            self._headings_rad = dict(headings_rad)
            self._matcher.headings_rad = self._headings_rad
            self._keep_headings()

    def _keep_headings(self) -> None:
        if self._writes:
            self._map.add_headings(self._headings_rad)

    @property
    def _writes(self) -> bool:
        """Whether the map may change."""
        return self._mode is not Mode.LOCALIZATION and not self._map.read_only

    def process(
        self,
        image: NDArray[np.uint8],
        stamp_ns: int,
        pose: Pose | None = None,
        camera: str = "camera",
    ) -> Decision:
        """Recognise the place of an image; see `process_instant`."""
        return self.process_instant({camera: image}, stamp_ns, pose)[camera]

    def process_instant(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        stamp_ns: int,
        pose: Pose | None = None,
        stamps_ns: Mapping[str, int] | None = None,
    ) -> dict[str, Decision]:
        """Recognise where the images of one instant were taken and, by the mode, add them.

        All are described in one call of the engine, and the keyframes that may be made of them are
        views of one place.

        Args:
            images: by camera, RGB, uint8 [H, W, 3], of any size; at least one.
            stamp_ns: of the instant; those of a session ascend.
            pose: of the keyframes that may be made; None or NaN: stored without.
            stamps_ns: of the images, where they differ from that of the instant.

        Returns:
            the decision on each; where the map could not be written, they say so in `store_error`.

        Raises:
            ImageError: not such an image. EngineError: the network failed. MapError: the map could
            not be read. Nothing has changed then.
        """
        stamps_ns = stamps_ns or dict.fromkeys(images, stamp_ns)
        with self._lock:
            described = self._describe(images)
            descriptors = {camera: d for camera, (d, _) in described.items()}
            if pose is not None and not pose.is_valid():
                pose = None
            if self._mode is Mode.MAPPING:
                self._matcher.odometer.move(pose)  # how far keyframes lie apart counts later
                matched = dict.fromkeys(images, Matched(Reason.MAPPING_ONLY))
            else:
                matched = self._matcher.match(
                    descriptors, stamps_ns, stamp_ns, pose, exclude=self._mode is Mode.SLAM
                )
            decisions = {}
            for camera, (descriptor, times) in described.items():
                m = matched[camera]
                decision = self._decision(stamps_ns[camera], camera, descriptor, m, times)
                decisions[camera] = dataclasses.replace(
                    decision, pose=pose, ledger=self._ledger(m)
                )
            if self._mode is not Mode.LOCALIZATION:
                decisions = self._store(decisions, matched, stamp_ns, images)
            return decisions

    def verdict(
        self, stamp_ns: int, camera: str, match_id: int, verdict: Verdict, query_map_id: str = ""
    ) -> bool:
        """Learn what the back end made of an accepted match, and keep it in the map.

        Args:
            stamp_ns, camera: of the query.
            match_id: keyframe of the map.
            query_map_id: of the robot that has the query, see `match_peer`; "": this one.

        Returns:
            whether there was such a match of late.

        Raises:
            MapError: it could not be written; it counts all the same until the map is closed.
        """
        with self._lock:
            # Stamps and names of cameras may be those of another robot, too.
            own = [self._matcher] if query_map_id in ("", self._map.map_id) else []
            peers = (m for (_, map_id, _), m in self._peers.items() if map_id == query_map_id)
            matchers = (*own, *peers)
            closures = (m.verdict(stamp_ns, camera, match_id, verdict) for m in matchers)
            closure = next((c for c in closures if c is not None), None)
            if closure is not None and self._writes:
                self._map.add_verdict(
                    StoredVerdict(stamp_ns, match_id, verdict.value, closure.log_odds)
                )
            return closure is not None

    def match_peer(
        self,
        topic: str,
        map_id: str,
        session: str,
        camera: str,
        descriptor: Descriptor,
        stamp_ns: int,
        pose: Pose | None = None,
    ) -> Decision:
        """Recognise where an image of another robot was taken, by its descriptor.

        Each robot has a past of its own, which begins anew with its map and session. The whole map
        is searched, and nothing is added to it.

        Args:
            topic: that it came on.
            map_id, session: of that robot.
            descriptor: made by the same model.
            pose: by that robot's odometry.

        Raises:
            MapError: the map could not be read.
        """
        with self._lock:
            if pose is not None and not pose.is_valid():
                pose = None
            peer = topic, map_id, session
            matcher = self._peers.pop(peer, None)
            if matcher is None:
                matcher = Matcher(self._map, self._config, self._probability)
            self._peers[peer] = matcher  # as the newest
            if len(self._peers) > _MOST_PEERS:
                del self._peers[next(iter(self._peers))]
            matched = matcher.match(
                {camera: descriptor}, {camera: stamp_ns}, stamp_ns, pose, exclude=False
            )[camera]
            decision = self._decision(stamp_ns, camera, descriptor, matched, StageTimes())
            return dataclasses.replace(decision, pose=pose, session=session)

    def recognize(
        self, image: NDArray[np.uint8], camera: str = "camera", max_hypotheses: int = 0
    ) -> Decision:
        """Recognise one image by itself; changes neither the map nor what is remembered.

        The whole map is searched, and no preceding image supports the answer. It is accepted where
        this image alone is distinct enough.
        """
        with self._lock:
            descriptor, times = self._describe({camera: image})[camera]
            count = max_hypotheses or self._config.matching.max_hypotheses
            matched = self._matcher.match_alone(descriptor, camera, count, self._local)
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

    def _describe(
        self, images: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, tuple[Descriptor, StageTimes]]:
        """Describe images in one call of the engine, whose time each has."""
        info = self._engine.info
        batch = np.empty((len(images), info.height, info.width, 3), np.uint8)
        preprocess_ms = []
        for i, image in enumerate(images.values()):
            started = time.perf_counter()
            batch[i] = resize(image, info.height, info.width)
            preprocess_ms.append(1e3 * (time.perf_counter() - started))
        started = time.perf_counter()
        descriptors = describe_batch(self._engine, batch)
        engine_ms = 1e3 * (time.perf_counter() - started)
        return {
            camera: (
                descriptors[i],
                StageTimes(preprocess_ms=preprocess_ms[i], engine_ms=engine_ms),
            )
            for i, camera in enumerate(images)
        }

    def _store(
        self,
        decisions: dict[str, Decision],
        matched: Mapping[str, Matched],
        stamp_ns: int,
        images: Mapping[str, NDArray[np.uint8]],
    ) -> dict[str, Decision]:
        """Make keyframes of the images, if one of the cameras sees enough that is new."""
        started = time.perf_counter()
        ids: dict[str, int] = {}
        problem = ""
        try:
            if self._is_new(decisions, stamp_ns):
                added = self._map.add_many(
                    [
                        NewPlace(
                            camera,
                            stamp_ns,
                            d.pose,
                            d.descriptor,
                            thumbnail_jpeg(images[camera], self._config.map.thumbnail_px),
                        )
                        for camera, d in decisions.items()
                    ]
                )
                ids = dict(zip(decisions, added, strict=True))
                for camera, d in decisions.items():
                    self._selectors[camera].added(stamp_ns, d.pose, d.descriptor.code)
                stamps_ns = {camera: d.stamp_ns for camera, d in decisions.items()}
                self._matcher.stored(ids, stamps_ns, stamp_ns, matched)
            self._map.flush_if_due()
        except MapError as e:  # the robot still wants to know where it is
            problem = str(e)
        store_ms = 1e3 * (time.perf_counter() - started)
        return {
            camera: dataclasses.replace(
                d,
                keyframe_id=ids.get(camera, 0),
                session=self._map.session,
                times=dataclasses.replace(d.times, store_ms=store_ms),
                store_error=problem,
            )
            for camera, d in decisions.items()
        }

    def _is_new(self, decisions: Mapping[str, Decision], stamp_ns: int) -> bool:
        for camera in decisions:
            if camera not in self._selectors:
                self._selectors[camera] = KeyframeSelector(self._config.keyframes)
        return any(
            self._selectors[camera].should_add(stamp_ns, d.pose, d.descriptor.code)
            for camera, d in decisions.items()
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
