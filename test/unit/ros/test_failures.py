"""What is counted and logged of exceptions, and how often."""

import pytest

from hashvpr_ros.errors import MapError
from hashvpr_ros.ros import failures as module
from hashvpr_ros.ros.failures import Failures


@pytest.fixture
def now(monkeypatch):
    times = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: times[0])
    return times


@pytest.fixture
def heard(now):
    class Heard:
        logged: list[str] = []  # noqa: RUF012
        counted: list[tuple] = []  # noqa: RUF012

    heard = Heard()
    heard.logged, heard.counted = [], []
    heard.failures = Failures(heard.logged.append, lambda *args: heard.counted.append(args))
    return heard


def raised(error):
    try:
        raise error
    except BaseException as e:
        return e


def test_what_nobody_foresaw_has_its_traceback_once(heard, now):
    for _ in range(3):
        heard.failures.report(raised(ValueError("bad\nvalue")), "front", doing="a test")
    assert len(heard.logged) == 1
    first, *rest = heard.logged[0].splitlines()
    assert first == "unexpected error in a test: ValueError: bad"
    assert "Traceback (most recent call last):" in rest and __file__ in heard.logged[0]
    assert heard.counted == [("ValueError: bad", "front")] * 3
    now[0] += 11.0
    heard.failures.report(raised(ValueError("bad\nvalue")), doing="a test")
    assert heard.logged[1] == "ValueError: bad (2 more times since this was last logged)"


def test_a_foreseen_one_is_a_sentence_and_each_is_said(heard):
    for text in ("disk full", "damaged", "disk full"):
        heard.failures.report(raised(MapError(text)))
    heard.failures.report(MapError("never raised"))
    assert heard.logged == ["disk full", "damaged", "never raised"]


def test_numbers_make_no_new_kind_and_kinds_are_bounded(heard):
    for i in range(50):
        heard.failures.report(raised(MapError(f"keyframe {i} is damaged")))
    assert len(heard.logged) == 1
    letters = "abcdefghij"
    for a in letters:
        for b in letters:
            for c in letters[:5]:
                heard.failures.report(MapError(a + b + c))
    assert len(heard.failures._said) <= 256


def test_an_answer_to_a_user_is_always_logged(heard):
    for _ in range(3):
        heard.failures.report(raised(KeyError("x")), doing="configure", always=True)
    assert len(heard.logged) == 3 and all("Traceback" in text for text in heard.logged)


@pytest.mark.parametrize(
    "error", [MemoryError(), SystemExit(1), KeyboardInterrupt(), BaseException("x"), OSError(5)]
)
def test_reporting_raises_nothing(error):
    def fail(*_):
        raise error

    Failures(fail, fail).report(raised(ValueError()), "camera")
    Failures(fail, lambda *_: None).report(raised(error))


def test_a_camera_that_is_gone_costs_no_count():
    counted = []

    def count(text, *cameras):
        if cameras:
            raise KeyError(cameras[0])
        counted.append(text)

    Failures(lambda text: None, count).report(raised(ValueError("x")), "gone")
    assert counted == ["ValueError: x"]
