"""Transitions of the lifecycle that say why they fail."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import TransitionCallbackReturn

from hashvpr_ros.errors import HashVprError

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR


def transition(method: Callable[..., Any]) -> Callable[..., Any]:
    """Log why a transition fails: one sentence for what is foreseen, else the traceback.

    rclpy takes an exception for ERROR and says nothing.
    """

    @functools.wraps(method)
    def wrapped(self: Any, state: Any) -> Any:
        verb = method.__name__.removeprefix("on_")
        try:
            return method(self, state)
        except HashVprError as e:
            self.get_logger().error(f"cannot {verb}: {e}")
            return FAILURE
        except BaseException as e:  # anything that passes leaves the node between two states
            self.failures.report(e, doing=verb, always=True)
            return ERROR

    return wrapped
