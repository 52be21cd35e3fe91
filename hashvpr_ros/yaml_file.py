"""The one reader of YAML that others wrote: plain values, in bounds, or one sentence.

Aliases are not taken, as ROS 2 does not take them in parameter files: a few lines of them unfold
to more than any memory. Nor are tags but those of plain values, and a date must be quoted, since
what it would become is neither a text nor a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hashvpr_ros.errors import ConfigError, reason_of
from hashvpr_ros.file_io import MB, read_text
from hashvpr_ros.setting import shown

_MOST_BYTES = 1 * MB
_MOST_DEPTH = 40
_MOST_VALUES = 20_000
_LONGEST_VALUE = 4096  # characters
_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset(
    f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")
)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _RefusedError(ValueError):
    """Why a text is not taken."""


def read_yaml(path: Path, remedy: str = "correct it") -> Any:
    """What a YAML file holds: dictionaries with texts as keys, lists, texts, numbers, None.

    Args:
        remedy: what to do where it is no YAML.

    Raises:
        ConfigError: the file cannot be read, is too large, or see `parse_yaml`.
    """
    return parse_yaml(read_text(path, _MOST_BYTES), str(path), remedy)


def parse_yaml(text: str, source: str, remedy: str = "correct it") -> Any:
    """What a YAML text holds; see `read_yaml`.

    Args:
        source: what the text is, for the error.

    Raises:
        ConfigError: it is no YAML, or has aliases, tags, dates, keys that are no texts or stand
            twice, or is nested too deeply or too large.
    """
    try:
        _check(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _value(loader, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as e:
        reason = reason_of(e.problem or e.context or "it is malformed") + _line(e.problem_mark)
    except _RefusedError as e:
        reason = str(e)
    except Exception as e:  # a control character is a ReaderError; and whatever else PyYAML raises
        reason = reason_of(e)
    raise ConfigError(f"{source}: cannot be read as YAML ({reason}); {remedy}")


def _line(mark: Any) -> str:
    return "" if mark is None else f" in line {mark.line + 1}"


def _check(text: str) -> None:
    """Refuse what has no bound before anything is built of it."""
    depth = count = 0
    for event in yaml.parse(text, Loader=_LOADER):
        where = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(
                f"it has the alias *{str(event.anchor)[:40]}{where}; write the value out"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST_VALUE:
            raise _RefusedError(f"it has a value of {len(event.value)} characters{where}")
        if isinstance(event, yaml.NodeEvent):
            count += 1
            tag = getattr(event, "tag", None)
            if tag not in (None, "!") and tag not in _PLAIN:
                raise _RefusedError(f"it has the tag {shown(tag)}{where}")
        if depth > _MOST_DEPTH:
            raise _RefusedError(f"it is nested more than {_MOST_DEPTH} levels deep{where}")
        if count > _MOST_VALUES:
            raise _RefusedError(f"it has more than {_MOST_VALUES} values")


def _value(loader: Any, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != f"{_TAG}str":
                name = shown(key.value) if isinstance(key, yaml.ScalarNode) else "that is a list"
                raise _RefusedError(
                    f"it has the key {name}{_line(key.start_mark)}, which is no text; write it "
                    "in quotes"
                )
            if key.value in found:
                raise _RefusedError(
                    f"it has the key {shown(key.value)} twice{_line(key.start_mark)}"
                )
            found[key.value] = _value(loader, value)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, v) for v in node.value]
    if node.tag not in _PLAIN:
        kind = "a date" if node.tag == f"{_TAG}timestamp" else f"a {node.tag.removeprefix(_TAG)}"
        raise _RefusedError(
            f"{shown(node.value)}{_line(node.start_mark)} is {kind}; write it in quotes"
        )
    try:
        return loader.construct_object(node)
    except Exception as e:  # PyYAML raises what its conversions do: Value-, Index- and KeyErrors
        kind = node.tag.removeprefix(_TAG)
        raise _RefusedError(f"{shown(node.value)}{_line(node.start_mark)} is no {kind}") from e
