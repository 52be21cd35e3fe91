"""What a configured node owns, where its parts fail in ways of their own."""

import dataclasses
import threading

from hashvpr_ros.config import Config
from hashvpr_ros.errors import MapError
from hashvpr_ros.ros import runtime
from hashvpr_ros.ros.runtime import Runtime

SOON_S = 20.0


def opened(reports, path=""):
    config = Config()
    return Runtime(
        dataclasses.replace(config, map=dataclasses.replace(config.map, path=path)),
        lambda images: None,
        lambda error, *_, **__: reports.append(str(error)),
        lambda sentence: None,
        threading.Event(),
    )


def test_a_timeout_of_the_opening_itself_ends_it(monkeypatch):
    """As of a network disk, whose ETIMEDOUT is a TimeoutError: it is no sign to wait on."""

    def time_out(*_):
        raise TimeoutError("the disk does not answer")

    monkeypatch.setattr(runtime, "open_engine", time_out)
    ended = threading.Event()
    raised = []

    def configure():
        try:
            opened([])
        except TimeoutError as e:
            raised.append(str(e))
        ended.set()

    threading.Thread(target=configure, daemon=True).start()
    assert ended.wait(SOON_S)
    assert raised == ["the disk does not answer"]


def test_what_cannot_be_saved_at_the_end_is_reported(monkeypatch):
    reports = []
    held = opened(reports)
    try:

        def refuse():
            raise MapError("the disk is full; free some space")

        monkeypatch.setattr(held.map, "flush", refuse)
        assert held.save_now(SOON_S) is False
        assert reports == ["the disk is full; free some space"]
    finally:
        monkeypatch.undo()
        held.close()


def test_keyframes_that_are_lost_at_the_end_are_not_taken_for_saved(monkeypatch, tmp_path):
    """While a map that could not be written is closed, which may last, it has not been saved."""
    held = opened([], str(tmp_path / "m.vprmap"))
    saved = []

    def refuse():
        raise MapError("the disk is full; free some space")

    def close():
        saved.append(held.save_now(SOON_S))
        monkeypatch.undo()
        place_map.close()

    place_map = held.map
    monkeypatch.setattr(place_map, "flush", refuse)
    monkeypatch.setattr(place_map, "close", close)
    assert "disk is full" in str(held.close())
    assert saved == [False]
