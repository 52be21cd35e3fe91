"""The node's parameters, declared from `Config`: descriptors, checks, live changes."""

from __future__ import annotations

import difflib
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from hashvpr_ros.config import Config, from_flat
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.ros.allowed_dirs import AllowedDirs
from hashvpr_ros.ros.rclpy_internals import parameters_given
from hashvpr_ros.setting import CONFIGURE, LIVE, START, Setting, problem_with
from hashvpr_ros.setting import settings as all_settings

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
_LISTS = {
    str: ParameterType.PARAMETER_STRING_ARRAY,
    float: ParameterType.PARAMETER_DOUBLE_ARRAY,
}
_ARRAYS = {str: Parameter.Type.STRING_ARRAY, float: Parameter.Type.DOUBLE_ARRAY}
_SET_LATER = {
    LIVE: "Can be changed at any time.",
    CONFIGURE: "Can be changed while the node is unconfigured.",
    START: "Can be set at start-up only.",
}


class Parameters:
    """Declares all parameters on a node and keeps them valid.

    Attributes:
        allowed_dirs: where services may read and write maps.

    Args:
        node: a node that has none of them yet.
        may_configure: whether parameters of kind CONFIGURE may change now.
        on_live: called with the new configuration after a LIVE one was accepted.

    Raises:
        ConfigError: a value from the command line or a parameter file is not allowed.
    """

    def __init__(
        self, node: Node, may_configure: Callable[[], bool], on_live: Callable[[Config], None]
    ) -> None:
        self._node = node
        self._may_configure = may_configure
        self._on_live = on_live
        self._from_inside = 0  # thread that may set what is otherwise too late to set
        self._one_inside = threading.Lock()
        self._settings = {s.name: s for s in all_settings(Config())}
        for setting in self._settings.values():
            self._declare(setting)
        start = self.config().map
        self.allowed_dirs = AllowedDirs(start.allowed_dirs, start.path)
        node.add_on_set_parameters_callback(self._check)

    def config(self) -> Config:
        """The present values."""
        return from_flat(self._values())

    def set_mode(self, mode: str) -> None:
        """Let the parameter `mode` follow the service."""
        with self._unrestricted():
            self._node.set_parameters([Parameter("mode", Parameter.Type.STRING, mode)])

    def unknown(self) -> list[str]:
        """A sentence for each parameter that was given to the node and that it does not have."""
        given = parameters_given(self._node)
        sentences = []
        for name in sorted(given):
            if name.startswith("qos_overrides.") or self._node.has_parameter(name):
                continue
            close = difflib.get_close_matches(name, self._settings, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"parameter {name} is unknown and has no effect{hint}")
        return sentences

    def _declare(self, setting: Setting) -> None:
        final = _descriptor(setting)
        descriptor = _descriptor(setting)
        descriptor.read_only = False  # a list is set once more below
        try:
            given = self._node.declare_parameter(setting.name, setting.default, descriptor).value
        except ParameterException as e:
            raise ConfigError(f"parameter {setting.name}: {e}") from None
        if isinstance(setting.default, list):
            # An empty list arrives as "not set" or as bytes: it does not say of what it is empty.
            value = _plain(setting, given)
            problem = problem_with(setting, value)
            if not problem:
                self._node.set_parameters([Parameter(setting.name, _ARRAYS[setting.items], value)])
        else:
            problem = problem_with(setting, given)
        if problem:
            raise ConfigError(f"parameter {problem}")
        if final.read_only:
            self._node.set_descriptor(setting.name, final)

    def _values(self) -> dict[str, Any]:
        return {
            name: _plain(s, self._node.get_parameter(name).value)
            for name, s in self._settings.items()
        }

    @contextmanager
    def _unrestricted(self) -> Iterator[None]:
        with self._one_inside:
            self._from_inside = threading.get_ident()
            try:
                yield
            finally:
                self._from_inside = 0

    def _check(self, changes: list[Parameter]) -> SetParametersResult:
        live = {}
        for change in changes:
            setting = self._settings.get(change.name)
            if setting is None:
                continue
            value = _plain(setting, change.value)
            problem = problem_with(setting, value)
            inside = self._from_inside == threading.get_ident()
            if not problem and setting.change == CONFIGURE and not inside:
                problem = self._too_late(setting, value)
            if not problem and setting.name == "map.path":
                problem = self.allowed_dirs.problem_with(value)
            if problem:
                return SetParametersResult(successful=False, reason=problem)
            if setting.change == LIVE:
                live[change.name] = value
        if live:
            self._on_live(from_flat({**self._values(), **live}))
        return SetParametersResult(successful=True)

    def _too_late(self, setting: Setting, value: Any) -> str:
        if self._may_configure() or value == _plain(
            setting, self._node.get_parameter(setting.name).value
        ):
            return ""
        remedy = "call the service ~/set_mode, or " if setting.name == "mode" else ""
        return (
            f"{setting.name} takes effect when the node is configured: {remedy}deactivate and "
            "clean up the node, set it, then configure again"
        )


def _plain(setting: Setting, value: Any) -> Any:
    """A parameter's value as the configuration wants it."""
    if isinstance(setting.default, list):
        if value is None:
            return []
        if hasattr(value, "__len__") and len(value) == 0 and not isinstance(value, str):
            return []
        if isinstance(value, (list, tuple)):
            # [""] is how an empty list of strings can be given on a command line.
            return [v for v in value if v != ""]
        if isinstance(value, array):
            return list(value)
    return value


def _descriptor(setting: Setting) -> ParameterDescriptor:
    kind = type(setting.default)
    parts = [setting.doc]
    if setting.unit:
        parts.append(f"Unit: {setting.unit}.")
    if setting.choices:
        parts.append(f"One of: {', '.join(setting.choices)}.")
    parts.append(_SET_LATER[setting.change])
    descriptor = ParameterDescriptor(
        name=setting.name,
        type=_LISTS[setting.items] if kind is list else _TYPES[kind],
        description=" ".join(parts),
        read_only=setting.change == START,
        # So that 30 is taken for 30.0 and [] for an empty list; `_check` holds the types.
        dynamic_typing=kind in (float, list),
        additional_constraints=", ".join(setting.choices),
    )
    if kind is int and setting.low is not None and setting.high is not None:
        descriptor.integer_range = [
            IntegerRange(from_value=int(setting.low), to_value=int(setting.high), step=1)
        ]
    if kind is float and setting.low is not None and setting.high is not None:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(setting.low), to_value=float(setting.high))
        ]
    return descriptor
