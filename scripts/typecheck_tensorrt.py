#!/usr/bin/env python3
"""Check the types of what calls TensorRT against `tensorrt-stubs`, where there is no TensorRT.

The stubs are fetched by pip into a temporary folder and not into the environment: without a
py.typed mypy would not read them there, and their folder imports as an empty `tensorrt`. They are
generated, and Python cannot parse two things in them, which are put right: parameters called `in`,
and one without a default after others with one.

    python scripts/typecheck_tensorrt.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUBS = "tensorrt-stubs==10.13.0.35.1"
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run mypy; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*pip, STUBS], check=True)
        for stub in Path(folder).rglob("*.pyi"):
            text = re.sub(r"\bin: ", "in_: ", stub.read_text())
            text = text.replace("channel_axis: int)", "channel_axis: int = 0)")
            stub.write_text("# mypy: ignore-errors\n" + text)  # their own are not ours
        options = ["--no-incremental", "--follow-imports=silent"]
        files = sorted((ROOT / "hashvpr_ros" / "engine").glob("tensorrt_*.py"))
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *options, *map(str, files)],
            env={**os.environ, "MYPYPATH": folder},
            cwd=ROOT,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
