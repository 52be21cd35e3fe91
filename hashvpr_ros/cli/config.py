"""`hashvpr config`: every parameter of the node, as the YAML file that a launch takes."""

from __future__ import annotations

import click

from hashvpr_ros.config import yaml_text


@click.command(name="config")
def command() -> None:
    """Print every parameter with its meaning, range and default as YAML.

    hashvpr config > my_robot.yaml
    """
    click.echo(yaml_text(), nl=False)
