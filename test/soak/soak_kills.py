"""`kill -9` of what writes maps, at any moment: what was promised is there, and nothing is torn.

The processes are forked from this one, which has imported everything, so that a life takes
milliseconds: the node's Runtime without DDS (soak_node.py kills whole nodes), and the commands.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from soak_runtime import MODEL, EngineDouble, drive, start

from hashvpr_ros.cli import main
from hashvpr_ros.errors import HashVprError
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.place_map import PlaceMap

# What the commands import when they are called, before the forks.
_LAZY = ("cli.calibrate", "cli.map", "cli.map_edit", "evaluation.calibrate", "map.export")
_LAZY += ("map.merge", "map.prune", "map.restore", "map.split", "mapping.reembed")
for _name in _LAZY:
    with suppress(ModuleNotFoundError):  # only for speed, so it need not know every module
        importlib.import_module(f"hashvpr_ros.{_name}")

_LIVES_OF_A_MAP = 25
PLACES = 200


def fork(work: Callable[[], int | None]) -> int:
    """Run something in a process of its own, which says nothing; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        code = work() or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        os._exit(code)


def node_core(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Kill what the node owns (map, matching, worker thread) while it maps and commits.

    Raises:
        AssertionError: a map cannot be opened, is damaged, or lacks what was committed.
    """
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter(cases=0)
    end = time.monotonic() + seconds
    path = folder / "m.vprmap"
    promised = 0
    while outcomes["cases"] < count and time.monotonic() < end:
        if outcomes["cases"] % _LIVES_OF_A_MAP == 0:
            promised = 0
            for left in folder.iterdir():
                left.unlink()
        reading, writing = os.pipe()
        first = promised + 1000 * outcomes["cases"]
        pid = fork(lambda first=first, writing=writing: _map_for_ever(path, first, writing))
        os.close(writing)
        assert os.read(reading, 1) == b"!", "what is left of a map cannot be opened"
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        words = b""
        while more := os.read(reading, 65536):
            words += more
        os.close(reading)
        numbers = words.split(b"\n")[:-1]
        if numbers:
            promised = int(numbers[-1])
        outcomes["cases"] += 1
        outcomes["with commits" if numbers else "before a commit"] += 1
        if rng.random() < 0.5:  # else the next one finds the write-ahead log
            with PlaceMap.open(path, create=False, read_only=True) as found:
                assert len(found) >= promised, f"{len(found)} of {promised} keyframes"
                assert found.verify() == []
    return outcomes


def _map_for_ever(path: Path, first: int, pipe: int) -> None:
    running = start(path, mode="mapping", map__keep_good_copy=True)
    os.write(pipe, b"!")
    number = first
    while True:
        drive(running, range(number, number + 3))
        number += 3
        running.commit()
        os.write(pipe, b"%d\n" % len(running.map))


def _make_maps(folder: Path) -> None:
    for name, first, last in (("a", 0, PLACES), ("b", PLACES, 2 * PLACES), ("c", 0, 20)):
        running = start(folder / f"{name}.vprmap", mode="mapping", map__session=name)
        drive(running, range(first, last))
        running.map.set_calibration(Calibration(2.5, -1.25, right=10, wrong=990))
        running.close()


class OtherModel(EngineDouble):
    """What maps can be embedded by again."""

    info = dataclasses.replace(MODEL, name="other", fingerprint="cd" * 32)


# Command line with {} for the folder, and what it writes.
COMMANDS = {
    "merge": ("map merge {}/a.vprmap {}/b.vprmap {}/out.vprmap", "out.vprmap"),
    "merge over a map": (
        "map merge {}/a.vprmap {}/b.vprmap {}/c.vprmap --overwrite",
        "c.vprmap",
    ),
    "prune": ("map prune {}/a.vprmap {}/out.vprmap --keep 50", "out.vprmap"),
    "split": ("map split {}/a.vprmap {}/out.vprmap --session a", "out.vprmap"),
    "export csv": ("map export {}/a.vprmap {}/out.csv --format csv", "out.csv"),
    "export npz": ("map export {}/a.vprmap {}/out.npz --format npz", "out.npz"),
    "reembed": ("map reembed {}/a.vprmap {}/out.vprmap", "out.vprmap"),
    "restore": ("map restore {}/a.vprmap --force", "a.vprmap"),
    "calibrate": ("calibrate {}/a.vprmap --clear", "a.vprmap"),
}


def _command(line: str, folder: Path) -> int:
    from hashvpr_ros.engine import factory

    factory.create_engine = lambda *_, **__: OtherModel()  # type: ignore[assignment]
    sys.argv = ["hashvpr", *(word.replace("{}", str(folder)) for word in line.split())]
    main.main()


def commands(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Kill each command that writes, `count` times each.

    Raises:
        AssertionError: a source has changed, or what is written is there but not whole.
    """
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter(cases=0)
    sources, case = folder / "sources", folder / "case"
    sources.mkdir()
    _make_maps(sources)
    before = {p.name: p.read_bytes() for p in sources.iterdir()}
    for name, (line, out) in COMMANDS.items():
        end = time.monotonic() + seconds / len(COMMANDS)
        whole, usual_s = _run_whole(line, out, sources, case)
        for _ in range(count):
            if time.monotonic() > end:
                break
            _copy(sources, case)
            pid = fork(lambda line=line: _command(line, case))
            time.sleep(rng.uniform(0.0, 1.1 * usual_s))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            outcomes["cases"] += 1
            outcomes[_judge(name, out, case, before, whole)] += 1
    return outcomes


def _copy(sources: Path, case: Path) -> None:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sources, case)


def _run_whole(line: str, out: str, sources: Path, case: Path) -> tuple[object, float]:
    """What a command writes when it is let be, and how long it takes."""
    times = []
    for _ in range(3):
        _copy(sources, case)
        started = time.monotonic()
        _, status = os.waitpid(fork(lambda: _command(line, case)), 0)
        times.append(time.monotonic() - started)
        assert os.waitstatus_to_exitcode(status) == 0, f"hashvpr {line} fails"
    return _content(case / out), sorted(times)[1]


def _content(path: Path) -> object:
    """What a map or an exported file holds; maps are verified."""
    if path.suffix != ".vprmap":
        return len(path.read_bytes())
    with PlaceMap.open(path, create=False, read_only=True) as found:
        assert found.verify() == [], path
        return (found.ids().tolist(), found.calibration)


def _judge(name: str, out: str, case: Path, before: dict[str, bytes], whole: object) -> str:
    for source, content in before.items():
        if source != out:
            assert (case / source).read_bytes() == content, f"{name} changed {source}"
    path = case / out
    if not path.exists():
        assert out not in before, f"{name}: no {out} any more"
        return "nothing written"
    try:
        content = _content(path)
    except HashVprError as e:
        raise AssertionError(f"{name}: {e}") from e
    if content == whole:
        return "whole"
    if out in before and path.read_bytes() == before[out]:
        return "as before"
    raise AssertionError(f"{name}: {out} is neither whole nor as before")
