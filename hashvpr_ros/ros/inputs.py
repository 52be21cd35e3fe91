"""What the node listens to, and what is wrong with it: for the log and /diagnostics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import ROSClock
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSPolicyKind, QoSProfile, qos_check_compatible

from hashvpr_ros.config import InputConfig
from hashvpr_ros.ros.qos import overridable

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# A problem that lasts is an error after this many times `input.stale_after_s`.
ERROR_AFTER = 10
# A problem that lasts is logged again after this time, one that becomes another one after the
# second.
_REPEAT_S, _REPEAT_OTHER_S = 30.0, 5.0


@dataclass(frozen=True)
class Problem:
    """What is wrong with an input."""

    kind: str  # short and without numbers: two problems of one kind are one that lasts
    text: str  # one sentence with the topic and what to do
    is_error: bool = False


class Watched(Protocol):
    """An input that can say what is wrong with it."""

    @property
    def label(self) -> str:
        """Its name in diagnostics, as `camera left`."""
        ...

    @property
    def recovered(self) -> str:
        """What the log says when the problem is over."""
        ...

    def problem(self, config: InputConfig) -> Problem | None:
        """What is wrong now."""
        ...

    def state(self) -> str:
        """What diagnostics say where nothing is wrong."""
        ...

    def values(self) -> dict[str, Any]:
        """What diagnostics show of it."""
        ...


class Input:
    """A subscription, when it was last heard, and why it is silent.

    Args:
        label: its name in diagnostics.
        noun: what comes on it, as `image`.
        kind: class of the messages.
        topic: as the parameter has it.
        on_message: called with each message.
        remedy: where nobody publishes, or something else is published.
        optional: whether it may be silent. Then only another type or QoS is a problem.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(
        self,
        node: Node,
        label: str,
        noun: str,
        kind: Any,
        topic: str,
        on_message: Callable[[Any], None],
        qos: QoSProfile,
        *,
        remedy: str,
        optional: bool = False,
    ) -> None:
        self.label = label
        self.topic = node.resolve_topic_name(topic)
        self.recovered = f"{noun}: messages come on {self.topic} again"
        self._node = node
        self._noun = noun
        self._type = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._on_message = on_message
        self._remedy = remedy
        self._optional = optional
        self._last_s = time.monotonic()  # of the start before the first message
        self._received = 0
        with overridable(topic) as options:
            self._subscription = node.create_subscription(
                kind,
                topic,
                self._on_any,
                qos,
                # Of its own: rclpy (7.1) leaves a group blocked when an event's owner is destroyed
                # between the event and its callback.
                callback_group=MutuallyExclusiveCallbackGroup(),
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
                qos_overriding_options=options,
            )

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def _on_any(self, message: Any) -> None:
        self._last_s = time.monotonic()
        self._received += 1
        self._on_message(message)

    def _on_incompatible(self, event: Any) -> None:
        try:
            policy = QoSPolicyKind(event.last_policy_kind).name.lower()
        except ValueError:
            policy = str(event.last_policy_kind)
        self._node.get_logger().warning(
            f"a publisher on {self.topic} has an incompatible QoS ({policy}), so its messages do "
            "not arrive: change it there, or here by the qos_overrides parameters"
        )

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come at all."""
        return not self._received

    def problem(self, config: InputConfig) -> Problem | None:
        """Why nothing comes, where nothing has come for `input.stale_after_s`."""
        silent_s = time.monotonic() - self._last_s
        if silent_s <= config.stale_after_s:
            return None
        kind, why = self._why()
        if self._optional and kind not in ("type", "qos"):
            return None
        return Problem(
            kind,
            f"no {self._noun} on {self.topic} for {silent_s:.0f} s: {why}",
            not self._optional and silent_s > ERROR_AFTER * config.stale_after_s,
        )

    def _why(self) -> tuple[str, str]:
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        if not publishers:
            return "nobody", f"nobody publishes there; {self._remedy}"
        of_kind = [p for p in publishers if p.topic_type == self._type]
        if not of_kind:
            kinds = ", ".join(sorted({p.topic_type for p in publishers}))
            return "type", f"its type is {kinds}, not {self._type}; {self._remedy}"
        reasons = []
        for publisher in of_kind:
            compatible, reason = qos_check_compatible(
                publisher.qos_profile, self._subscription.qos_profile
            )
            if compatible != QoSCompatibility.ERROR:
                return "idle", (
                    f"publishers there: {len(of_kind)}, but they send nothing that arrives"
                )
            reasons.append(reason.removeprefix("ERROR: ").rstrip("; "))
        return "qos", (
            f"incompatible QoS: {reasons[0]}; change it there, or here by the qos_overrides "
            "parameters"
        )

    def state(self) -> str:
        """What diagnostics say where nothing is wrong."""
        return "no message yet" if self.is_silent else "messages come in"

    def values(self) -> dict[str, Any]:
        """What diagnostics show of it."""
        return {"topic": self.topic, "received": self._received}


class ClockWatch:
    """Says when simulated time is asked for and does not come."""

    label = "clock"
    recovered = "/clock: simulated time comes"

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since_s: float | None = None  # when the clock was first seen at 0

    @property
    def is_used(self) -> bool:
        """Whether the node's time is simulated."""
        clock = self._node.get_clock()
        return isinstance(clock, ROSClock) and clock.ros_time_is_active

    def problem(self, config: InputConfig) -> Problem | None:
        """Whether the time has stood at 0 for `input.stale_after_s`."""
        now_s = time.monotonic()
        if not self.is_used or self._node.get_clock().now().nanoseconds > 0:
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s <= config.stale_after_s:
            return None
        there = self._node.get_publishers_info_by_topic("/clock")
        why = "what is published on /clock does not arrive" if there else "nobody publishes /clock"
        return Problem(
            "clock",
            f"use_sim_time is true and {why}, so the node's time stands at 0: start the simulator "
            "or `ros2 bag play --clock`, or set use_sim_time to false",
        )

    def state(self) -> str:
        """What diagnostics say where nothing is wrong."""
        return "simulated time" if self.is_used else "system time"

    def values(self) -> dict[str, Any]:
        """What diagnostics show of it."""
        return {
            "topic": "/clock",
            "now_s": f"{self._node.get_clock().now().nanoseconds / 1e9:.3f}",
        }


class Reporter:
    """Logs what is wrong with inputs: at first, when it changes, now and then, when it is over.

    Args:
        logger: of the node.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._said: dict[str, tuple[str, float]] = {}  # kind and when, by label

    def report(
        self, inputs: Iterable[Watched], config: InputConfig
    ) -> list[tuple[Watched, Problem | None]]:
        """What is wrong with each, which is also logged."""
        now_s = time.monotonic()
        found = [(each, each.problem(config)) for each in inputs]
        for each, problem in found:
            said, said_s = self._said.get(each.label, ("", float("-inf")))
            if problem is None:
                if said:
                    del self._said[each.label]
                    self._logger.info(each.recovered)
            elif now_s - said_s > (_REPEAT_S if problem.kind == said else _REPEAT_OTHER_S):
                self._said[each.label] = problem.kind, now_s
                if problem.is_error:
                    self._logger.error(problem.text)
                else:
                    self._logger.warning(problem.text)
        return found
