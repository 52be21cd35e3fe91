"""Settings of the node and of training as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.setting import shown
from hashvpr_ros.yaml_file import parse_yaml, read_yaml


def set_option(example: str) -> Callable[[Any], Any]:
    """The option --set; see `change_of`."""
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="NAME=VALUE",
        help=f"Set a parameter, such as {example}. May be repeated.",
    )


def change_of(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE, the value as YAML has it.

    Raises:
        ConfigError: it is no such text.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes NAME=VALUE, not {shown(text)}")
    return name.strip(), parse_yaml(value, f"--set {name.strip()[:60]}", "correct the value")


def read_parameter_file(path: Path, node: str = "vpr_node") -> dict[str, Any]:
    """The parameters that a ROS 2 parameter file gives a node, by dotted names.

    Sections count whose name is that of the node, with or without a namespace, or has wildcards
    (`/**`, `/*`); of two that set the same, the later one does. QoS overrides and `use_sim_time`
    are the node's alone and are left out.

    Raises:
        ConfigError: no such file, no YAML, or no parameters of the node in it.
    """
    content = read_yaml(path, "give a ROS 2 parameter file")
    found: dict[str, Any] = {}
    sections = content.items() if isinstance(content, dict) else ()
    matched = False
    for name, section in sections:
        if name.rstrip("/").split("/")[-1] not in (node, "*", "**"):
            continue
        parameters = section.get("ros__parameters") if isinstance(section, dict) else None
        if isinstance(parameters, dict):
            matched = True
            found |= _flat(parameters, "")
    if not matched:
        raise ConfigError(
            f"{path}: has no parameters of {node} (a section '/**' or '{node}' with "
            "ros__parameters); `hashvpr config` prints a file to begin with"
        )
    return {
        k: v
        for k, v in found.items()
        if k != "use_sim_time" and not k.startswith("qos_overrides.")
    }


def _flat(tree: dict[Any, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
