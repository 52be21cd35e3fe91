"""Damaged map files, opened as the node opens them: refused, said to be damaged, or as before."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from hypothesis import strategies as st
from soak_fuzz import EDITS, Edit, damaged, fuzz
from soak_runtime import answers, drive, listening, start

from hashvpr_ros.errors import HashVprError
from hashvpr_ros.map.place_map import PlaceMap

PLACES = range(1, 25)


class MapFuzzer:
    """A sound map and its good copy, and what becomes of damaged ones."""

    def __init__(self, folder: Path) -> None:
        self.sound, self.path = folder / "sound", folder / "case" / "m.vprmap"
        self.sound.mkdir(parents=True)
        for numbers, close in ((range(1, 13), True), (range(13, 25), False)):
            running = start(self.sound / "m.vprmap")
            drive(running, numbers)
            running.commit()
            if not close:  # as a killed node leaves it: what it wrote last is in the log
                shutil.copytree(self.sound, folder / "killed")
            running.close()
        self.files = {p.name: p.read_bytes() for p in self.sound.iterdir()}
        self.killed = {p.name: p.read_bytes() for p in (folder / "killed").iterdir()}
        self.path.parent.mkdir()
        self.wanted = self._ask(self.files)
        assert self._ask(self.killed)[0] == len(PLACES)

    def _ask(self, files: dict[str, bytes]) -> list:
        for left in self.path.parent.iterdir():
            left.unlink()
        for name, content in files.items():
            self.path.with_name(name).write_bytes(content)
        running = start(self.path, mode="localization")
        try:
            return answers(running, PLACES)
        finally:
            running.close()

    def check(self, edits: list[Edit], which: int, writes: bool) -> str:
        files = self.killed if which % 3 == 0 else self.files
        names = sorted(n for n in files if not n.endswith("-shm"))
        name = names[which // 3 % len(names)] if which % 5 == 0 else "m.vprmap"
        files = {**files, name: damaged(files[name], edits)}
        for left in self.path.parent.iterdir():
            left.unlink()
        for other, content in files.items():
            self.path.with_name(other).write_bytes(content)
        with listening() as said:
            outcome = self._start(writes, said, name.endswith("-wal"))
        for copy in self.path.parent.glob("*.good"):
            if copy.read_bytes() == files.get(copy.name):
                continue
            with PlaceMap.open(copy, read_only=True, create=False) as kept:
                assert kept.verify() == [], "the good copy was replaced by a damaged one"
        return outcome

    def _start(self, writes: bool, said: list[str], is_log: bool) -> str:
        mode = "slam" if writes else "localization"
        try:
            running = start(self.path, lambda e: said.append(str(e)), mode=mode)
        except HashVprError as e:
            assert "\n" not in str(e), str(e)
            return "refused"
        try:
            found = answers(running, PLACES)
            if found == self.wanted:
                return "as before"
            if said:
                return "said"
            # The end of a log may be damaged or not written yet, which looks the same.
            assert is_log, "other answers, and nothing was said"
            ids = running.map.ids().tolist()
            assert ids == list(range(1, len(ids) + 1)) and running.map.verify() == [], ids
            return "without the end of the log"
        except HashVprError:
            return "refused when asked"
        finally:
            running.close()


def maps(count: int, seed: int, folder: Path, seconds: float = float("inf")) -> Counter[str]:
    """Damaged maps, logs and good copies, opened by what the node owns, read and written.

    Raises:
        AssertionError: one is used in silence with other answers, or a good copy is lost.
    """
    fuzzer = MapFuzzer(folder)
    return fuzz(
        fuzzer.check,
        count,
        seed,
        seconds,
        edits=EDITS,
        which=st.integers(0, 10_000),
        writes=st.booleans(),
    )
