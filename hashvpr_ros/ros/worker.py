"""One thread for the engine, and a slot per camera in which only the newest image waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker:
    """Runs calls and images one after the other in a thread of its own.

    Args:
        on_images: called with the images of an instant, by camera; each that was not replaced by a
            newer one once.
        gather: called with all that wait, in the order in which they are served; returns the
            cameras of the instant, or none and for how many seconds to wait for more.
        on_idle: called at least every `idle_period_s`, between images too.
    """

    def __init__(
        self,
        on_images: Callable[[dict[str, Any]], None],
        gather: Callable[[dict[str, Any]], tuple[list[str], float]],
        on_idle: Callable[[], None],
        idle_period_s: float,
    ) -> None:
        self._on_images = on_images
        self._gather = gather
        self._on_idle = on_idle
        self._idle_period_s = idle_period_s
        self._condition = threading.Condition()
        self._images: dict[str, Any] = {}  # by camera, in the order in which they are served
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vpr_worker", daemon=True)
        self._thread.start()

    def offer(self, camera: str, item: Any) -> bool:
        """Leave the newest image of a camera; returns whether an older one was replaced.

        A replaced image keeps its camera's turn, so a fast camera does not starve a slow one.
        """
        with self._condition:
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
        """Run a function in the thread, before the images that wait."""
        future: Future[Any] = Future()
        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._calls.append((function, future))
                self._condition.notify()
        return future

    def stop(self) -> None:
        """Finish what runs and all calls, forget waiting images, end the thread."""
        with self._condition:
            self._stopping = True
            self._images.clear()
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        images_turn = False
        while True:
            with self._condition:
                if not self._calls and not self._images and not self._stopping:
                    self._condition.wait(self._idle_period_s)
                call = None
                images: dict[str, Any] = {}
                # Calls come first, but many in a row let an instant through after each.
                if self._images and (images_turn or not self._calls):
                    cameras, wait_s = self._gather(dict(self._images))
                    images = {camera: self._images.pop(camera) for camera in cameras}
                    if not images and not self._calls:
                        self._condition.wait(min(wait_s, self._idle_period_s))
                if not images:
                    if self._calls:
                        call = self._calls.popleft()
                    elif self._stopping:
                        return
            images_turn = call is not None
            if images:
                self._on_images(images)
            if call is not None:
                self._execute(*call)
            self._on_idle()

    @staticmethod
    def _execute(function: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as e:  # handed to the one who waits
            future.set_exception(e)
