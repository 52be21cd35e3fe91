"""What the node counts and times, and the diagnostic_msgs made of it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from hashvpr_ros.msg import StageTimes
from hashvpr_ros.types import ALL_STAGES, Verdict

_VERDICTS = (*(v.value for v in Verdict), "passed_over")
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
# A fault is reported for this long after it last happened, so that no aggregator misses it.
_FAULT_SHOWN_S = 10.0


@dataclass
class CameraStats:
    """Counts of one camera since the node was activated."""

    topic: str  # with its namespace
    received: int = 0
    processed: int = 0
    dropped: int = 0  # replaced by a newer image, or left when the node was deactivated
    bad: int = 0
    failed: int = 0  # the engine or the map failed with it
    without_pose: int = 0
    last_arrival_s: float = 0.0  # monotonic; of activation before the first image
    last_bad_s: float = float("-inf")
    last_bad_reason: str = ""
    arrivals_s: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def rate_hz(self, now_s: float) -> float:
        """Images a second over the last five seconds."""
        recent = [t for t in self.arrivals_s if t > now_s - 5.0]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)


class Stats:
    """Counters of the node. Safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cameras: dict[str, CameraStats] = {}
        self._times: deque[tuple[float, ...]] = deque(maxlen=300)
        self.failures = 0
        self.last_failure = ""
        self.last_failure_s = float("-inf")
        self.closures = 0
        self.verdicts: Counter[str] = Counter()
        self.peers: Counter[str] = Counter()  # descriptors of other robots
        self.last_passed_over = ""
        self.last_passed_over_s = float("-inf")

    def start(self, cameras: dict[str, str]) -> None:
        """Begin to count anew, for these cameras (topic by name)."""
        now = time.monotonic()
        with self.lock:
            self.cameras = {n: CameraStats(t, last_arrival_s=now) for n, t in cameras.items()}
            self._times.clear()

    def arrived(self, camera: str) -> None:
        """Count an image that came in."""
        now = time.monotonic()
        with self.lock:
            stats = self.cameras[camera]
            stats.received += 1
            stats.last_arrival_s = now
            stats.arrivals_s.append(now)

    def dropped(self, camera: str) -> None:
        """Count an image that a newer one replaced."""
        with self.lock:
            self.cameras[camera].dropped += 1

    def bad(self, camera: str, reason: str) -> None:
        """Count an image that could not be decoded."""
        with self.lock:
            stats = self.cameras[camera]
            stats.bad += 1
            stats.last_bad_s = time.monotonic()
            stats.last_bad_reason = reason

    def processed(self, camera: str, times: StageTimes, accepted: bool) -> None:
        """Count an image whose hypotheses were published."""
        with self.lock:
            self.cameras[camera].processed += 1
            self.closures += accepted
            self._times.append(tuple(getattr(times, s) for s in ALL_STAGES))

    def judged(self, verdict: Verdict | None) -> None:
        """Count what the back end said of a closure; None: a verdict that was passed over."""
        with self.lock:
            self.verdicts["passed_over" if verdict is None else verdict.value] += 1

    def peer(self, passed_over: str = "") -> None:
        """Count a descriptor of another robot; `passed_over` says why it was not matched."""
        with self.lock:
            self.peers["passed_over" if passed_over else "matched"] += 1
            if passed_over:
                self.last_passed_over = passed_over
                self.last_passed_over_s = time.monotonic()

    def failed(self, reason: str, *cameras: str) -> None:
        """Count a failure of the engine or the map, and of the images that it cost."""
        with self.lock:
            for camera in cameras:
                self.cameras[camera].failed += 1
            self.failures += 1
            self.last_failure = reason
            self.last_failure_s = time.monotonic()

    def latencies_ms(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile by stage, of the last 300 images; empty without any."""
        with self.lock:
            times = list(self._times)
        if not times:
            return {}
        median, p95 = np.percentile(np.array(times), [50, 95], axis=0)
        return {s: (float(m), float(p)) for s, m, p in zip(ALL_STAGES, median, p95, strict=True)}


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096


def camera_status(
    name: str, camera: str, stats: CameraStats, active: bool, stale_after_s: float, why: str
) -> DiagnosticStatus:
    """How the input of one camera is; `why` it is silent, where it is."""
    now = time.monotonic()
    silent_s = now - stats.last_arrival_s
    level, text = OK, "images come in"
    if not active:
        text = "not active"
    elif silent_s > stale_after_s:
        level, text = WARN, f"no image on {stats.topic} for {silent_s:.0f} s"
        if why:
            text = f"{text}: {why}"
    elif now - stats.last_bad_s < _FAULT_SHOWN_S:
        level, text = WARN, f"bad image: {stats.last_bad_reason}"
    elif not stats.received:
        text = "waiting for the first image"
    return _status(
        f"{name}: camera {camera}",
        level,
        text,
        {
            "topic": stats.topic,
            "input_rate_hz": f"{stats.rate_hz(now):.2f}",
            "received": stats.received,
            "processed": stats.processed,
            "dropped": stats.dropped,
            "bad": stats.bad,
            "failed": stats.failed,
            "without_pose": stats.without_pose,
        },
    )


def node_status(
    name: str, state: str, stats: Stats, runtime: Any, doing: str = ""
) -> DiagnosticStatus:
    """How the node is: engine, map, latency, memory; `doing`: what keeps it in a transition."""
    level, text = OK, doing or state
    if time.monotonic() - stats.last_failure_s < _FAULT_SHOWN_S:
        level, text = ERROR, stats.last_failure
    elif runtime is not None and runtime.write_problem:
        level, text = ERROR, runtime.write_problem
    elif time.monotonic() - stats.last_passed_over_s < _FAULT_SHOWN_S:
        level, text = WARN, stats.last_passed_over
    values: dict[str, Any] = {
        "state": state,
        "failures": stats.failures,
        "loop_closures": stats.closures,
        **{f"verdicts_{v}": stats.verdicts[v] for v in _VERDICTS},
        "peers_matched": stats.peers["matched"],
        "peers_passed_over": stats.peers["passed_over"],
        "memory_resident_mib": f"{resident_bytes() / 2**20:.1f}",
    }
    if runtime is not None:
        place_map, info = runtime.map, runtime.info
        values |= {
            "mode": runtime.mode.value,
            "model": info.name,
            "provider": info.provider,
            "map_path": place_map.path,
            "map_keyframes": len(place_map),
            "map_uncommitted": place_map.uncommitted(),
            "map_left_out": place_map.left_out,
            "map_index": place_map.index_in_use,
            "map_index_mib": f"{place_map.index_bytes / 2**20:.1f}",
            "map_file_mib": f"{place_map.file_bytes / 2**20:.1f}",
        }
    for stage, (median, p95) in stats.latencies_ms().items():
        values[f"{stage}_ms_median"] = f"{median:.2f}"
        values[f"{stage}_ms_p95"] = f"{p95:.2f}"
    return _status(name, level, text, values)


def diagnostics(
    name: str,
    state: str,
    stats: Stats,
    runtime: Any,
    stale_after_s: float,
    silent: dict[str, str],
    doing: str = "",
) -> DiagnosticArray:
    """All statuses, without a stamp; `silent` says why, by camera."""
    with stats.lock:
        cameras = dict(stats.cameras)
    array = DiagnosticArray(status=[node_status(name, state, stats, runtime, doing)])
    for camera, counts in cameras.items():
        why = silent.get(camera, "")
        array.status.append(
            camera_status(name, camera, counts, state == "active", stale_after_s, why)
        )
    return array


def _status(name: str, level: bytes, text: str, values: dict[str, Any]) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=name,
        message=text,
        hardware_id="hashvpr",
        values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
    )
