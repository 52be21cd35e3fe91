"""Replays images to the recognizer as the node does, without ROS and as fast as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.mapping.instants import is_together
from hashvpr_ros.mapping.sessions import StampWatch
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Decision


class _Frames(Protocol):
    def __iter__(self) -> Iterator[Frame]: ...


def replay(
    frames: _Frames,
    recognizer: Recognizer,
    place_map: PlaceMap,
    cameras: Mapping[str, str],
    sync_s: float = 0.0,
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
        sync_s: as `input.sync_s`.

    Raises:
        HashVprError: see `Recognizer.process`.
    """
    watch = StampWatch()
    for instant in _instants(frames, cameras, watch, sync_s):
        if watch.begins(instant.run):
            recognizer.reset_sequence()
            if not place_map.read_only:
                place_map.start_session()
        first = min(instant.frames.values(), key=lambda f: f.stamp_ns)
        images = {camera: f.rgb for camera, f in instant.frames.items()}
        stamps_ns = {camera: f.stamp_ns for camera, f in instant.frames.items()}
        yield from recognizer.process_instant(
            images, first.stamp_ns, first.pose, stamps_ns
        ).values()
    if not place_map.read_only:
        place_map.flush()


@dataclass
class _Instant:
    run: int
    frames: dict[str, Frame]  # by camera


def _instants(
    frames: _Frames, cameras: Mapping[str, str], watch: StampWatch, sync_s: float
) -> Iterator[_Instant]:
    """Gather frames that follow one another and are of one instant."""
    open_: _Instant | None = None
    for frame in frames:
        camera = cameras[frame.name]
        run, _ = watch.see(camera, frame.stamp_ns)
        if open_ is not None:
            first = next(iter(open_.frames.values()))
            if (
                run == open_.run
                and camera not in open_.frames
                and is_together(frame.stamp_ns, first.stamp_ns, sync_s)
            ):
                open_.frames[camera] = frame
            else:
                yield open_
                open_ = None
        if open_ is None:
            open_ = _Instant(run, {camera: frame})
        if len(open_.frames) == len(set(cameras.values())):
            yield open_
            open_ = None
    if open_ is not None:
        yield open_
