"""A small part of the soak, in the same way as `make soak` runs all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).resolve().parents[1] / "soak" / "soak.py"
PARTS = {
    "images": 300,
    "maps": 15,
    "engines": 15,
    "bags": 6,
    "yamls": 15,
    "node_core": 3,
    "commands": 27,
}


def test_a_small_part_of_the_soak(tmp_path):
    out = tmp_path / "soak.json"
    command = [sys.executable, SOAK, "--scale", "0.003", "--out", out]
    for part in PARTS:
        command += ["--only", part]
    path = os.pathsep.join([str(SOAK.parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = {r["part"]: r for r in json.loads(out.read_text())["results"]}
    assert {name: r["outcomes"]["cases"] for name, r in results.items()} == PARTS
    # Fuzzing shows nothing where all is refused at the door.
    assert results["images"]["outcomes"]["decoded"] > 10
    assert done.stdout.count("| good |") == len(PARTS), done.stdout
