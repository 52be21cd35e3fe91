"""When a message was made: its stamp, or the time of its arrival where it has none."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node

from hashvpr_ros.ros.conversions import stamp_to_ns


def stamp_or_arrival_ns(node: Node, stamp: Any) -> tuple[int, str]:
    """The stamp of a message that has just arrived.

    Returns:
        the stamp, nanoseconds, and "" or, where it has none, which clock gave the time of arrival.
        The node's own stands at 0 while simulated time is asked for and nobody publishes /clock.
    """
    stamp_ns = stamp_to_ns(stamp)
    if stamp_ns > 0:
        return stamp_ns, ""
    now_ns = node.get_clock().now().nanoseconds
    if now_ns > 0:
        return now_ns, "the node's clock"
    return time.time_ns(), "the system's clock, because the node's clock stands at 0"


def apart_text(seconds: float) -> str:
    """How far stamps are apart, as `1.7e9 s` or `0.35 s`, without a sign."""
    seconds = abs(seconds)
    if seconds < 1e5:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    mantissa, exponent = f"{seconds:.1e}".split("e")
    return f"{mantissa}e{int(exponent)} s"
