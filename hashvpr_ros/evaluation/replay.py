"""Replays images to the recognizer as the node does, without ROS and as fast as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.mapping.sessions import StampWatch
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Decision


class _Frames(Protocol):
    def __iter__(self) -> Iterator[Frame]: ...


def replay(
    frames: _Frames, recognizer: Recognizer, place_map: PlaceMap, cameras: Mapping[str, str]
) -> Iterator[Decision]:
    """The decisions of every image, in the order of the images.

    As in the node, stamps that start again begin a new session. The node may see images of several
    cameras in another order, and it drops images when it is behind; for one camera and without
    drops its decisions are the same, bit for bit, where it runs the same engine.

    Args:
        frames: whose `name` is their topic.
        recognizer: with the map.
        place_map: in use; flushed when all is done.
        cameras: name of the camera of each topic.

    Raises:
        HashVprError: see `Recognizer.process`.
    """
    watch = StampWatch()
    for frame in frames:
        camera = cameras[frame.name]
        run, _ = watch.see(camera, frame.stamp_ns)
        if watch.begins(run):
            recognizer.reset_sequence()
            if not place_map.read_only:
                place_map.start_session()
        yield recognizer.process(frame.rgb, frame.stamp_ns, frame.pose, camera)
    if not place_map.read_only:
        place_map.flush()
