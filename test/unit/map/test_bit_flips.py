"""A flipped bit anywhere in a map file is found by `verify`, or the map says what it said."""

import dataclasses
import os
import random
import sqlite3
import struct
from contextlib import closing

import pytest
from map_helpers import FINGERPRINT, add_places, descriptor, open_map, place

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.backup import damage_of
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.verdicts import StoredVerdict

START_NS = 17 * 10**17
CALIBRATION = Calibration(slope=2.5, intercept=-1.25, right=10, wrong=990)
PRAGMAS = (
    "application_id", "user_version", "encoding", "page_size", "auto_vacuum", "freelist_count",
    "page_count",
)  # fmt: skip


def at_its_time(i):
    """A place with a stamp of eight bytes."""
    return dataclasses.replace(place(i), stamp_ns=START_NS + i)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A map in which every table has rows and some pages are free."""
    path = tmp_path_factory.mktemp("flips") / "m"
    with open_map(path, session="monday", model_name="model of monday") as place_map:
        add_places(place_map, 1, 100)
        place_map.flush()
        place_map.clear()
        place_map.add_many([at_its_time(i) for i in range(1, 13)])
        place_map.start_session("tuesday")
        place_map.add_many([at_its_time(i) for i in range(13, 25)])
        place_map.set_calibration(CALIBRATION)
        place_map.add_headings({"camera1": 3.125})
        place_map.flush()
        for i in range(5):
            place_map.add_verdict(StoredVerdict(10**15 + i, 40 + i, "accepted", 1.5 + i))
    with closing(sqlite3.connect(path)) as db:
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        assert free > 0
    return path


def content(path):
    """Every row of every table, and the settings of the file; text as it is stored."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as db:
        db.text_factory = bytes
        names = sorted(name for (name,) in db.execute("SELECT name FROM sqlite_master"))
        tables = [n.decode() for n in names if not n.startswith(b"sqlite_autoindex")]
        assert len(tables) == 7
        rows = {t: db.execute(f"SELECT * FROM {t}").fetchall() for t in [*tables, "sqlite_master"]}
        pragmas = [db.execute(f"PRAGMA {name}").fetchone() for name in PRAGMAS]
        return repr((rows, pragmas))


def found(path):
    """Whether `hashvpr map verify` reports damage."""
    try:
        return bool(damage_of(path, {}))
    except MapError:
        return True


class Flipper:
    """Flips single bits of a copy of a map and looks at what becomes of it."""

    def __init__(self, path, folder):
        self.sound = path.read_bytes()
        self.content = content(path)
        self.path = folder / "flipped"
        self.found = self.same = 0

    def flip(self, at, bit):
        damaged = bytearray(self.sound)
        damaged[at] ^= 1 << bit
        self.path.write_bytes(damaged)
        if found(self.path):
            self.found += 1
            return
        assert content(self.path) == self.content, f"bit {bit} of byte {at} is not found"
        self.same += 1


@pytest.fixture
def flipper(path, tmp_path):
    flipper = Flipper(path, tmp_path)
    assert not found(path)
    return flipper


def test_bits_at_random(flipper):
    """More of them: `VPR_BIT_FLIPS=30000 pytest -s -k random` prints what became of them."""
    rng = random.Random(1)
    sound = flipper.sound
    # Most of so small a file is free space, which is looked at below.
    held = [at for at in range(len(sound)) if any(sound[max(0, at - 8) : at + 9])]
    for _ in range(int(os.environ.get("VPR_BIT_FLIPS", "500"))):
        flipper.flip(rng.choice(held), rng.randrange(8))
    print(f"{flipper.found} found, {flipper.same} of no effect")
    assert flipper.found > 10 * flipper.same > 0


def test_every_bit_of_the_header(flipper):
    for at in range(100):
        for bit in range(8):
            flipper.flip(at, bit)
    # What is free to change: schema cookie and number of the SQLite version that wrote last,
    # and what SQLite writes nowhere but here.
    assert flipper.same <= 8 * (4 + 4 + 4)


def test_the_first_bits_of_each_page(flipper):
    for page in range(0, len(flipper.sound), 4096):
        for at in range(16):
            flipper.flip(page + at + (100 if page == 0 else 0), at % 8)


def columns(sound):
    """Where values of each column and what steers their reading lie: name to (begin, length)."""
    stamp = struct.pack(">q", START_NS + 23)  # of session 2
    session = sound.rindex(b"\x02camera1" + stamp)
    places = {
        "keyframes.session_id": (session, 1),
        "keyframes.camera": (session + 1, 7),
        "keyframes.stamp_ns": (session + 8, 8),
        "keyframes.frame_id": (session + 16, 4),
        "keyframes.pose": (session + 20, 5 * 8),
        "keyframes.code": (sound.rindex(descriptor(23).code.tobytes()), 64),
        "keyframes: types": (session - 18, 18),
        "keyframes.id": (session - 19, 1),
        "keyframes: length": (session - 21, 2),
    }
    code = places["keyframes.code"][0]
    places["keyframes: all checksums"] = (code + 64, 8)
    feature = descriptor(24).feature.astype("<f2").tobytes()
    jpeg = place(24).thumbnail
    for name, value in {
        "features.feature": feature,
        "thumbnails.jpeg": jpeg,
        "sessions.name": b"tuesday",
        "meta.key": b"model_name",
        "meta.value: fingerprint": FINGERPRINT.encode(),
        "meta.value: model": b"model of monday",
        "meta.value: calibration": b"-1.25",
        "meta.value: headings": b"3.125",
        "verdicts.query_ns": struct.pack(">q", 10**15 + 3)[1:],
        "verdicts.verdict": b"accepted",
        "verdicts.log_odds": struct.pack(">d", 4.5),
        "checks.name": b"last id",  # followed by the id 123
        "sqlite_master.sql": b"CREATE TABLE checks",
    }.items():
        begin = sound.rindex(value)
        places[name] = (begin, len(value))
        # Before it, at least the type of the value, and the id of its row.
        places[f"{name}: types and id"] = (begin - 6, 6)
    places["checks.count"] = (places["checks.name"][0] + 7, 1)
    return places


def test_each_column(flipper):
    for name, (begin, length) in columns(flipper.sound).items():
        before = flipper.found
        for at in range(begin, begin + length, max(1, length // 12)):
            for bit in range(8) if length < 10 else (at % 8,):
                flipper.flip(at, bit)
        assert flipper.found > before, name
        if ":" not in name.replace("meta.value: ", ""):
            assert flipper.same == 0, name
        flipper.same = 0


def test_free_space_is_not_covered_and_says_nothing(flipper, path):
    """The honest exception: nobody reads these bits, so that nothing depends on them."""
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
    (trunk,) = struct.unpack_from(">I", flipper.sound, 32)
    (leaves,) = struct.unpack_from(">I", flipper.sound, (trunk - 1) * size + 4)
    assert leaves > 0
    (leaf,) = struct.unpack_from(">I", flipper.sound, (trunk - 1) * size + 8)
    for at in range((leaf - 1) * size, leaf * size, 40):  # a free page
        flipper.flip(at, at % 8)
    # Between the pointers to the cells of a page and its first cell.
    for page in range(size, len(flipper.sound), size):
        kind, _, cells, begin = struct.unpack_from(">BHHH", flipper.sound, page)
        if kind in (10, 13) and begin:
            middle = page + (8 + 2 * cells + begin) // 2
            if begin - 8 - 2 * cells > 4:
                flipper.flip(middle, 3)
    assert flipper.same > 100 and flipper.found == 0
