"""All that is done with private members of rclpy, for which it has no public way.

Written for rclpy 3.3 (Humble) and 7.1 (Jazzy). Where a member is missing, what it is for is left
out; the tests of the node find that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter

from hashvpr_ros.errors import reason_of
from hashvpr_ros.ros.failures import Failures


class LastingExecutor(MultiThreadedExecutor):
    """An executor that no exception of a callback ends: it is reported, and the node lives on.

    Of every kind: subscriptions, timers, services, events, guard conditions.
    """

    def __init__(self, num_threads: int, failures: Failures) -> None:
        super().__init__(num_threads=num_threads)
        self._failures = failures

    def _make_handler(self, entity: Any, node: Any, take: Any, *call: Any) -> Any:
        """As rclpy's, around callbacks that raise nothing.

        Jazzy: `take(entity)` gives a coroutine function, or None. Humble: `take(entity)` gives
        what `call[0](entity, taken)` is awaited with.
        """
        doing = f"a callback of {_name_of(entity)}"

        def taken(entity: Any) -> Any:
            # An exception here would leave the entity blocked for ever.
            found = self._reported(doing, lambda: take(entity))
            return guarded(found) if found is not None and not call else found

        def guarded(work: Callable[..., Any]) -> Any:
            async def run(*args: Any) -> Any:
                try:
                    return await work(*args)
                except BaseException as e:
                    self._failures.report(e, doing=doing)

            return run

        return super()._make_handler(entity, node, taken, *[guarded(c) for c in call])

    def _reported(self, doing: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except BaseException as e:
            self._failures.report(e, doing=doing)
            return None


def _name_of(entity: Any) -> str:
    for attribute in ("srv_name", "topic_name"):
        name = getattr(entity, attribute, "")
        if isinstance(name, str) and name:
            return name
    return type(entity).__name__.lower()


def state_label(node: Any) -> str:
    """The present lifecycle state of a node."""
    return str(node._state_machine.current_state[1])


def parameters_given(node: Any) -> dict[str, Any]:
    """The parameters of the command line and of parameter files, by name, also unknown ones."""
    return dict(getattr(node, "_parameter_overrides", {}))


def answer_while_busy(node: Any, transition_group: CallbackGroup) -> None:
    """Let questions be answered during a transition, refuse invalid transitions.

    rclpy puts the services of the lifecycle and the parameters in one group, so `get_state`
    and `get_parameters` would wait for a configure that builds an engine for minutes; and a
    transition that the state does not have raises in its callback.
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


def answer_whatever_happens(node: Any, failures: Failures) -> None:
    """Let the services that rclpy gives a node answer also where their callbacks raise.

    A parameter of a type that is none, for one, raises in that of `set_parameters`.
    """
    for service in node.services:
        kind = service.srv_type
        inner = service.callback
        if kind is SetParameters:
            inner = _setting_each(inner, failures)
        elif kind is SetParametersAtomically:
            inner = _setting_all(inner, failures)
        service.callback = _answering(inner, service.srv_name, failures)


def _answering(inner: Callable[..., Any], name: str, failures: Failures) -> Callable[..., Any]:
    def callback(request: Any, response: Any) -> Any:
        try:
            return inner(request, response)
        except BaseException as e:
            failures.report(e, doing=f"the service {name}")
            return response

    return callback


def _setting_each(inner: Callable[..., Any], failures: Failures) -> Callable[..., Any]:
    """`set_parameters`: each parameter has its result, whatever is wrong with the others."""

    def callback(request: Any, response: Any) -> Any:
        results = []
        for parameter in request.parameters:
            reason = _no_parameter(parameter)
            if not reason:
                try:
                    answer = inner(
                        SetParameters.Request(parameters=[parameter]), SetParameters.Response()
                    )
                    results += answer.results
                    continue
                except Exception as e:
                    failures.report(e, doing="set_parameters")
                    reason = f"{parameter.name!r} cannot be set: {reason_of(e)}"
            results.append(SetParametersResult(successful=False, reason=reason))
        response.results = results
        return response

    return callback


def _setting_all(inner: Callable[..., Any], failures: Failures) -> Callable[..., Any]:
    """`set_parameters_atomically`: all of them or none."""

    def callback(request: Any, response: Any) -> Any:
        reason = next(filter(None, map(_no_parameter, request.parameters)), "")
        if not reason:
            try:
                return inner(request, response)
            except Exception as e:
                failures.report(e, doing="set_parameters_atomically")
                reason = f"the parameters cannot be set: {reason_of(e)}"
        response.result = SetParametersResult(successful=False, reason=reason)
        return response

    return callback


def _no_parameter(message: Any) -> str:
    """Why a message is no parameter; "" where it is one."""
    try:
        Parameter.from_parameter_msg(message)
    except Exception as e:
        return (
            f"{message.name!r} is no parameter: {reason_of(e)}; give a type of "
            "rcl_interfaces/msg/ParameterType, from 0 to 9"
        )
    return ""
