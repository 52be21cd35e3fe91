"""One thread for the engine, and a slot per camera in which only the newest image waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from hashvpr_ros.errors import HashVprError


class BusyError(HashVprError):
    """What was asked for has to wait for too long; it can be asked for again."""


class Worker:
    """Runs calls and images one after the other in a thread of its own.

    Whatever they raise is reported, and the thread goes on.

    Args:
        on_images: called with the images of an instant, by camera; each that was not replaced by a
            newer one once.
        gather: called with all that wait, in the order in which they are served; returns the
            cameras of the instant, or none and for how many seconds to wait for more.
        on_idle: called at least every `idle_period_s`, between images too.
        on_end: called last.
        report: told what any of these has raised, the cameras that it cost an image, and
            `doing=` what it was. Must not raise.
    """

    def __init__(
        self,
        on_images: Callable[[dict[str, Any]], None],
        gather: Callable[[dict[str, Any]], tuple[list[str], float]],
        on_idle: Callable[[], None],
        idle_period_s: float,
        on_end: Callable[[], None],
        report: Callable[..., None],
    ) -> None:
        self._on_images = on_images
        self._gather = gather
        self._on_idle = on_idle
        self._idle_period_s = idle_period_s
        self._on_end = on_end
        self._report = report
        self._condition = threading.Condition()
        self._images: dict[str, Any] = {}  # by camera, in the order in which they are served
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self._images_turn = False
        self._busy_since = 0.0  # monotonic; 0: it rests
        self._thread = threading.Thread(target=self._run, name="vpr_worker", daemon=True)
        self._thread.start()

    def offer(self, camera: str, item: Any) -> bool:
        """Leave the newest image of a camera; returns whether an older one was replaced.

        A replaced image keeps its camera's turn, so a fast camera does not starve a slow one.
        """
        with self._condition:
            if self._stopping:
                return False
            replaced = camera in self._images
            self._images[camera] = item
            self._condition.notify()
            return replaced

    def discard_images(self) -> list[str]:
        """Forget the images that wait; returns their cameras."""
        with self._condition:
            cameras = list(self._images)
            self._images.clear()
            return cameras

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function in the thread, before the images that wait.

        What it raises is for the future. Without somebody who looks at that, use `post`.
        """
        future: Future[Any] = Future()
        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._calls.append((function, future))
                self._condition.notify()
        return future

    def post(self, function: Callable[[], Any], doing: str) -> None:
        """Run a function in the thread without waiting; what it raises is reported.

        Args:
            doing: what it does, for the report.
        """

        def reported() -> None:
            try:
                function()
            except BaseException as e:
                self._report(e, doing=doing)

        self.call(reported)

    def ask(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """The result of a function that runs in the thread.

        Raises:
            BusyError: it has not begun in this time, and will not; or it has not ended in as much
                time again, and still runs.
            CancelledError: the worker was stopped.
            BaseException: what the function raises.
        """
        future = self.call(function)
        for _ in range(2):
            try:
                return future.result(timeout_s)
            except FutureTimeout:
                if future.done():
                    return future.result()  # it has just ended, or the timeout is its own
                if future.cancel():
                    break
        since = self._busy_since
        busy_s = time.monotonic() - since if since else 0.0
        raise BusyError(
            f"the present image or call has taken {busy_s:.0f} s and has not ended; ask again"
        )

    def stop(self, timeout_s: float) -> bool:
        """Finish what runs and all calls, forget waiting images, end the thread.

        Returns:
            whether it has ended in this time. If not, it ends by itself when it can.
        """
        with self._condition:
            self._stopping = True
            self._images.clear()
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            images, call = self._next()
            if not images and call is None and self._stopping:
                break
            self._busy_since = time.monotonic()
            if images:
                self._guarded("the judging of images", self._on_images, images, cameras=images)
            if call is not None:
                self._guarded("a call", self._execute, *call)
            self._guarded("the work between images", self._on_idle)
            self._busy_since = 0.0
        self._guarded("the end of the worker", self._on_end)

    def _next(self) -> tuple[dict[str, Any], tuple[Callable[[], Any], Future[Any]] | None]:
        """The images of an instant, or a call; neither where there is nothing to do yet."""
        with self._condition:
            if not self._calls and not self._images and not self._stopping:
                self._condition.wait(self._idle_period_s)
            # Calls come first, but many in a row let an instant through after each.
            if self._images and (self._images_turn or not self._calls):
                images = self._gathered()
                if images:
                    self._images_turn = False
                    return images, None
            self._images_turn = bool(self._calls)
            return {}, self._calls.popleft() if self._calls else None

    def _gathered(self) -> dict[str, Any]:
        try:
            cameras, wait_s = self._gather(dict(self._images))
            images = {camera: self._images[camera] for camera in cameras}
        except BaseException as e:
            # They would make it fail again, for ever.
            self._report(e, *self._images, doing="the gathering of images")
            self._images.clear()
            return {}
        for camera in images:
            del self._images[camera]
        if not images and not self._calls:
            self._condition.wait(min(wait_s, self._idle_period_s))
        return images

    def _guarded(
        self, doing: str, function: Callable[..., None], *args: Any, cameras: Any = ()
    ) -> None:
        try:
            function(*args)
        except BaseException as e:  # also SystemExit, which would end this thread in silence
            self._report(e, *cameras, doing=doing)

    @staticmethod
    def _execute(function: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as e:  # handed to the one who waits
            future.set_exception(e)
        else:
            future.set_result(result)
