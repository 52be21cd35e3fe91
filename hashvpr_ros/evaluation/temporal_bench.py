"""What weighing matches over time costs in a large map: each way beside single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.config import from_flat
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.evaluation.metrics import median_p95
from hashvpr_ros.evaluation.recorded import RecordedEngine
from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Descriptor, Mode

WAYS = ("none", "sequence", "filter", "both")
_DIM = 512
_WARM_UP = 50
_CHUNK = 10_000


def measure(
    places: int, queries: int = 400, rounds: int = 3, progress: Callable[[], None] = lambda: None
) -> dict[str, dict[str, dict[str, float]]]:
    """Drive along a stretch of a made-up map, in each way by turns.

    The places lie along one way, each much like its neighbours.

    Args:
        progress: called after each round of a way.

    Returns:
        for each way, median and p95 of search, re-ranking and what comes after, in ms.
    """
    rng = np.random.default_rng(0)
    own = rng.normal(size=(places + 6, _DIM)).astype(np.float32)
    along = sum(np.roll(own, k, 0) * np.float32(0.8 ** abs(k)) for k in range(-3, 4))
    assert isinstance(along, np.ndarray)
    plane = rng.normal(size=(_DIM, 512)).astype(np.float32)
    info = EngineInfo("made up", "ab" * 32, 8, 8, _DIM, "none", probability_curve=(20.0, -2.0))

    def view(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.packbits(x @ plane >= 0, axis=1), x.astype(np.float32)

    with PlaceMap.open("", info.fingerprint, _DIM) as place_map:
        for begin in range(0, places, _CHUNK):
            codes, features = view(along[3 + begin : 3 + min(begin + _CHUNK, places)])
            place_map.add_many(
                [
                    NewPlace("camera", (begin + i + 1) * 10**9, None, Descriptor(c, f), None)
                    for i, (c, f) in enumerate(zip(codes, features, strict=True))
                ]
            )
        place_map.flush()
        first = places // 3
        stretch = along[3 + first : 3 + first + queries]
        codes, features = view(stretch + rng.normal(size=stretch.shape).astype(np.float32))
        times: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                engine = RecordedEngine(info, codes, features)
                config = from_flat({"matching.temporal": way})
                vpr = Recognizer(engine, place_map, config, mode=Mode.LOCALIZATION)
                for i in range(len(codes)):
                    t = vpr.process(engine.blank, (i + 1) * 10**9).times
                    if i >= _WARM_UP:
                        times[way].append((t.search_ms, t.rerank_ms, t.temporal_ms))
                progress()
    return {
        way: {
            stage: median_p95([t[i] for t in values])
            for i, stage in enumerate(("search", "rerank", "temporal"))
        }
        for way, values in times.items()
    }


def summary(measured: dict[str, Any]) -> dict[str, float]:
    """What each way adds to single images at the median, in ms."""
    alone = measured["none"]["temporal"]["median"]
    return {
        way: round(measured[way]["temporal"]["median"] - alone, 3) for way in WAYS if way != "none"
    }
