"""What the fuzzers share: damage to bytes, and many cases of it with a limit for each."""

from __future__ import annotations

import faulthandler
import os
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

CASE_S = 20.0  # a case that takes longer hangs; its traceback is written and the process ends
_ERRORS = os.fdopen(os.dup(2), "w")  # past `stderr_of`

Edit = tuple[str, float, int]  # what is done, where as a share of the length, a number
_KINDS = ("flip", "flip", "flip", "byte", "byte", "number", "extreme", "extreme")
_KINDS = (*_KINDS, "cut", "insert", "remove", "repeat", "zeros")


def _edits(drawn: bytes) -> list[Edit]:
    fields = struct.iter_unpack("<BHI", drawn[: len(drawn) // 7 * 7])
    return [(_KINDS[kind % len(_KINDS)], where / 65536, value) for kind, where, value in fields]


# Bytes, not a list of tuples: Hypothesis draws these several times as fast.
EDITS: st.SearchStrategy[list[Edit]] = st.binary(min_size=7, max_size=35).map(_edits)
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged(original: bytes, edits: list[Edit]) -> bytes:
    """Bytes with some damage: flipped bits, other numbers, cut, doubled or missing pieces."""
    data = bytearray(original)
    for kind, where, value in edits:
        at = int(where * len(data))
        size = value % 64 + 1
        if kind == "flip" and data:
            data[at] ^= 1 << value % 8
        elif kind == "byte" and data:
            data[at] = value % 256
        elif kind in ("number", "extreme"):
            number = value if kind == "number" else _EXTREMES[value % len(_EXTREMES)]
            form = ("<I", ">I", "<H", ">H")[value % 4]
            mask = 2 ** (8 * struct.calcsize(form)) - 1
            data[at : at + struct.calcsize(form)] = struct.pack(form, number & mask)
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = value.to_bytes(4, "little") * (value % 5 + 1)
        elif kind == "remove":
            del data[at : at + size]
        elif kind == "repeat":
            data[at:at] = data[at : at + size] * (value % 7)
        elif kind == "zeros":
            data[at : at + size] = bytes(size)
    return bytes(data)


def fuzz(
    check: Callable[..., str],
    count: int,
    seed: int,
    seconds: float = float("inf"),
    **strategies: st.SearchStrategy[Any],
) -> Counter[str]:
    """Call a check with drawn arguments.

    Args:
        check: returns the outcome in a word or two, and raises where a case goes wrong.
        count: cases.
        seed: the same cases for the same seed.
        seconds: end before the count is reached when this time is over.

    Returns:
        how often each outcome came; "cases" and, in ms of CPU, "slowest" among them.
    """
    outcomes: Counter[str] = Counter(cases=0)
    end = time.monotonic() + seconds

    def run(**drawn: Any) -> None:
        faulthandler.dump_traceback_later(CASE_S, exit=True, file=_ERRORS)
        started = time.process_time()
        try:
            outcomes[check(**drawn)] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        outcomes["cases"] += 1
        taken_ms = round(1e3 * (time.process_time() - started))
        outcomes["slowest"] = max(outcomes["slowest"], taken_ms)

    # Hypothesis remembers all cases of a run, so a run is short.
    while outcomes["cases"] < count and time.monotonic() < end:
        some = min(500, count - outcomes["cases"])
        test = settings(
            max_examples=some,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )(hypothesis.seed(seed + outcomes["cases"])(hypothesis.given(**strategies)(run)))
        test()
    return outcomes


@contextmanager
def stderr_of() -> Iterator[Callable[[], str]]:
    """Gives what is written on the process's standard error, by libraries in C too."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)
