"""Fixtures: clients, nodes and their diagnostics. What tests import is in vpr_process.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vpr_process import Client, VprProcess, starter, wait_until


@pytest.fixture(scope="session")
def client():
    client = Client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def start_module(client, tmp_path_factory):
    """Starts nodes that live as long as the module."""
    yield from starter(client, tmp_path_factory.mktemp("log"))


@pytest.fixture
def start(client, tmp_path):
    """Starts nodes that live as long as the test."""
    yield from starter(client, tmp_path)


@pytest.fixture(scope="session")
def diagnostics(client):
    """Waits for diagnostics of a node that have what is wanted.

    They are {"node": …, "camera NAME": …}, each with `level`, `message` and the values as text.
    """
    from diagnostic_msgs.msg import DiagnosticArray

    heard = client.listen(DiagnosticArray, "/diagnostics", 100)

    def newest(
        node: VprProcess, wanted: Callable[[dict[str, Any]], Any], what: str
    ) -> dict[str, Any]:
        del heard[:]
        last: dict[str, Any] = {}

        def found() -> Any:
            for message in list(heard):
                if message.status[0].name == node.name.lstrip("/"):
                    last.update(_statuses(message))
                    if wanted(last):
                        return last
            return None

        try:
            return wait_until(found, what)
        except AssertionError as e:
            raise AssertionError(f"{e}; the last were {last}") from None

    return newest


def _statuses(message: Any) -> dict[str, Any]:
    return {
        s.name.partition(": ")[2] or "node": {
            "level": s.level[0],
            "message": s.message,
            **{v.key: v.value for v in s.values},
        }
        for s in message.status
    }
