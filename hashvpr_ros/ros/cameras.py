"""The image subscriptions of an active node, and what is wrong with what they get."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from hashvpr_ros.config import InputConfig
from hashvpr_ros.mapping.sessions import JUMP_NS, StampWatch
from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.ros.inputs import Input, Problem
from hashvpr_ros.ros.stamps import apart_text, stamp_or_arrival_ns

# Images of two cameras that arrive together are stamped by two clocks when their stamps are
# further apart than this. Encoding and the network delay one camera by less.
_OTHER_CLOCK_S = 2.0
_SLOW = 0.5  # of `input.expected_rate_hz`


@dataclass(frozen=True)
class Arrival:
    """An image message as it waits for the engine."""

    message: Any
    stamp_ns: int  # of the header, or of the arrival where the header has none
    arrived_s: float  # monotonic
    run: int  # how often the stamps have started again before it


def _sensor_qos() -> QoSProfile:
    """rclpy's profile for sensors, made anew: see `overridable`."""
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class Cameras:
    """Subscriptions to all cameras.

    Args:
        topics: topic by camera name.
        offer: called with (camera, Arrival); returns whether an older image was replaced.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(
        self,
        node: Node,
        topics: dict[str, str],
        compressed: bool,
        stats: Stats,
        watch: StampWatch,
        offer: Callable[[str, Arrival], bool],
    ) -> None:
        self._node = node
        self._stats = stats
        self._offer = offer
        self._watch = watch
        self._said: set[str] = set()
        # Stamp minus time of arrival, by camera: how far its clock is from that of this process.
        self._ahead_ns: dict[str, int] = {}
        self.inputs: list[_CameraInput] = []
        self._closed = False
        kind = CompressedImage if compressed else Image
        try:
            for camera, topic in topics.items():
                self.inputs.append(self._listen(camera, topic, kind))
        except BaseException:
            self.close()
            raise

    def _listen(self, camera: str, topic: str, kind: Any) -> _CameraInput:
        return _CameraInput(
            self,
            camera,
            self._stats,
            Input(
                self._node,
                f"camera {camera}",
                "image",
                kind,
                topic,
                lambda message: self._on_image(camera, message),
                _sensor_qos(),
                remedy="start the camera, or correct input.image_topics or input.compressed",
            ),
        )

    def close(self) -> None:
        """Stop taking images."""
        self._closed = True
        for each in self.inputs:
            each.input.close()
        self.inputs = []

    def _on_image(self, camera: str, message: Any) -> None:
        if self._closed:
            return
        self._stats.arrived(camera)
        stamp_ns, clock = stamp_or_arrival_ns(self._node, message.header.stamp)
        if clock:
            self._say_once(
                f"{camera} {clock}",
                f"images of camera {camera} have no stamp: their time of arrival is used, by "
                f"{clock}",
            )
        self._ahead_ns[camera] = stamp_ns - time.monotonic_ns()
        run, back_ns = self._watch.see(camera, stamp_ns)
        if back_ns > JUMP_NS:
            self._node.get_logger().warning(
                f"stamps of camera {camera} went back by {back_ns / 1e9:.1f} s (was a bag "
                "restarted?): a new session begins"
            )
        elif back_ns:
            self._say_once(f"{camera} order", f"images of camera {camera} come out of order")
        if self._offer(camera, Arrival(message, stamp_ns, time.monotonic(), run)):
            self._stats.dropped(camera)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._node.get_logger().warning(text)

    def other_clock(self, camera: str) -> Problem | None:
        """Whether a camera stamps by another clock than the first one."""
        first = next(iter(self._ahead_ns), camera)
        if camera not in self._ahead_ns or camera == first:
            return None
        apart_s = (self._ahead_ns[camera] - self._ahead_ns[first]) / 1e9
        if abs(apart_s) <= _OTHER_CLOCK_S:
            return None
        return Problem(
            "clock",
            f"stamps of camera {camera} are {apart_text(apart_s)} from those of camera {first}, "
            "so they never form a frame set: use the same clock for both drivers",
        )


class _CameraInput:
    """One camera: silent, slow, or of another clock than the others."""

    def __init__(self, cameras: Cameras, camera: str, stats: Stats, input_: Input) -> None:
        self._cameras = cameras
        self._camera = camera
        self._stats = stats
        self.input = input_
        self.label = input_.label
        self.recovered = f"images come on {input_.topic} again"

    def problem(self, config: InputConfig) -> Problem | None:
        """See `Watched`."""
        return (
            self.input.problem(config)
            or self._slow(config.expected_rate_hz)
            or self._cameras.other_clock(self._camera)
        )

    def _slow(self, expected_hz: float) -> Problem | None:
        if not expected_hz:
            return None
        rate_hz = self._stats.cameras[self._camera].lasting_rate_hz(time.monotonic(), expected_hz)
        if rate_hz is None or rate_hz >= _SLOW * expected_hz:
            return None
        return Problem(
            "slow",
            f"images on {self.input.topic} come at {rate_hz:.1f} Hz, but {expected_hz:g} Hz are "
            "expected (input.expected_rate_hz): check the camera, its exposure and the network",
        )

    def state(self) -> str:
        """See `Watched`; diagnostics have this from `Stats`."""
        return self.input.state()

    def values(self) -> dict[str, Any]:
        """See `Watched`; diagnostics have these from `Stats`."""
        return self.input.values()
