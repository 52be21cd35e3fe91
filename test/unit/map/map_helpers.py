"""Maps of made-up descriptors, and processes of their own that work on them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from hashvpr_ros.map.place_map import NewPlace, PlaceMap
from hashvpr_ros.types import Descriptor, Pose

FINGERPRINT = "ab" * 32
DIM = 32
ROOT = Path(__file__).parents[3]


def open_map(path="", **options) -> PlaceMap:
    """A map of the model that all tests use; long commit period, so that tests decide."""
    return PlaceMap.open(path, FINGERPRINT, DIM, **{"commit_period_s": 1e9} | options)


def descriptor(seed: int) -> Descriptor:
    rng = np.random.default_rng(seed)
    feature = rng.standard_normal(DIM).astype(np.float32)
    return Descriptor(rng.integers(0, 256, 64, np.uint8), feature / np.linalg.norm(feature))


def place(i: int) -> NewPlace:
    """A place with a pose, and with a thumbnail where i is even."""
    pose = Pose((i + 0.25, -i - 0.5, 0.125), (0.0, 0.0, 0.6, 0.8), "odom")
    thumbnail = b"\xff\xd8 thumbnail %d " % i * 8 if i % 2 == 0 else None
    return NewPlace(f"camera{i % 2}", i * 10**9, pose, descriptor(i), thumbnail)


def add_places(place_map: PlaceMap, begin: int, end: int) -> list[int]:
    return place_map.add_many([place(i) for i in range(begin, end)])


def make_map(path: Path, n: int = 20, **options) -> Path:
    """A closed map file of places 1 to n."""
    with open_map(path, session="s", **options) as place_map:
        add_places(place_map, 1, n + 1)
    return path


def folder_state(folder: Path) -> dict[str, bytes | None]:
    """Every name under a folder with its bytes, None for what is not a file."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


_HEAD = """
import os, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
from map_helpers import *
from hashvpr_ros.errors import MapError
def say(*words): print(*words, flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    """Start a script in a process of its own that finds these helpers and `say`."""
    head = _HEAD.format(root=str(ROOT), here=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(script: str, *arguments: object) -> str:
    """Run a script to its end; its output."""
    process = start(script, *arguments)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


AS_NOBODY = """
# The interpreter may lie where only root can read: import first, then become somebody else.
import numpy.ma, numpy.random, uuid
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
