"""Entry point of `hashvpr`: finds the command, turns errors into one line and exit code 2."""

from __future__ import annotations

import importlib
import sys

import click

from hashvpr_ros import __version__
from hashvpr_ros.errors import HashVprError

# Name -> one line of help. The module `cli/<name>.py` with its `command` is imported when used.
COMMANDS = {
    "map": "Build, inspect and verify maps.",
    "query": "Ask which places of a map images show.",
    "evaluate": "Measure recall and latency on a folder with ground truth.",
    "bench": "Measure search, engine and node beside the bare libraries.",
    "demo": "Run the node on a course that is driven twice, and report.",
    "export": "Write engine files from weights.",
    "config": "Print every parameter of the node as YAML.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"hashvpr_ros.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, name="hashvpr")
@click.version_option(__version__, prog_name="hashvpr")
def cli() -> None:
    """Visual place recognition: maps, queries, evaluation and benchmarks."""


def main() -> None:
    """Run the command line; never returns."""
    try:
        cli(prog_name="hashvpr")
    except HashVprError as e:
        click.echo(f"hashvpr: error: {e}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # `hashvpr ... | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
