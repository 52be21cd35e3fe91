"""The managed lifecycle node: transitions and topics; the work is done by what it owns."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.validate_topic_name import validate_topic_name

from hashvpr_ros.config import Config, camera_headings, camera_names, image_topic
from hashvpr_ros.errors import ConfigError, HashVprError, ImageError, MapError, reason_of
from hashvpr_ros.imaging import HintOnce
from hashvpr_ros.mapping.sessions import StampWatch
from hashvpr_ros.msg import MapStatus, PlaceDescriptor
from hashvpr_ros.ros import conversions
from hashvpr_ros.ros.bond import ManagerBond, form_bond
from hashvpr_ros.ros.cameras import Arrival, Cameras
from hashvpr_ros.ros.diagnostics import Stats, diagnostics
from hashvpr_ros.ros.failures import Failures
from hashvpr_ros.ros.headings import TfHeadings, check_heading_frame
from hashvpr_ros.ros.inputs import ClockWatch, Reporter, Watched
from hashvpr_ros.ros.parameter_files import without_effect
from hashvpr_ros.ros.parameters import Parameters
from hashvpr_ros.ros.peers import Peers, check_peer_topics
from hashvpr_ros.ros.poses import PoseSource, check_pose_source, create_pose_source
from hashvpr_ros.ros.progress import Progress
from hashvpr_ros.ros.publishers import Publishers, map_status
from hashvpr_ros.ros.rclpy_internals import (
    answer_whatever_happens,
    answer_while_busy,
    state_label,
)
from hashvpr_ros.ros.runtime import Runtime
from hashvpr_ros.ros.services import Services
from hashvpr_ros.ros.transitions import SUCCESS, transition
from hashvpr_ros.ros.verdicts import Verdicts
from hashvpr_ros.types import Decision


@dataclass(frozen=True)
class _Decoded:
    """An image that is to be judged."""

    arrival: Arrival
    image: NDArray[np.uint8]
    decode_ms: float


class VprNode(LifecycleNode):
    """Recognises places: images in, hypotheses and loop closures out."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("vpr_node", **kwargs)
        self._runtime: Runtime | None = None
        self._closing: Runtime | None = None  # until its map is written
        self._cameras: Cameras | None = None
        self._taking = False  # images count; set before the first may come
        self._doing = ""  # what a long configure does now, for diagnostics
        self._refused = ""  # why it could not be configured or activated, for diagnostics
        self._ending = threading.Event()
        self._poses: PoseSource | None = None
        self._headings: TfHeadings | None = None
        self._peers: Peers | None = None
        self._topics: dict[str, str] = {}
        self._stats = Stats()
        self._hints = HintOnce(
            lambda camera, hint: self.get_logger().warning(f"camera {camera}: {hint}")
        )
        self.failures = Failures(self._log_error, self._stats.failed)
        self._outputs: Publishers | None = None
        self._verdicts: Verdicts | None = None
        self._settings = Parameters(
            self, lambda: self.state_label() == "unconfigured", self._on_live
        )
        for sentence in (
            *self._settings.unknown(),
            *without_effect(sys.argv, self.get_fully_qualified_name()),
        ):
            self.get_logger().warning(sentence)
        self.has_lost_keyframes = False  # which could not be written when a map was closed
        self.transition_group = MutuallyExclusiveCallbackGroup()  # one transition at a time
        self.transition_lock = threading.Lock()  # held by what makes one, also after the executor
        answer_while_busy(self, self.transition_group)
        Services(
            self,
            lambda: self._runtime,
            self._map_status,
            lambda: next(iter(self._topics), "camera"),
            self._settings.set_mode,
            self._settings.allowed_dirs,
            self.failures,
        )
        answer_whatever_happens(self, self.failures)
        self._watch = StampWatch()
        self._clock_watch = ClockWatch(self)
        self._reporter = Reporter(self.get_logger())
        self._progress = Progress(self.get_logger())
        self._bond: ManagerBond | None = None
        self._timer_group = MutuallyExclusiveCallbackGroup()
        # Not the node's clock: simulated time may stand still, and this must go on then.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._pub_diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._diagnostics_timer = self.create_timer(
            self._settings.config().publish.diagnostics_period_s,
            self._on_diagnostics,
            self._timer_group,
            clock=self._steady,
        )
        self.create_timer(1.0, self._on_status, self._timer_group, clock=self._steady)

    @property
    def autostart(self) -> bool:
        """Whether the node is to take itself to active."""
        return self._settings.config().autostart

    def end_soon(self) -> str:
        """Take no more images, begin nothing that takes long, and break off what does.

        Returns:
            what a configure does that takes minutes, "" for nothing.
        """
        self._ending.set()
        self._taking = False
        runtime = self._runtime
        if runtime is not None:
            runtime.interrupt()
        return self._doing

    def save_now(self, timeout_s: float) -> bool:
        """Write what waits for the map's file, whatever state the node is in.

        Returns:
            whether nothing waits any more.
        """
        runtime = self._runtime or self._closing
        return runtime is None or runtime.save_now(timeout_s)

    def state_label(self) -> str:
        """The present lifecycle state."""
        return state_label(self)

    def _log_error(self, text: str) -> None:
        self.get_logger().error(text)

    # Transitions

    @transition
    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Load engine and map; FAILURE leaves the node unconfigured."""
        try:
            self._configure(self._settings.config())
        except BaseException as e:
            self._refused = f"cannot configure: {e}"
            self._release()
            raise
        self._refused = ""
        return super().on_configure(state)

    def _configure(self, config: Config) -> None:
        cameras = camera_names(config)
        self._topics = {n: image_topic(t, config.input.compressed) for n, t in cameras.items()}
        camera_headings(config)
        check_pose_source(config.pose)
        check_heading_frame(config.input.heading_frame)
        self._check_topics(config)
        check_peer_topics(self, config.input.descriptor_topics)
        self._diagnostics_timer.timer_period_ns = round(config.publish.diagnostics_period_s * 1e9)
        self._diagnostics_timer.reset()
        # Before what may take minutes, and holds the map: they may be refused.
        self._outputs = Publishers(self)
        self._verdicts = Verdicts(self, lambda: self._runtime, self._stats)
        started = time.monotonic()
        try:
            runtime = Runtime(
                config, self._on_images, self.failures.report, self._on_progress, self._ending
            )
        finally:
            self._doing = ""
        self._runtime = runtime
        self._watch = StampWatch()
        self._start_counting()
        now = self._settings.config()
        if now != config:  # a live parameter was set meanwhile
            runtime.set_config(now)
        self.get_logger().info(
            f"configured in {time.monotonic() - started:.1f} s: engine {runtime.info.name} on "
            f"{runtime.info.provider}, map {runtime.map.path or '(in memory)'} with "
            f"{len(runtime.map)} keyframes, index {runtime.map.index_in_use}, mode "
            f"{runtime.mode.value}, images decoded by {conversions.decoder_name()}; "
            f"probabilities of matches: {runtime.recognizer.probability_source}"
        )
        self._on_status()

    def _check_topics(self, config: Config) -> None:
        """Refuse what is no topic name, before anything is made.

        Raises:
            ConfigError: one is none.
        """
        names = dict.fromkeys(self._topics.values(), "input.image_topics")
        if config.pose.source == "odometry":
            names[config.pose.odometry_topic] = "pose.odometry_topic"
        names |= dict.fromkeys(config.input.descriptor_topics, "input.descriptor_topics")
        for topic, parameter in names.items():
            try:
                validate_topic_name(topic)
                # Names that are good by themselves may be none with the namespace before them.
                self.resolve_topic_name(topic)
            except Exception as e:  # rclpy has several kinds, and changes them
                raise ConfigError(
                    f"{parameter}: {topic!r} is not a topic name: {reason_of(e)}; correct it"
                ) from e

    def _on_progress(self, sentence: str) -> None:
        """Show what a long configure does, which is also logged; from any thread.

        Raises:
            HashVprError: a build would begin now, or after it a map be opened, and the process
                ends.
        """
        begins = not sentence or not self._doing
        self._doing = sentence
        # First said, then asked, and `end_soon` the other way round: so neither misses a build.
        if begins and self._ending.is_set():
            raise HashVprError("the node ends")

    def _start_counting(self) -> None:
        self._stats.start({n: self.resolve_topic_name(t) for n, t in self._topics.items()})

    @transition
    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Subscribe."""
        config = self._settings.config()
        assert self._runtime is not None
        self._start_counting()
        result = super().on_activate(state)  # publishers first: no image's result is lost
        self._taking = True
        try:
            self._poses = create_pose_source(self, config.pose)
            self._cameras = Cameras(
                self,
                self._topics,
                config.input.compressed,
                self._stats,
                self._watch,
                self._runtime.offer,
            )
            if config.input.descriptor_topics:
                self._peers = Peers(
                    self,
                    config.input.descriptor_topics,
                    self._runtime,
                    self._stats,
                    self._publish_peer,
                    self.failures.report,
                )
            if config.input.heading_frame and not config.input.camera_headings:
                self._headings = TfHeadings(
                    self, config.input.heading_frame, self._runtime.set_headings
                )
        except BaseException as e:
            self._refused = f"cannot activate: {e}"
            self._unsubscribe()
            raise
        self._refused = ""
        self._progress.start()
        self._bond = form_bond(self)
        topics = ", ".join(self.resolve_topic_name(t) for t in self._topics.values())
        self.get_logger().info(f"active: waiting for images on {topics}")
        return result

    @transition
    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Stop taking images; what was added to the map is written."""
        self._unsubscribe()
        try:
            assert self._runtime is not None
            self._runtime.commit()
        except Exception as e:
            # The node does stop; the keyframes are kept and written when that is possible again.
            self.failures.report(e, doing="deactivate")
        return super().on_deactivate(state)

    @transition
    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Write the map and free everything."""
        self._release()
        return SUCCESS

    @transition
    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Write the map and free everything, from any state."""
        self._release()
        return SUCCESS

    @transition
    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """Free everything; the node is unconfigured then and can be configured again."""
        self._release()
        return SUCCESS

    def _unsubscribe(self) -> None:
        self._taking = False
        bond, self._bond = self._bond, None
        if bond is not None:
            bond.close()
        cameras, self._cameras = self._cameras, None
        if cameras is not None:
            cameras.close()
        poses, self._poses = self._poses, None
        if poses is not None:
            poses.close()
        headings, self._headings = self._headings, None
        if headings is not None:
            headings.close()
        peers, self._peers = self._peers, None
        if peers is not None:
            peers.close()
        if self._runtime is not None:
            for camera in self._runtime.worker.discard_images():
                self._stats.dropped(camera)

    def _release(self) -> None:
        self._unsubscribe()
        self._closing, self._runtime = self._runtime, None
        if self._closing is not None:
            problem = self._closing.close()
            self._closing = None
            if problem is not None:
                self.has_lost_keyframes = True
                self.get_logger().error(f"keyframes were lost: {problem}")
        outputs, self._outputs = self._outputs, None
        if outputs is not None:
            outputs.close()
        verdicts, self._verdicts = self._verdicts, None
        if verdicts is not None:
            verdicts.close()

    # Images; in the worker's thread

    def _on_images(self, arrivals: dict[str, Arrival]) -> None:
        """Judge the images of an instant."""
        runtime = self._runtime
        if runtime is None or not self._taking:
            for camera in arrivals:
                self._stats.dropped(camera)
            return
        map_changes = runtime.map_changes
        decoded = {c: d for c, a in arrivals.items() if (d := self._decode(c, a)) is not None}
        if not decoded:
            return
        try:
            self._process(runtime, decoded)
        except BaseException as e:
            # A candidate of a map that was cleared meanwhile is no failure, nor is a deactivate.
            meanwhile = runtime.map_changes != map_changes or not self._taking
            if isinstance(e, HashVprError) and meanwhile:
                for camera in decoded:
                    self._stats.dropped(camera)
            else:
                self.failures.report(e, *decoded, doing="the judging of images")

    def _decode(self, camera: str, arrival: Arrival) -> _Decoded | None:
        """Pixels of an image; None where they are bad, which is said and counted."""
        started = time.monotonic()
        try:
            image = conversions.decode(arrival.message, self._hints.of(camera))
        except ImageError as e:
            self._stats.bad(camera, str(e))
            self.get_logger().warning(
                f"bad image of camera {camera}: {e}", throttle_duration_sec=10.0
            )
            return None
        except BaseException as e:
            self.failures.report(e, camera, doing=f"the decoding of an image of camera {camera}")
            return None
        return _Decoded(arrival, image, 1e3 * (time.monotonic() - started))

    def _process(self, runtime: Runtime, decoded: dict[str, _Decoded]) -> None:
        stamps_ns = {camera: d.arrival.stamp_ns for camera, d in decoded.items()}
        stamp_ns = min(stamps_ns.values())
        poses = self._poses
        if self._watch.begins(next(iter(decoded.values())).arrival.run):
            runtime.start_session()
        pose = None
        if poses is not None:
            arrived_s = min(d.arrival.arrived_s for d in decoded.values())
            pose = poses.at(stamp_ns, arrived_s, runtime.config.pose)
            if pose is None:
                for camera in decoded:
                    self._stats.cameras[camera].without_pose += 1
        headings = self._headings
        if headings is not None:
            for camera, d in decoded.items():
                headings.see(camera, d.arrival.message.header.frame_id)
        images = {camera: d.image for camera, d in decoded.items()}
        decisions = runtime.recognizer.process_instant(images, stamp_ns, pose, stamps_ns)
        for camera, decision in decisions.items():
            self._publish(runtime, decision, decoded[camera])

    def _publish(self, runtime: Runtime, decision: Decision, decoded: _Decoded) -> None:
        message, camera = decoded.arrival.message, decision.camera
        total_ms = 1e3 * (time.monotonic() - decoded.arrival.arrived_s)
        hypotheses = conversions.to_hypotheses(
            decision, message.header, decoded.decode_ms, total_ms
        )
        self._stats.processed(camera, hypotheses.times, decision.accepted)
        self._progress.decided(decision, total_ms)
        if decision.store_error:
            runtime.not_written(MapError(decision.store_error))
        outputs = self._outputs
        if outputs is None or not self._taking:
            return  # deactivated meanwhile
        outputs.publish_image(
            decision,
            hypotheses,
            message.header,
            runtime.info.fingerprint if runtime.config.publish.descriptors else "",
        )

    def _publish_peer(self, decision: Decision, message: PlaceDescriptor) -> None:
        """What an image of another robot shows; in the worker's thread."""
        outputs = self._outputs
        if outputs is None or not self._taking:
            return  # deactivated meanwhile
        decision = dataclasses.replace(decision, keyframe_id=message.keyframe_id)
        outputs.publish_peer(decision, message.header, message.map_id)

    # What is published periodically, and live parameters

    def _on_live(self, config: Config) -> None:
        if self._runtime is not None:
            self._runtime.set_config(config)

    def _map_status(self) -> MapStatus:
        runtime = self._runtime
        status = MapStatus() if runtime is None else map_status(runtime)
        status.header.stamp = self.get_clock().now().to_msg()
        return status

    def _on_status(self) -> None:
        runtime, outputs = self._runtime, self._outputs
        if runtime is None or outputs is None:
            return
        try:
            self._progress.summarise(self._stats, len(runtime.map))
            status = self._map_status()
            if left_out := runtime.map.left_out:
                self.get_logger().warning(
                    f"map.max_index_mb is reached: {left_out} of {status.keyframes} keyframes, "
                    "the most redundant ones, are not searched; the file keeps them",
                    once=True,
                )
            outputs.publish_status(status)
        except Exception:
            # The map or the publisher may go while a transition runs.
            if (self._runtime, self._outputs) == (runtime, outputs):
                raise

    def _inputs(self) -> list[Watched]:
        """What the node listens to now."""
        cameras, poses, headings = self._cameras, self._poses, self._headings
        peers, verdicts = self._peers, self._verdicts
        inputs: list[Watched] = []
        if cameras is not None:
            inputs += cameras.inputs
        inputs += [each for each in (poses, headings) if each is not None]
        if peers is not None:
            inputs += peers.inputs
        if verdicts is not None:
            inputs.append(verdicts.input)
        if self._clock_watch.is_used:
            inputs.append(self._clock_watch)
        return inputs

    def _on_diagnostics(self) -> None:
        cameras, runtime = self._cameras, self._runtime
        try:
            inputs = self._reporter.report(self._inputs(), self._settings.config().input)
            message = diagnostics(
                self.get_fully_qualified_name().lstrip("/"),
                self.state_label(),
                self._stats,
                runtime,
                inputs,
                self._doing,
                self._refused,
            )
            message.header.stamp = self.get_clock().now().to_msg()
            self._pub_diagnostics.publish(message)
        except Exception:
            # Cameras or map may go while a transition runs: the next message comes soon.
            if (self._cameras, self._runtime) == (cameras, runtime):
                raise
