"""Entry point of `hashvpr`: finds the command, turns errors into one line and exit code 2."""

from __future__ import annotations

import importlib
import io
import sys
from typing import NoReturn

import click

from hashvpr_ros import __version__
from hashvpr_ros.errors import HashVprError

# Name -> one line of help. The module `cli/<name>.py` with its `command` is imported when used.
COMMANDS = {
    "map": "Build, inspect, verify, merge, prune, split and export maps.",
    "audit": "List distant places of a map that look alike.",
    "calibrate": "Fit the probabilities of matches with a map.",
    "query": "Find the places of a map that images show.",
    "evaluate": "Measure recall, loop closures and latency on image sets.",
    "replay": "Run the node's code on a bag, offline; or play it to a node.",
    "explain": "Explain why an image got a loop closure, or none.",
    "bench": "Time search, model and node against the plain libraries.",
    "demo": "Play a bag to the node over DDS, and write a report.",
    "train": "Train the float or the hash branch of a network.",
    "export": "Export a checkpoint to an .onnx file.",
    "engine": "Build TensorRT engines; print the facts of a model file.",
    "config": "Print every parameter of the node as YAML.",
}


# Since click 8.2 an error of its own; before, the help is printed without one.
_NO_ARGUMENTS: type[click.UsageError] | tuple[()] = getattr(
    click.exceptions, "NoArgsIsHelpError", ()
)


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
    """Visual place recognition: maps, queries, evaluation and benchmarks.

    Exit codes: 0, success; 2, an error; 3, there is a result, but it lacks images that could not
    be read or were not answered; 130, interrupted.
    """


def main() -> None:
    """Run the command line; never returns."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files can be any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(prog_name="hashvpr", standalone_mode=False))
    except _NO_ARGUMENTS as e:  # `hashvpr map`: its help, as click shows it
        e.show()
        sys.exit(2)
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        command = context.command_path if context else "hashvpr"
        _fail(f"{' '.join(e.format_message().split())} See `{command} --help`.")
    except click.Abort:
        click.echo("hashvpr: interrupted", err=True)
        sys.exit(130)
    except HashVprError as e:
        _fail(str(e))
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("hashvpr_ros"):
            raise
        _fail(f"the Python package {e.name} is not installed; install requirements/base.txt")
    except OSError as e:
        _fail(f"{e.filename or 'the system'}: {e.strerror or e}; check paths and free space")


def _fail(message: str) -> NoReturn:
    click.echo(f"hashvpr: error: {message}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
