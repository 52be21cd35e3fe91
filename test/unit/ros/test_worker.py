"""The worker's thread: it outlives what it calls, and nothing waits for it for ever."""

import threading
from concurrent.futures import CancelledError

import pytest

from hashvpr_ros.ros.worker import BusyError, Worker

SOON_S = 20.0


class Fault(BaseException):
    pass


ERRORS = [ValueError("x"), MemoryError(), SystemExit(1), KeyboardInterrupt(), Fault("x")]


class Harness:
    """A worker whose functions raise what they are told to."""

    def __init__(self):
        self.raising = {}  # by hook
        self.reports = []
        self.seen = []
        self.happened = threading.Condition()
        self.ended = threading.Event()
        self.worker = Worker(
            self.on_images, self.gather, lambda: self.hook("idle"), 0.005, self.on_end, self.report
        )

    def hook(self, name):
        error = self.raising.pop(name, None)
        if error is not None:
            raise error

    def on_images(self, images):
        self.hook("images")
        with self.happened:
            self.seen.append(dict(images))
            self.happened.notify_all()

    def gather(self, waiting):
        self.hook("gather")
        return list(waiting), 0.0

    def on_end(self):
        self.ended.set()
        self.hook("end")

    def report(self, error, *cameras, doing=""):
        with self.happened:
            self.reports.append((error, cameras, doing))
            self.happened.notify_all()

    def until(self, condition):
        with self.happened:
            assert self.happened.wait_for(condition, SOON_S), (self.reports, self.seen)


@pytest.fixture
def harness():
    harness = Harness()
    yield harness
    assert harness.worker.stop(SOON_S)
    assert harness.ended.is_set()


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("hook", ["images", "gather", "idle", "post"])
def test_the_thread_lives_on(harness, hook, error):
    if hook == "post":
        harness.worker.post(lambda: (_ for _ in ()).throw(error), "a test")
    else:
        harness.raising[hook] = error
        if hook != "idle":
            harness.worker.offer("front", 1)
    harness.until(lambda: harness.reports)
    ((reported, cameras, doing),) = harness.reports
    assert reported is error and doing
    assert cameras == (("front",) if hook in ("images", "gather") else ())
    harness.worker.offer("front", 2)
    harness.until(lambda: harness.seen)
    assert harness.seen == [{"front": 2}]  # what could not be gathered is not tried for ever
    assert harness.worker.ask(lambda: 5, SOON_S) == 5


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_a_call_raises_is_for_the_one_who_asks(harness, error):
    with pytest.raises(type(error)):
        harness.worker.ask(lambda: (_ for _ in ()).throw(error), SOON_S)
    with pytest.raises(TimeoutError, match="its own"):
        harness.worker.ask(lambda: (_ for _ in ()).throw(TimeoutError("its own")), SOON_S)
    assert harness.worker.ask(lambda: 5, SOON_S) == 5
    assert harness.reports == []


def test_an_end_that_raises_is_reported():
    harness = Harness()
    harness.raising["end"] = Fault("at the end")
    assert harness.worker.stop(SOON_S)
    assert [str(e) for e, *_ in harness.reports] == ["at the end"]


def test_nobody_waits_for_one_that_hangs():
    harness = Harness()
    free, entered = threading.Event(), threading.Event()

    def hang():
        entered.set()
        free.wait(SOON_S)
        return "late"

    first = harness.worker.call(hang)
    assert entered.wait(SOON_S)
    ran = []
    with pytest.raises(BusyError, match="ask again"):
        harness.worker.ask(lambda: ran.append(1), 0.02)
    assert not harness.worker.stop(0.02)
    assert not harness.ended.is_set()
    assert harness.worker.offer("front", 1) is False  # nobody would look at it
    with pytest.raises(CancelledError):
        harness.worker.ask(lambda: 5, SOON_S)
    free.set()
    assert first.result(SOON_S) == "late"
    assert harness.ended.wait(SOON_S)  # by itself
    assert ran == [] and harness.reports == []  # what nobody waits for any more is not begun
