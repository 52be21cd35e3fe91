"""A day of a robot, replayed at speed: what grows is the map alone, and no stage gets slower.

`HOURS=1 python -m pytest -m slow test/unit/matching/test_endurance.py -s` is a shorter one.
"""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.types import Mode

HOURS = float(os.environ.get("HOURS", "24"))
RATE_HZ, SPEED_MPS, LAP_M, DIM = 3, 1.0, 3000, 256
IMAGE = np.zeros((240, 320, 3), np.uint8)


class Street:
    """An engine that gives the views of a lap, a place a metre, each with noise of its own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        own = rng.normal(size=(LAP_M, DIM))
        self.places = sum(np.roll(own, k, 0) * 0.8 ** abs(k) for k in range(-3, 4))
        self.plane = rng.normal(size=(DIM, 512)).astype(np.float32)
        self.noise = np.random.default_rng(1)
        self.at_m = 0.0
        self.info = EngineInfo(
            "street", "cd" * 32, 8, 8, DIM, "none", probability_curve=(20.0, -2.0)
        )

    def describe(self, images):
        low, share = int(self.at_m) % LAP_M, self.at_m % 1.0
        x = (1 - share) * self.places[low] + share * self.places[(low + 1) % LAP_M]
        x = (x + self.noise.normal(size=DIM)).astype(np.float32)
        x /= np.linalg.norm(x)
        return np.packbits(x @ self.plane >= 0)[np.newaxis], x[np.newaxis]


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_a_day_at_speed(tmp_path):
    street = Street()
    radius_m = LAP_M / (2 * math.pi)
    path = tmp_path / "day.vprmap"
    hours = []
    with PlaceMap.open(path, street.info.fingerprint, DIM) as place_map:
        vpr = Recognizer(street, place_map, from_flat({}), mode=Mode.SLAM)
        images_an_hour = 3600 * RATE_HZ
        wrong = accepted = 0
        times = []
        started = time.perf_counter()
        for i in range(round(HOURS * images_an_hour)):
            street.at_m = i * SPEED_MPS / RATE_HZ
            angle = street.at_m / radius_m
            pose = planar_pose(
                radius_m * math.cos(angle), radius_m * math.sin(angle), angle + math.pi / 2
            )
            decision = vpr.process(IMAGE, i * 10**9 // RATE_HZ, pose)
            t = decision.times
            times.append((t.search_ms, t.rerank_ms, t.temporal_ms, t.store_ms))
            if decision.accepted:
                accepted += 1
                there_m = decision.hypotheses[0].keyframe.stamp_ns / 1e9 * SPEED_MPS
                apart_m = abs(there_m - street.at_m) % LAP_M
                wrong += min(apart_m, LAP_M - apart_m) > 10.0
            if (i + 1) % images_an_hour == 0:
                place_map.flush()
                median, p95 = np.percentile(times, [50, 95], axis=0)
                hours.append(
                    {
                        "hour": len(hours) + 1,
                        "keyframes": len(place_map),
                        "resident_mb": round(resident_mb(), 1),
                        "index_mb": round(place_map.index_bytes / 1e6, 1),
                        "median_ms": dict(
                            zip(
                                ("search", "rerank", "temporal", "store"),
                                np.round(median, 3).tolist(),
                                strict=True,
                            )
                        ),
                        "p95_ms_in_all": round(float(p95.sum()), 3),
                        "accepted": accepted,
                        "wrong": wrong,
                        "wall_s": round(time.perf_counter() - started),
                    }
                )
                print(json.dumps(hours[-1]), flush=True)
                times.clear()
    assert wrong == 0 and accepted > 0.5 * HOURS * images_an_hour
    if len(hours) < 3:
        return
    # After the first hour all buffers have their size; from then on the map alone grows.
    first, last = hours[0], hours[-1]
    grown_mb = last["resident_mb"] - first["resident_mb"]
    of_the_map_mb = last["index_mb"] - first["index_mb"]
    # What is remembered of each keyframe of the session (matching.odometer): some 200 bytes.
    of_the_way_mb = 2 * 200 * (last["keyframes"] - first["keyframes"]) / 1e6
    assert grown_mb <= of_the_map_mb + of_the_way_mb + 60.0
    for stage in ("temporal", "store"):  # search and re-ranking scan more as the map grows
        early = np.median([h["median_ms"][stage] for h in hours[1 : len(hours) // 2 + 1]])
        late = np.median([h["median_ms"][stage] for h in hours[len(hours) // 2 :]])
        assert late <= 1.5 * early + 0.1
