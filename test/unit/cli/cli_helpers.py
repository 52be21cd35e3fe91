"""Runs the command line, and says what its answers must look like."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from hashvpr_ros.cli import main as entry

COMMAND = [sys.executable, "-m", "hashvpr_ros.cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(entry.__file__).parents[2])}


def process(*arguments):
    """The command as a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=100, env=ENVIRONMENT,
    )  # fmt: skip


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def well(done):
    assert done.code == 0, done.err
    return done.out


def refused(done, *words):
    """One line on stderr, exit code 2."""
    assert done.code == 2
    assert re.fullmatch(r"hashvpr: error: [^\n]+\n", done.err), done.err
    for word in words:
        assert str(word) in done.err, done.err


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)
