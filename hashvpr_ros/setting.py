"""One setting: its default, unit, range and meaning, kept at the field of a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
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


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 2, 4, 4, 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_LONGEST_TEXT, _MOST_ITEMS = 4096, 1000


def shown(value: object) -> str:
    """A value as an error message shows it: in one line and short, whatever it is."""
    try:
        return _SHORT.repr(value)[:160]
    except Exception:  # as of a number of more digits than Python prints
        return f"a value of type {type(value).__name__}"


def problem_with(setting: Setting, value: Any) -> str:
    """Why a value is not allowed for a setting, as a sentence; empty when it is allowed."""
    expected = type(setting.default)
    if expected is list:
        return _problem_with_list(setting, value)
    fits = (int, float) if expected is float else (expected,)
    if not isinstance(value, fits) or (expected is not bool and isinstance(value, bool)):
        return f"{setting.name} must be of type {expected.__name__}, not {shown(value)}"
    if isinstance(value, str):
        return _problem_with_text(setting, value)
    if expected in (int, float):
        if not _is_finite(value):
            return f"{setting.name} must be a finite number, not {shown(value)}"
        if setting.low is not None and value < setting.low:
            return f"{setting.name} must be at least {setting.low:g}, not {shown(value)}"
        if setting.high is not None and value > setting.high:
            return f"{setting.name} must be at most {setting.high:g}, not {shown(value)}"
        if abs(value) >= 2**63 and expected is int:  # more than a parameter holds
            return f"{setting.name} must be less than 2^63, not {shown(value)}"
    return ""


def _problem_with_text(setting: Setting, value: str) -> str:
    if setting.choices and value not in setting.choices:
        return f"{setting.name} must be one of {', '.join(setting.choices)}, not {shown(value)}"
    if len(value) > _LONGEST_TEXT:
        return f"{setting.name} must have at most {_LONGEST_TEXT} characters, not {len(value)}"
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        return f"{setting.name} must be a text without null characters, not {shown(value)}"
    return ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _problem_with_groups(setting: Setting, value: Any) -> str:
    known = ", ".join(f.name for f in dataclasses.fields(setting.items))
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, Mapping) for v in value):
        return (
            f"{setting.name} must be a list of mappings with some of {known}, not {shown(value)}"
        )
    for number, item in enumerate(value):
        try:
            with_values(setting.items(), item)
        except ConfigError as e:
            return f"entry {number} of {setting.name}: {e}"
    return ""


def _problem_with_list(setting: Setting, value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > _MOST_ITEMS:
        return f"{setting.name} must have at most {_MOST_ITEMS} entries, not {len(value)}"
    if dataclasses.is_dataclass(setting.items):
        return _problem_with_groups(setting, value)
    numbers = setting.items is float
    what = "numbers" if numbers else "strings"
    kinds = (int, float) if numbers else (str,)
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(v, kinds) and not isinstance(v, bool) for v in value
    ):
        return f"{setting.name} must be a list of {what}, not {shown(value)}"
    if not numbers:
        return next(filter(None, (_problem_with_text(setting, v) for v in value)), "")
    if not all(_is_finite(v) for v in value):
        return f"{setting.name} must be finite numbers, not {shown(value)}"
    low, high = setting.low, setting.high
    if low is not None and high is not None and not all(low <= v <= high for v in value):
        return f"{setting.name} must be from {low:g} to {high:g}, not {shown(value)}"
    return ""


_Group = TypeVar("_Group")


def _hint(name: object, known: list[str]) -> str:
    """What may have been meant, or all that is known where that is little."""
    close = difflib.get_close_matches(str(name)[:80], known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}" if len(known) <= 8 else ""


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
            raise ConfigError(f"unknown setting {shown(name)}{_hint(name, list(known))}")
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
