"""SIGINT, SIGTERM and SIGHUP end the process in time, whatever it does then. No ROS."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

# After the first signal: the orderly end has this long; then what can be saved is saved, for which
# there is this long at most, as a disk may be slow.
_ORDERLY_S = 1.3
_SAVING_S = 3.0


class Ending:
    """Takes the signals of a process, from its beginning on.

    Python runs handlers of signals in the main thread alone, and only between two steps of it. So
    the signals are taken from a pipe, by a thread that ends the process even where the main thread
    hangs. It must be made in the main thread.
    """

    def __init__(self) -> None:
        self._node: Any = None
        self._must_wait = False
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.begun = False
        self._pipe, write = os.pipe()
        os.set_blocking(write, False)
        # Several signals come from a launch that is interrupted; they are one wish to end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        # That of a terminal that is closed; `nohup` has it ignored.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="vpr_signals", daemon=True).start()

    def wait_for_node(self) -> None:
        """From now on a signal lets the node be made first, if that is soon."""
        self._must_wait = True

    def watch_over(self, node: Any) -> None:
        """From now on what waits in the node is written before the process ends.

        Args:
            node: with `save_now(timeout_s)`, which says whether all is written.
        """
        self._node = node

    def wait(self) -> None:
        """Return at the first signal, or after `begin`."""
        self._stop.get()

    def begin(self) -> None:
        """Let `wait` return; the process ends within the bounds of this module from now on."""
        with self._lock:
            if self.begun:
                return
            self.begun = True
        self._stop.put(None)
        threading.Thread(target=self._end, name="vpr_end", daemon=True).start()

    def _watch(self) -> None:
        while True:
            os.read(self._pipe, 64)
            if not self._must_wait:
                leave(0)  # there is nothing yet to be saved
            self.begin()

    def _end(self) -> NoReturn:
        time.sleep(_ORDERLY_S)
        saved = self._node is None or self._node.save_now(_SAVING_S)
        if not saved:
            print("vpr_node: keyframes were lost: the map did not answer", file=sys.stderr)
        leave(0 if saved else 1)


def leave(code: int) -> NoReturn:
    """End the process at once, without waiting for threads that may never end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
