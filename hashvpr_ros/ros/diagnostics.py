"""What the node counts and times, and the diagnostic_msgs made of it."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from hashvpr_ros.msg import StageTimes
from hashvpr_ros.ros.inputs import Problem, Watched
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
    first_s: float = 0.0  # when the first image came, monotonic
    last_bad_s: float = float("-inf")
    last_bad_reason: str = ""
    arrivals_s: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def rate_hz(self, now_s: float) -> float:
        """Images a second over the last five seconds."""
        recent = [t for t in self.arrivals_s if t > now_s - 5.0]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)

    def lasting_rate_hz(self, now_s: float, expected_hz: float) -> float | None:
        """Images a second until now, over as long as it takes to tell that from `expected_hz`.

        None: images have not come for long enough.
        """
        arrivals = list(self.arrivals_s)
        window_s = max(5.0, 10.0 / expected_hz)
        if not self.received or now_s - self.first_s < window_s:
            return None
        if len(arrivals) == self.arrivals_s.maxlen:  # there may have been more in the window
            window_s = min(window_s, now_s - arrivals[0])
        return sum(t > now_s - window_s for t in arrivals) / window_s


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
        with self.lock:
            self.cameras = {n: CameraStats(t) for n, t in cameras.items()}
            self._times.clear()

    def arrived(self, camera: str) -> None:
        """Count an image that came in."""
        now = time.monotonic()
        with self.lock:
            stats = self.cameras[camera]
            stats.received += 1
            if stats.received == 1:
                stats.first_s = now
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

    def lost(self) -> Counter[str]:
        """Images since counting began that gave no result, or have no pose."""
        with self.lock:
            return Counter(
                {
                    what: sum(getattr(c, field) for c in self.cameras.values())
                    for what, field in (
                        ("dropped", "dropped"),
                        ("bad", "bad"),
                        ("failed", "failed"),
                        ("without pose", "without_pose"),
                    )
                }
            )

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
    stats: CameraStats, active: bool, problem: Problem | None
) -> tuple[bytes, str, dict[str, Any]]:
    """Level, text and values of one camera's input; `problem`: what is wrong with it."""
    now = time.monotonic()
    level, text = OK, "images come in"
    if not active:
        text = "not active"
    elif problem is not None:
        level, text = _level(problem), problem.text
    elif now - stats.last_bad_s < _FAULT_SHOWN_S:
        level, text = WARN, f"bad image: {stats.last_bad_reason}"
    elif not stats.received:
        text = "waiting for the first image"
    values = {
        "topic": stats.topic,
        "input_rate_hz": f"{stats.rate_hz(now):.2f}",
        "received": stats.received,
        "processed": stats.processed,
        "dropped": stats.dropped,
        "bad": stats.bad,
        "failed": stats.failed,
        "without_pose": stats.without_pose,
    }
    return level, text, values


def node_status(
    state: str, stats: Stats, runtime: Any, doing: str, refused: str
) -> tuple[bytes, str, dict[str, Any]]:
    """Level, text and values of the node: engine, map, latency, memory.

    Args:
        doing: what keeps it in a transition.
        refused: why it could not be configured or activated.
    """
    level, text = OK, doing or state
    if refused and not doing:
        level, text = ERROR, refused
    elif time.monotonic() - stats.last_failure_s < _FAULT_SHOWN_S:
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
    return level, text, values


def diagnostics(
    name: str,
    state: str,
    stats: Stats,
    runtime: Any,
    inputs: Sequence[tuple[Watched, Problem | None]],
    doing: str = "",
    refused: str = "",
) -> DiagnosticArray:
    """All statuses, without a stamp: of the node, of each camera, and of its other inputs.

    Args:
        name: of the node with its namespace: robots may share /diagnostics.
        inputs: of an active node, each with what is wrong with it.
        doing, refused: see `node_status`.
    """
    with stats.lock:
        cameras = dict(stats.cameras)
    found = {each.label: (each, problem) for each, problem in inputs}
    statuses = {"": node_status(state, stats, runtime, doing, refused)}
    for camera, counts in cameras.items():
        label = f"camera {camera}"
        _, problem = found.pop(label, (None, None))
        statuses[label] = camera_status(counts, state == "active", problem)
    for label, (each, problem) in found.items():
        if problem is None:
            statuses[label] = OK, each.state(), each.values()
        else:
            statuses[label] = _level(problem), problem.text, each.values()
    names = distinct_labels(list(statuses))
    hardware_id = f"{socket.gethostname()}/{name.rpartition('/')[0]}".rstrip("/")
    return DiagnosticArray(
        status=[
            DiagnosticStatus(
                level=level,
                name=f"{name}: {names[label]}" if label else name,
                message=text,
                hardware_id=hardware_id,
                values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
            )
            for label, (level, text, values) in statuses.items()
        ]
    )


def distinct_labels(labels: list[str]) -> dict[str, str]:
    """Labels without the slash, at which aggregators and monitors split a name into a tree.

    A camera has its topic for a name where `input.camera_names` gives none.
    """
    names: dict[str, str] = {}
    for label in labels:
        first, _, rest = label.partition(" ")
        name = plain = f"{first} {rest.strip('/').replace('/', '_')}".strip()
        count = 1
        while name in names.values():
            count += 1
            name = f"{plain} {count}"
        names[label] = name
    return names


def _level(problem: Problem) -> bytes:
    return ERROR if problem.is_error else WARN
