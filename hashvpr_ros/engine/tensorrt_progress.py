"""What a long build says meanwhile: a sentence every few seconds, with the phase where known."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]
PERIOD_S = 5.0
_LOGGED_EVERY = 2  # of the sentences that are told


def no_progress(sentence: str) -> None:
    """Tell nobody; the log has it still."""


class Steps:
    """Tells a sentence with the seconds since its start, from a thread of its own, until exit.

    Args:
        what: the sentence's beginning.
        progress: called with each sentence, about every `PERIOD_S`; an error at the first is
            passed on, and nothing begins.
    """

    def __init__(self, what: str, progress: Progress = no_progress) -> None:
        self._what = what
        self._progress = progress
        self._phase = ""
        self._phases: dict[str, tuple[int, int]] = {}  # done and all, the outermost first
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensorrt_progress", daemon=True)
        self._started_s = time.monotonic()

    def __enter__(self) -> Steps:
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def say(self, phase: str) -> None:
        """What is done from now on."""
        with self._lock:
            self._phase = phase

    def sentence(self) -> str:
        """What goes on, e.g. "building TensorRT engine of x, 42 s: trying kernels"."""
        with self._lock:
            phases = [f"{name} {done}/{of}" for name, (done, of) in self._phases.items() if of]
            detail = ", ".join(phases[:2]) or self._phase
        seconds = time.monotonic() - self._started_s
        return f"{self._what}, {seconds:.0f} s" + (f": {detail}" if detail else "")

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(PERIOD_S):
            count += 1
            self._tell(log=count % _LOGGED_EVERY == 0)

    def _tell(self, log: bool = True) -> None:
        sentence = self.sentence()
        self._progress(sentence)  # first: it may refuse that this begins
        if log:
            _log.info("%s", sentence)

    def monitor(self) -> Any:
        """An IProgressMonitor that keeps the phases; TensorRT 10 and later."""
        import tensorrt as trt

        steps = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                with steps._lock:
                    steps._phases[str(phase_name)] = (0, int(num_steps))

            def step_complete(self, phase_name: str, step: int) -> bool:
                with steps._lock:
                    _, of = steps._phases.get(str(phase_name), (0, 0))
                    steps._phases[str(phase_name)] = (int(step) + 1, of)
                return True  # go on

            def phase_finish(self, phase_name: str) -> None:
                with steps._lock:
                    steps._phases.pop(str(phase_name), None)

        return Monitor()
