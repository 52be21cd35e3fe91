"""Runs everything of this folder in some 20 minutes, and prints a table: `make soak`.

Each part is a function with a count, run in a process of its own with a limit of memory. It ends
when its count or its share of the time is reached. `--only PART` runs one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEMORY_BYTES = 6 << 30


@dataclass(frozen=True)
class Part:
    """What is run, how often, and for how long at most."""

    name: str
    what: str
    module: str
    count: int
    seconds: float  # for each process at most
    jobs: int = 1  # processes among which the count is divided
    times: int = 1  # cases for each of the count


# The long ones first, so that two processes end together.
PARTS = (
    Part("lifecycle", "cycles of a node's lifecycle, without growth", "soak_node", 1000, 600),
    Part("commands", "kills of nine commands", "soak_kills", 1000, 900, 2, times=9),
    Part("node_core", "kills of the node's core (no DDS)", "soak_kills", 1000, 200, 2),
    Part("images", "damaged images and wrong buffers", "soak_images", 100_000, 150, 2),
    Part("maps", "damaged maps, opened as the node does", "soak_maps", 5000, 200, 2),
    Part("bags", "damaged bags", "soak_files", 2000, 150),
    Part("node_kills", "kills of whole nodes", "soak_node", 200, 400, 2),
    Part("services", "requests to a node", "soak_node", 3000, 100),
    Part("cdr", "damaged messages to two nodes", "soak_node", 20_000, 100),
    Part("engines", "damaged engine files", "soak_files", 5000, 80),
    Part("yamls", "damaged YAML files", "soak_files", 5000, 80),
)


def run_part(part: Part, count: int, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a part in this process; what became of it."""
    started = time.monotonic()
    result: dict[str, Any] = {"part": part.name, "outcomes": {}, "error": ""}
    try:
        function = getattr(importlib.import_module(part.module), part.name)
        if part.module == "soak_node":
            from vpr_process import Client, starter

            client = Client()
            starting = starter(client, folder)
            try:
                outcomes = function(count, seed, folder, next(starting), seconds)
            finally:
                next(starting, None)  # ends the nodes
                client.close()
        elif part.name == "images":
            outcomes = function(count, seed, seconds)
        else:
            outcomes = function(count, seed, folder, seconds)
        result["outcomes"] = dict(outcomes)
    except BaseException as e:  # as a test runner does
        traceback.print_exc()
        notes = " ".join(getattr(e, "__notes__", ()))
        result["error"] = " ".join(f"{type(e).__name__}: {e} {notes}".split())[:500]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result["mb"] = round(usage.ru_maxrss / 1000)
    result["seconds"] = round(time.monotonic() - started, 1)
    return result


def jobs_of(part: Part, scale: float) -> int:
    """Among how many processes a part is divided; a start of each takes a second."""
    return part.jobs if scale > 0.1 else 1


def run_job(part: Part, job: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run a share of a part in a process of its own."""
    count = max(1, round(part.count * options.scale) // jobs_of(part, options.scale))
    seconds = part.seconds * options.scale if options.scale > 1 else part.seconds
    # Hypothesis and the kills have other cases for each seed.
    seed = options.seed + 1_000_000 * job
    with tempfile.TemporaryDirectory(prefix=f"soak_{part.name}_") as name:
        out, log = Path(name) / "result.json", Path(name) / "log"
        command = [sys.executable, __file__, "--part", part.name, "--count", str(count)]
        command += ["--seed", str(seed), "--seconds", str(seconds), "--out", str(out)]
        with log.open("w") as f:
            process = subprocess.run(
                command,
                stdout=f,
                stderr=subprocess.STDOUT,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        if out.exists():
            result: dict[str, Any] = json.loads(out.read_text())
        else:
            result = {"part": part.name, "outcomes": {}, "seconds": 0.0, "mb": 0}
            result["error"] = f"the process ended with {process.returncode}"
        if result["error"]:
            lines = log.read_text(errors="replace").splitlines()[-40:]
            print(f"{part.name}, seed {seed}:", *lines, sep="\n  ", file=sys.stderr, flush=True)
    result |= {"target": count * part.times, "seed": seed}
    print(f"{part.name} {job + 1}: {result['seconds']} s", file=sys.stderr, flush=True)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """What became of each part, as Markdown."""
    lines = ["| what | cases | of | outcomes | CPU of the slowest | memory | wall | result |"]
    lines.append("|---|--:|--:|---|--:|--:|--:|---|")
    for part in PARTS:
        jobs = [r for r in results if r["part"] == part.name]
        if not jobs:
            continue
        outcomes: dict[str, int] = {}
        for key, value in ((k, v) for r in jobs for k, v in r["outcomes"].items()):
            largest = key == "slowest" or key.startswith("MiB")
            outcomes[key] = (
                max(outcomes.get(key, 0), value) if largest else (outcomes.get(key, 0) + value)
            )
        cases, slowest = outcomes.pop("cases", 0), outcomes.pop("slowest", None)
        shown = ", ".join(f"{value:,} {key}" for key, value in sorted(outcomes.items()))
        failed = [r["error"] for r in jobs if r["error"]]
        target = sum(r["target"] for r in jobs)
        verdict = "FAILED" if failed else "good" if cases >= target else "good, time ran out"
        lines.append(
            f"| {part.what} | {cases:,} | {target:,} | {shown} "
            f"| {'' if slowest is None else f'{slowest} ms'} | {max(r['mb'] for r in jobs)} MB "
            f"| {max(r['seconds'] for r in jobs):.0f} s | {verdict} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """What this runs on, and when."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [p.name for p in PARTS]
    parser.add_argument("--only", action="append", choices=names, help="run this part")
    parser.add_argument("--scale", type=float, default=1.0, help="times the counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    for name, kind in (("part", str), ("count", int), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = next(p for p in PARTS if p.name == options.part)
        if part.module != "soak_node":
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with tempfile.TemporaryDirectory(prefix="soak_") as name:
            result = run_part(part, options.count, options.seed, options.seconds, Path(name))
        options.out.write_text(json.dumps(result))
        return 0
    parts = [p for p in PARTS if p.name in (options.only or names)]
    jobs = [(p, j) for p in parts for j in range(jobs_of(p, options.scale))]
    started = time.monotonic()
    with ThreadPoolExecutor(options.processes) as pool:
        results = list(pool.map(lambda job: run_job(*job, options), jobs))
    minutes = (time.monotonic() - started) / 60
    print(table(results))
    print(f"\n{machine()}; {minutes:.1f} min with {options.processes} processes.")
    content = {"machine": machine(), "minutes": round(minutes, 1), "results": results}
    options.out.write_text(json.dumps(content, indent=1))
    return int(any(r["error"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
