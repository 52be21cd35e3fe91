"""Parameter files that ROS reads and that set nothing, because they are of other nodes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.yaml_file import read_yaml

_SHOWN = 5  # keys of other nodes


def without_effect(arguments: Sequence[str], node: str) -> list[str]:
    """A sentence for each file given by `--params-file` that holds nothing for a node.

    ROS ignores them silently.

    Args:
        arguments: of the process.
        node: its name with its namespace.
    """
    sentences = []
    for flag, file in itertools.pairwise(arguments):
        if flag != "--params-file":
            continue
        keys = _nodes_of(file)
        if keys and not any(_matches(key, node) for key in keys):
            shown = ", ".join(repr(k) for k in keys[:_SHOWN]) + (", …" * (len(keys) > _SHOWN))
            sentences.append(
                f"{file}: sets no parameter of {node}, as it is for {shown}; write '/**' or "
                f"'{node}' there"
            )
    return sentences


def _nodes_of(file: str) -> list[str]:
    """The nodes that a file has parameters of, as it names them; none for what is no such file."""
    try:
        return list(_named(read_yaml(Path(file)), ""))
    except ConfigError:
        return []  # ROS has read it, or has said what is wrong


def _named(content: Any, path: str) -> Iterator[str]:
    if not isinstance(content, dict):
        return
    for key, inner in content.items():
        if key == "ros__parameters":
            yield path
        else:
            yield from _named(inner, f"{path}/{str(key).strip('/')}")


def _matches(key: str, node: str) -> bool:
    """Whether a key is that of a node: `*` is one name of its path, `**` any number of them."""
    pattern = "".join(
        r"(/\w+)*" if part == "**" else r"/\w+" if part == "*" else "/" + re.escape(part)
        for part in key.strip("/").split("/")
    )
    return re.fullmatch(pattern, node) is not None
