"""One setting: its default, unit, range and meaning, kept at the field of a dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hashvpr_ros.errors import ConfigError

# When a parameter may change: at any time; while the node is unconfigured; only at start-up.
LIVE, CONFIGURE, START = "live", "configure", "start"


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    change: str = CONFIGURE,
    items: type = str,
) -> Any:
    """A field of a dataclass of settings: its default, what it means, what is allowed."""
    meta = {
        "doc": doc,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
        "change": change,
        "items": items,  # of a list: str, float, or a dataclass of settings
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Setting:
    """One parameter, flattened: what the node declares and the documentation prints."""

    name: str  # dotted
    default: Any
    doc: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    change: str  # LIVE, CONFIGURE or START
    items: type  # of a list: str, float, or a dataclass of settings


def settings(group: Any, prefix: str = "") -> Iterator[Setting]:
    """All settings of a dataclass and the groups in it, in the order of their definition."""
    for f in dataclasses.fields(group):
        value = getattr(group, f.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{f.name}.")
        else:
            yield Setting(name=prefix + f.name, default=value, **f.metadata)


def problem_with(setting: Setting, value: Any) -> str:
    """Why a value is not allowed for a setting, as a sentence; empty when it is allowed."""
    expected = type(setting.default)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if expected is list:
        return _problem_with_list(setting, value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        return f"{setting.name} must be of type {expected.__name__}, not {value!r}"
    if setting.choices and value not in setting.choices:
        return f"{setting.name} must be one of {', '.join(setting.choices)}, not {value!r}"
    if expected in (int, float):
        if not math.isfinite(value):
            return f"{setting.name} must be a finite number, not {value!r}"
        if setting.low is not None and value < setting.low:
            return f"{setting.name} must be at least {setting.low:g}, not {value!r}"
        if setting.high is not None and value > setting.high:
            return f"{setting.name} must be at most {setting.high:g}, not {value!r}"
    return ""


def _problem_with_groups(setting: Setting, value: Any) -> str:
    known = ", ".join(f.name for f in dataclasses.fields(setting.items))
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, Mapping) for v in value):
        return f"{setting.name} must be a list of mappings with some of {known}, not {value!r}"
    for number, item in enumerate(value):
        try:
            with_values(setting.items(), item)
        except ConfigError as e:
            return f"entry {number} of {setting.name}: {e}"
    return ""


def _problem_with_list(setting: Setting, value: Any) -> str:
    if dataclasses.is_dataclass(setting.items):
        return _problem_with_groups(setting, value)
    numbers = setting.items is float
    what = "numbers" if numbers else "strings"
    kinds = (int, float) if numbers else (str,)
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(v, kinds) and not isinstance(v, bool) for v in value
    ):
        return f"{setting.name} must be a list of {what}, not {value!r}"
    if numbers and not all(math.isfinite(v) for v in value):
        return f"{setting.name} must be finite numbers, not {value!r}"
    low, high = setting.low, setting.high
    if low is not None and high is not None and not all(low <= v <= high for v in value):
        return f"{setting.name} must be from {low:g} to {high:g}, not {value!r}"
    return ""


_Group = TypeVar("_Group")


def with_values(config: _Group, values: Mapping[str, Any]) -> _Group:
    """A dataclass of settings and groups of them with other values, by dotted names.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or out of range.
    """
    known = {s.name: s for s in settings(config)}
    groups: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}; known are {', '.join(sorted(known))}")
        problem = problem_with(known[name], value)
        if problem:
            raise ConfigError(problem)
        if isinstance(known[name].default, float):
            value = float(value)
        elif isinstance(known[name].default, list):
            make = known[name].items
            group_items = dataclasses.is_dataclass(make)
            value = [with_values(make(), v) if group_items else make(v) for v in value]
        group, _, leaf = name.rpartition(".")
        (groups.setdefault(group, {}) if group else top)[leaf] = value
    for group, leaves in groups.items():
        top[group] = dataclasses.replace(getattr(config, group), **leaves)
    changed: _Group = dataclasses.replace(config, **top)  # type: ignore[type-var]
    return changed
