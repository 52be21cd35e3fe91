"""The node's Runtime without ROS and without a network, so that a start takes milliseconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hashvpr_ros.config import from_flat
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.errors import HashVprError
from hashvpr_ros.ros import runtime
from hashvpr_ros.types import Pose

DIM = 32
MODEL = EngineInfo("made up", "ab" * 32, 8, 8, DIM, "double")
START_NS = 17 * 10**17


class EngineDouble:
    """A double of an engine: the number that `shown` wrote into an image decides what it gives."""

    info = MODEL

    def describe(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [self._of(int.from_bytes(i[0, 0].tobytes(), "big")) for i in images]
        return np.stack([code for code, _ in found]), np.stack([feature for _, feature in found])

    def _of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(number)
        feature = rng.standard_normal(DIM).astype(np.float32)
        return rng.integers(0, 256, 64, np.uint8), feature / np.linalg.norm(feature)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def shown(number: int) -> np.ndarray:
    """An image of a place by its number."""
    return np.broadcast_to(np.frombuffer(number.to_bytes(3, "big"), np.uint8), (8, 8, 3)).copy()


class _Listening(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Gives what the package logs meanwhile as a warning or worse; nothing goes elsewhere."""
    said: list[str] = []
    handler, log = _Listening(said), logging.getLogger("hashvpr_ros")
    log.addHandler(handler)
    log.propagate = False
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = True


def start(
    path: Path, say: Callable[[HashVprError], None] = lambda error: None, **parameters: Any
) -> runtime.Runtime:
    """What a node owns after configure.

    Args:
        say: called with what the node would log as an error.

    Raises:
        HashVprError: the map is refused.
    """
    values = {"map.path": str(path), "keyframes.min_period_s": 0.0}
    values |= {"keyframes.min_novelty_bits": 0, "keyframes.max_period_s": 0.0}
    values |= {k.replace("__", "."): v for k, v in parameters.items()}
    before = runtime.open_engine
    runtime.open_engine = lambda config, progress: EngineDouble()
    try:
        return runtime.Runtime(
            from_flat(values),
            lambda images: None,
            lambda error, *cameras, doing="": say(error),
            lambda sentence: None,
            threading.Event(),
        )
    finally:
        runtime.open_engine = before


def drive(running: runtime.Runtime, numbers: range) -> None:
    """Show places, a second from one to the next; the mode decides whether they are kept."""
    for number in numbers:
        pose = Pose((float(number), 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), "odom")
        stamp_ns = START_NS + number * 10**9
        running.recognizer.process(shown(number), stamp_ns, pose, "camera")


def answers(running: runtime.Runtime, numbers: range) -> list[Any]:
    """What is answered when places are shown, and what the map holds of them."""
    found: list[Any] = [len(running.map), [s.name for s in running.map.info().sessions]]
    for number in numbers:
        decision = running.recognizer.recognize(shown(number))
        for h in decision.hypotheses:
            score = (h.distance_bits, round(h.similarity, 6), round(h.probability, 6))
            found.append((h.keyframe, score, running.map.thumbnail(h.keyframe.id)))
    return found
