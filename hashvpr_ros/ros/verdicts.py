"""What back ends say of the loop closures that the node has published."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.msg import ClosureVerdict
from hashvpr_ros.ros.conversions import stamp_to_ns
from hashvpr_ros.ros.diagnostics import Stats
from hashvpr_ros.ros.inputs import Input
from hashvpr_ros.ros.runtime import Runtime
from hashvpr_ros.setting import shown
from hashvpr_ros.types import Verdict


class Verdicts:
    """The subscription to them, of a configured node.

    Args:
        runtime: gives the runtime, or None where the node is not configured.
        stats: counts them.

    Raises:
        ConfigError: a qos_overrides parameter has a value that is none.
    """

    def __init__(
        self,
        node: Node,
        runtime: Callable[[], Runtime | None],
        stats: Stats,
    ) -> None:
        self._node = node
        self._runtime = runtime
        self._stats = stats
        self.input = Input(
            node,
            "verdicts",
            "verdict",
            ClosureVerdict,
            "~/verdicts",
            self._on_verdict,
            QoSProfile(depth=100),
            remedy="correct what the back end publishes",
            optional=True,  # there may be no back end
        )

    def close(self) -> None:
        """Stop listening."""
        self.input.close()

    def _on_verdict(self, message: ClosureVerdict) -> None:
        """Hand over what a back end says of a closure."""
        runtime = self._runtime()
        if runtime is None:
            return
        try:
            self._stats.judged(_take(runtime, message))
        except ConfigError as e:
            self._stats.judged(None)
            self._node.get_logger().warning(f"verdict ignored: {e}", throttle_duration_sec=10.0)


def _take(runtime: Runtime, message: ClosureVerdict) -> Verdict:
    try:
        verdict = Verdict(message.verdict)
    except ValueError:
        choices = ", ".join(v.value for v in Verdict)
        raise ConfigError(
            f"unknown verdict {shown(message.verdict)}; give one of {choices}"
        ) from None
    if message.map_id != runtime.map.map_id:
        raise ConfigError(
            f"it is of map {shown(message.map_id)}, and {runtime.map.map_id} is in use; copy "
            "map_id from the LoopClosure"
        )
    stamp_ns = stamp_to_ns(message.query_stamp)
    match_id = message.match_keyframe_id
    if not runtime.recognizer.verdict(
        stamp_ns, message.query_camera, match_id, verdict, message.query_map_id
    ):
        raise ConfigError(
            f"no closure of camera {shown(message.query_camera)} at {stamp_ns / 1e9:.3f} s with "
            f"keyframe {match_id} was published recently; copy query_map_id, query_stamp, "
            "query_camera and match_keyframe_id from the LoopClosure"
        )
    return verdict
