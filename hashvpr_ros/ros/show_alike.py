"""Shows in RViz which places of a map look alike: `hashvpr audit MAP --rviz` starts it.

python -m hashvpr_ros.ros.show_alike

Reads one line of JSON: `frames`, for each frame the positions of `keyframes` and of the `pairs`
that look alike (`first`, `second`, `text` or null), all in metres. Publishes the markers for
whoever is there or comes later, until its input ends or it is interrupted.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import rclpy
from geometry_msgs.msg import Point, Vector3
from rclpy.executors import ExternalShutdownException
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

TOPIC = "~/alike"
_QUIET, _WRONG = (0.5, 0.5, 0.5, 0.6), (0.9, 0.2, 0.15, 0.9)
_WIDTH_M, _PLACE_M, _TEXT_M = 0.1, 0.6, 0.8


def to_markers(frames: dict[str, Any]) -> MarkerArray:
    """Keyframes as points, pairs as lines between spheres, in the frame of each."""
    # What an earlier run has shown goes.
    markers = [Marker(action=Marker.DELETEALL)]

    def add(frame: str, name: str, kind: int, size_m: float, **fields: Any) -> None:
        marker = Marker(ns=name, id=len(markers), type=kind, **fields)
        marker.header.frame_id = frame  # without a stamp: by the newest transform
        marker.pose.orientation.w = 1.0
        marker.scale = Vector3(x=size_m, y=size_m, z=size_m)
        markers.append(marker)

    for frame, shown in frames.items():
        ends = [end for pair in shown["pairs"] for end in (pair["first"], pair["second"])]
        keyframes = _points(shown["keyframes"])
        add(frame, "keyframes", Marker.POINTS, _WIDTH_M, points=keyframes, color=_color(_QUIET))
        if not ends:  # RViz complains of lines without points
            continue
        points, color = _points(ends), _color(_WRONG)
        add(frame, "pairs", Marker.LINE_LIST, _WIDTH_M, points=points, color=color)
        add(frame, "places", Marker.SPHERE_LIST, _PLACE_M, points=points, color=color)
        for pair in shown["pairs"]:
            if pair["text"] is not None:
                kind, text = Marker.TEXT_VIEW_FACING, pair["text"]
                add(frame, "texts", kind, _TEXT_M, text=text, color=_color((1.0,) * 4))
                (markers[-1].pose.position,) = _points([pair["first"]])
                markers[-1].pose.position.z += _PLACE_M
    return MarkerArray(markers=markers)


def _points(positions: Sequence[Sequence[float]]) -> list[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in positions]


def _color(rgba: Sequence[float]) -> ColorRGBA:
    return ColorRGBA(**dict(zip("rgba", rgba, strict=True)))


def main() -> None:
    """Read, publish, stay."""
    frames = json.loads(sys.stdin.readline())["frames"]
    rclpy.init()
    node = rclpy.create_node("hashvpr_audit")
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_publisher(MarkerArray, TOPIC, latched).publish(to_markers(frames))

    def end_with_input() -> None:
        sys.stdin.read()  # ends with the process that started this one, however that ended
        rclpy.try_shutdown()

    threading.Thread(target=end_with_input, daemon=True).start()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
