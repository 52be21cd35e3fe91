"""`hashvpr config`: config/vpr.yaml, made from the settings themselves."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click

from hashvpr_ros.config import Config
from hashvpr_ros.setting import CONFIGURE, LIVE, START, Setting, settings

_HEADER = """\
# Every parameter of vpr_node with its default, as `hashvpr config` prints it. Edit a copy and give
# it to the launch file as params_file:=...; a parameter that is left out keeps its default.
"""
_CHANGE = {
    LIVE: "may change at any time",
    CONFIGURE: "may change while the node is unconfigured",
    START: "set at start-up only",
}


def parameters_yaml() -> str:
    """All parameters as a ROS 2 parameter file for any node name, with comments."""
    lines = [_HEADER + "/**:", "  ros__parameters:"]
    present_group = ""
    for setting in settings(Config()):
        group, _, leaf = setting.name.rpartition(".")
        if group != present_group:
            lines += ["", f"    {group}:"]
            present_group = group
        indent = "      " if group else "    "
        lines += textwrap.wrap(
            _comment(setting), 97, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        lines.append(f"{indent}{leaf}: {_value(setting.default)}")
    return "\n".join(lines) + "\n"


def _comment(setting: Setting) -> str:
    facts = []
    if setting.unit:
        facts.append(setting.unit)
    if setting.low is not None and setting.high is not None:
        facts.append(f"{setting.low:g} to {setting.high:g}")
    facts.append(_CHANGE[setting.change])
    return f"{setting.doc} [{'; '.join(facts)}]"


def _value(value: Any) -> str:
    """YAML of a value: what JSON has, YAML has."""
    return json.dumps(value)


def parameters_table() -> str:
    """All parameters as a Markdown table; the README has it."""
    lines = ["| parameter | default | range | meaning |", "|---|---|---|---|"]
    for s in settings(Config()):
        allowed = ", ".join(s.choices)
        if s.low is not None and s.high is not None:
            allowed = f"{s.low:g} to {s.high:g} {s.unit}".strip()
        live = " *" if s.change == LIVE else ""
        meaning = s.doc.rstrip(".,") + "."
        lines.append(f"| `{s.name}`{live} | `{_value(s.default)}` | {allowed} | {meaning} |")
    return "\n".join(lines) + "\n"


@click.command(name="config")
@click.option("--table", "as_table", is_flag=True, help="As a Markdown table instead.")
def command(as_table: bool) -> None:
    """Print every parameter of the node, with its default and meaning, as a parameter file."""
    click.echo(parameters_table() if as_table else parameters_yaml(), nl=False)
