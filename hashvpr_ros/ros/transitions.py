"""What rclpy's managed lifecycle lacks: reasons of failures, answers while it is busy."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
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
        except Exception:
            self.get_logger().error(f"unexpected error in {verb}:\n{traceback.format_exc()}")
            return ERROR

    return wrapped


def answer_while_busy(node: Any, transition_group: CallbackGroup) -> None:
    """Let questions be answered during a transition, refuse invalid transitions.

    rclpy puts the services of the lifecycle and the parameters in one group, so `get_state`
    and `get_parameters` would wait for a configure that builds an engine for minutes; and a
    transition that the state does not have raises in its callback and so ends the process.
    """
    group = MutuallyExclusiveCallbackGroup()
    for name in (
        "get_state", "get_available_states", "get_available_transitions",
        "get_transition_graph",
    ):  # fmt: skip
        service = getattr(node, f"_service_{name}", None)
        if service is not None:
            service.callback_group = group
            group.add_entity(service)
    change = getattr(node, "_service_change_state", None)
    if change is None:
        return
    change.callback_group = transition_group
    transition_group.add_entity(change)
    inner = change.callback

    def checked(request: Any, response: Any) -> Any:
        with node.transition_lock:
            try:
                return inner(request, response)
            except Exception as e:
                wanted = request.transition.label or request.transition.id
                node.get_logger().warning(
                    f"transition {wanted} refused in state {node.state_label()}: {e}"
                )
                response.success = False
                return response

    change.callback = checked
