"""Opening map files: each kind of bad file is refused and left alone, each good one is read."""

import contextlib
import os
import random
import shutil
import sqlite3
import struct
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from map_helpers import (
    AS_NOBODY,
    DIM,
    FINGERPRINT,
    add_places,
    descriptor,
    folder_state,
    make_map,
    open_map,
    run,
    start,
)

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import integrity
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.rows import KEYFRAME_COLUMNS, keyframe_crc, values_crc
from hashvpr_ros.map.schema import MapNotFoundError, WrongModelError

BOTH = pytest.mark.parametrize("read_only", [False, True])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a map of 20 places."""
    return make_map(tmp_path_factory.mktemp("sound") / "map", 20).read_bytes()


@pytest.fixture
def path(tmp_path, sound):
    """A fresh map of 20 places, alone in its folder."""
    (tmp_path / "a map.vprmap").write_bytes(sound)
    return tmp_path / "a map.vprmap"


def refused(path, reason, error=MapError, **options):
    """Opening raises an error that names the file and the reason, and leaves all as it was."""
    before = folder_state(path.parent)
    with pytest.raises(error, match=reason) as e:
        open_map(path, **options).close()
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert folder_state(path.parent) == before


@contextmanager
def altered(path):
    """A connection to change a map behind its back; leaves one file in rollback mode."""
    with closing(sqlite3.connect(path)) as db:
        yield db
        db.commit()
        db.execute("PRAGMA journal_mode = DELETE")


# What is no map


@BOTH
def test_a_missing_file(tmp_path, read_only):
    refused(tmp_path / "m", "no such map", MapNotFoundError, read_only=read_only, create=False)


def test_a_missing_file_is_made_only_by_a_known_model(tmp_path):
    for options in ({}, {"fingerprint": FINGERPRINT}, {"feature_dim": DIM}):
        with pytest.raises(MapNotFoundError, match="no such map"):
            PlaceMap.open(tmp_path / "m", **options)
        with pytest.raises(MapNotFoundError, match="in memory"):
            PlaceMap.open("", **options)
    with pytest.raises(MapNotFoundError):
        open_map(tmp_path / "m", read_only=True)
    with pytest.raises(MapNotFoundError):
        PlaceMap.read_info(tmp_path / "m")
    assert folder_state(tmp_path) == {}


@BOTH
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"S", "not an SQLite file"),
        (b"SQLite format 3\0", "not an SQLite file"),
        (b"SQLite format 3\0" + bytes(83), "not an SQLite file"),
        (b"SQLite format 3\0" + bytes(84), "another application"),
        (b"fingerprint: ab\nplaces: 3\n" * 50, "not an SQLite file"),
        (bytes(5000), "not an SQLite file"),
    ],
)
def test_foreign_content(tmp_path, content, reason, read_only):
    (tmp_path / "m").write_bytes(content)
    refused(tmp_path / "m", reason, read_only=read_only)


@BOTH
def test_a_foreign_database(tmp_path, read_only):
    for name, mode in (("rollback", "DELETE"), ("wal", "WAL")):
        with closing(sqlite3.connect(tmp_path / name)) as db:
            db.execute(f"PRAGMA journal_mode = {mode}")
            db.execute("CREATE TABLE t (a)")
            db.commit()
        refused(tmp_path / name, "another application", read_only=read_only)


@BOTH
def test_a_folder_a_pipe_and_a_device(tmp_path, read_only):
    (tmp_path / "d").mkdir()
    refused(tmp_path / "d", "is not a file", read_only=read_only)
    os.mkfifo(tmp_path / "p")  # opening one would wait for ever
    refused(tmp_path / "p", "is not a file", read_only=read_only)
    with pytest.raises(MapError, match="/dev/null: is not a file"):
        open_map("/dev/null", read_only=read_only)


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 300, "~no-such-user-of-any-kind/map", "file/map", "file/deep/er/map"]
)
def test_impossible_paths(tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"read_only": True}, {"create": False}):
        with pytest.raises(MapError):
            open_map(name, **options)
    with open_map() as place_map, pytest.raises(MapError):
        place_map.copy_to(name)
    assert folder_state(tmp_path) == {"file": b""}


# Maps that are damaged, newer, or of another model


@BOTH
def test_a_map_truncated_anywhere(path, sound, read_only):
    lengths = [*range(0, 120, 7), *range(120, len(sound), 997), len(sound) - 1]
    lengths += [n + d for n in range(4096, len(sound), 4096) for d in (-1, 0, 1)]
    for length in lengths:
        path.write_bytes(sound[:length])
        refused(path, "truncated|empty|not an SQLite", read_only=read_only)


@BOTH
@pytest.mark.parametrize("version", [4, 5, 2**31 - 1])
def test_a_newer_schema(path, version, read_only):
    with altered(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    refused(path, f"newer hashvpr_ros .schema {version}", read_only=read_only)


@BOTH
@pytest.mark.parametrize("version", [1, 2])
def test_a_schema_of_before_the_first_release(path, version, read_only):
    with altered(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    refused(path, "before the first release .*build it again from its images", read_only=read_only)


@BOTH
def test_no_schema_version(path, read_only):
    with altered(path) as db:
        db.execute("PRAGMA user_version = 0")
    refused(path, "no schema version", read_only=read_only)


@BOTH
def test_another_model(path, read_only):
    before = folder_state(path.parent)
    for fingerprint, dim in (("cd" * 32, DIM), (FINGERPRINT, DIM + 1), ("cd" * 32, 0)):
        with pytest.raises(WrongModelError, match=r"made by model unnamed \(abab") as e:
            PlaceMap.open(path, fingerprint, dim, model_name="other", read_only=read_only)
        assert str(path) in str(e.value) and "other" in str(e.value)
        assert folder_state(path.parent) == before


def test_another_model_leaves_even_a_file_in_rollback_mode_alone(tmp_path):
    with open_map() as place_map:
        add_places(place_map, 1, 5)
        place_map.copy_to(tmp_path / "m")  # the copy is in rollback mode, opening would change it
    before = folder_state(tmp_path)
    with pytest.raises(WrongModelError):
        PlaceMap.open(tmp_path / "m", "cd" * 32, DIM)
    assert folder_state(tmp_path) == before


@BOTH
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM meta", "table meta: has 0 rows, but 4 were written"),
        ("DELETE FROM meta WHERE key = 'map_id'", "table meta: has 3 rows, but 4 were written"),
        ("UPDATE meta SET value = x'00ff' WHERE key = 'fingerprint'", "table meta: a row does"),
        ("UPDATE meta SET value = 'cd' WHERE key = 'fingerprint'", "table meta: a row does not"),
        ("DROP TABLE meta", "missing or altered: meta"),
        ("DROP TABLE sessions", "missing or altered: sessions"),
        ("DROP TABLE features", "missing or altered: features"),
        ("ALTER TABLE keyframes ADD COLUMN more", "missing or altered: keyframes"),
        (
            "CREATE TRIGGER t AFTER INSERT ON keyframes BEGIN DELETE FROM features; END",
            "holds a trigger",
        ),
        (
            "DROP TABLE keyframes; CREATE VIEW keyframes AS WITH RECURSIVE r AS "
            "(SELECT 1 AS id UNION ALL SELECT id + 1 FROM r) SELECT * FROM r",
            "holds a view",
        ),
        (
            "PRAGMA ignore_check_constraints = ON; "
            "UPDATE keyframes SET code = zeroblob(63) WHERE id = 3",
            "keyframe 3: its content does not match",
        ),
        (
            # The sum of the lengths is right.
            "PRAGMA ignore_check_constraints = ON; "
            "UPDATE keyframes SET code = zeroblob(63) WHERE id = 3;"
            "UPDATE keyframes SET code = zeroblob(65) WHERE id = 4",
            "keyframe 3: its content does not match",
        ),
        (
            "PRAGMA ignore_check_constraints = ON; UPDATE keyframes SET code = 7 WHERE id = 3",
            "damaged",
        ),
        ("UPDATE keyframes SET stamp_ns = 'soon' WHERE id = 3", "keyframe 3: its content"),
        ("UPDATE keyframes SET stamp_ns = 1.5 WHERE id = 3", "keyframe 3: its content"),
        ("UPDATE keyframes SET session_id = 5000000000 WHERE id = 3", "keyframe 3: its content"),
        ("UPDATE keyframes SET session_id = 'x' WHERE id = 3", "keyframe 3: its content"),
        ("UPDATE sessions SET id = 5000000000", "table sessions: a row does not match"),
        (
            "PRAGMA ignore_check_constraints = ON; UPDATE keyframes SET id = -1 WHERE id = 3",
            "out of range",
        ),
        ("UPDATE checks SET count = 'many' WHERE name = 'last id'", "table checks: a row does"),
        ("UPDATE checks SET count = 19 WHERE name = 'last id'", "table checks: a row does not"),
        ("CREATE UNIQUE INDEX i ON thumbnails (id)", "holds the index 'i', which no map"),
        ("CREATE TABLE t (x)", "holds the table 't', which no map"),
    ],
)
def test_damaged_content(path, change, reason, read_only):
    with altered(path) as db:
        db.executescript(change)
    refused(path, reason, read_only=read_only)


def test_a_wrong_model_with_a_log_left_over_keeps_the_log(path):
    crash(path, 21, 30)
    before = folder_state(path.parent)
    assert len(before) > 1
    with pytest.raises(WrongModelError):
        PlaceMap.open(path, "cd" * 32, DIM)
    after = folder_state(path.parent)
    after.pop(path.name + "-shm"), before.pop(path.name + "-shm")  # where SQLite keeps its locks
    assert after == before
    with open_map(path, read_only=True) as place_map:
        assert len(place_map) == 29


def test_what_sqlite_learns_of_a_file_is_no_damage(path):
    with altered(path) as db:
        db.execute("ANALYZE")
        assert db.execute("SELECT count(*) FROM sqlite_stat1").fetchone() != (0,)
    with open_map(path) as place_map:
        assert len(place_map) == 20 and place_map.verify() == []


def test_the_number_of_a_session_that_is_used_up(path):
    with altered(path) as db:
        number = 2147483647
        rows = db.execute(f"SELECT {KEYFRAME_COLUMNS} FROM keyframes").fetchall()
        rows = [(row[0], number, *row[2:]) for row in rows]
        db.execute("DELETE FROM keyframes")
        marks = ", ".join("?" * 16)
        db.executemany(
            f"INSERT INTO keyframes VALUES ({marks})",
            [(*row, keyframe_crc(row)) for row in rows],
        )
        crc = values_crc(number, "s")
        db.execute("UPDATE sessions SET id = ?, crc = ?", (number, crc))
        integrity.emptied(db, "sessions")
        integrity.emptied(db, "keyframes")
        integrity.change(db, "sessions", (), [crc])
        integrity.change(db, "keyframes", (), [keyframe_crc(row) for row in rows])
    refused(path, "full, numbers of sessions have reached", session="t")
    with open_map(path, session="s") as place_map:
        with pytest.raises(MapError, match="go on in one of its sessions"):
            place_map.start_session("t")
        assert place_map.session == "s"
        add_places(place_map, 21, 22)
    with open_map(path, session="s") as place_map:
        assert len(place_map) == 21 and place_map.verify() == []


def test_an_id_that_is_used_up(path):
    with altered(path) as db:
        integrity.raise_last_id(db, 2147483646)
    with open_map(path) as place_map:
        assert add_places(place_map, 1, 2) == [2**31 - 1]
        with pytest.raises(MapError, match="full, ids have reached"):
            add_places(place_map, 1, 2)
        assert place_map.ids()[-1] == 2**31 - 1
    with open_map(path) as place_map, pytest.raises(MapError, match="full"):
        add_places(place_map, 1, 2)


# Permissions


@pytest.fixture
def open_folder():
    """A folder that other users may read; each start of pytest closes those of `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name).resolve()


def test_what_another_user_may_not_read_or_write(path, open_folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    (open_folder / "closed").mkdir(mode=0o700)
    shutil.copy(path, open_folder / "closed" / "map")
    shutil.copy(path, open_folder / "secret")
    (open_folder / "secret").chmod(0o600)
    (open_folder / "fixed").mkdir()
    shutil.copy(path, open_folder / "fixed" / "map")
    (open_folder / "fixed" / "map").chmod(0o444)
    (open_folder / "folder").mkdir()
    shutil.copy(path, open_folder / "folder" / "map")
    (open_folder / "folder" / "map").chmod(0o666)
    before = folder_state(open_folder)
    out = run(
        AS_NOBODY
        + """
for name in ("closed/map", "closed/new", "secret", "fixed/map", "folder/map", "folder/new"):
    for read_only in (False, True):
        try:
            with open_map(f"{sys.argv[1]}/{name}", read_only=read_only) as m:
                say(name, read_only, len(m), m.verify())
        except MapError as e:
            assert f"{sys.argv[1]}/{name}" in str(e)
            say(name, read_only, type(e).__name__, str(e).split(": ", 1)[1])
m = open_map()
for name in ("closed/copy", "folder/copy"):
    try:
        m.copy_to(f"{sys.argv[1]}/{name}")
    except MapError as e:
        say(name, str(e).split(": ", 1)[1])
""",
        open_folder,
    )
    said = dict.fromkeys(out.splitlines())
    for name in ("closed/map", "closed/new", "secret"):
        for read_only in (False, True):
            line = next(s for s in said if s.startswith(f"{name} {read_only}"))
            assert "MapError cannot be read: Permission denied" in line
    for name in ("fixed/map", "folder/map"):
        assert f"{name} True 20 []" in said  # also in a folder that cannot be written
        (line,) = [s for s in said if s.startswith(f"{name} False")]
        assert "check the permissions of the file and its folder" in line
    assert any(s.startswith("folder/new False MapError") for s in said)
    assert any(s.startswith("folder/new True MapNotFoundError") for s in said)
    assert any(s.startswith("closed/copy") for s in said)
    assert any(s.startswith("folder/copy") for s in said)
    assert folder_state(open_folder) == before


# Several openings

HOLD = """
m = open_map(sys.argv[1], read_only=sys.argv[2] == "r")
say(len(m))
for command in sys.stdin:
    if command == "add\\n":
        add_places(m, len(m) + 1, len(m) + 6)
        say(m.flush())
    else:
        break
m.close()
"""


@contextmanager
def held_elsewhere(path, mode):
    """Another process that has the map open; gives a function that sends it a command."""
    process = start(HOLD, path, mode)

    def tell(command):
        process.stdin.write(command + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    assert process.stdout.readline().strip().isdecimal()
    try:
        yield tell
    finally:
        process.communicate("end\n", timeout=20)
        assert process.returncode == 0


def test_one_writer_at_a_time(path):
    with held_elsewhere(path, "w"):
        before = folder_state(path.parent)
        for _ in range(2):
            with pytest.raises(MapError, match="another process has this map open") as e:
                open_map(path)
            assert str(path) in str(e.value)
            assert folder_state(path.parent) == before
    open_map(path).close()


def test_no_writer_beside_readers(path):
    with held_elsewhere(path, "r"):
        refused(path, "another process has this map open")
        with open_map(path, read_only=True) as place_map:
            assert len(place_map) == 20
    open_map(path).close()


def test_a_reader_beside_a_live_writer_sees_what_is_committed(path):
    with held_elsewhere(path, "w") as tell:
        for n in (20, 25, 30):
            with open_map(path, read_only=True) as place_map:
                assert len(place_map) == n and place_map.session == ""
                assert place_map.verify() == []
                found, distances = place_map.search(descriptor(n).code, 3)
                assert found[0] == n and distances[0] == 0
                np.testing.assert_allclose(
                    place_map.features(found[:1])[0], descriptor(n).feature, atol=1e-3
                )
                assert tell("add") == "5"
                assert len(place_map) == n  # as it was when it was opened
                assert place_map.features([n + 5]).shape == (1, DIM)
        assert PlaceMap.read_info(path).keyframes == 35
    assert list(folder_state(path.parent)) == [path.name]


def test_a_reader_that_outlives_the_writer(path):
    with held_elsewhere(path, "w") as tell:
        tell("add")
        place_map = open_map(path, read_only=True)
    with place_map:
        assert place_map.verify() == []
        assert len(place_map.keyframes(place_map.ids())) == 25
    with open_map(path) as place_map:
        assert len(place_map) == 25 and place_map.verify() == []


def test_twice_in_one_process(path, tmp_path):
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(path)
    os.link(path, hard)
    for first in (False, True):
        with open_map(path, read_only=first):
            for name in (path, link, hard):
                for second in (False, True):
                    with pytest.raises(MapError, match="already open in this process"):
                        open_map(name, read_only=second)
            # The refusal must not have dropped SQLite's own locks or ours.
            if not first:
                out = run(
                    "import sqlite3\n"
                    "db = sqlite3.connect(sys.argv[1], timeout=0)\n"
                    "try: db.execute('PRAGMA journal_mode = DELETE').fetchall()\n"
                    "except sqlite3.OperationalError as e: say(e)\n"
                    "try: open_map(sys.argv[1])\n"
                    "except MapError as e: say(e)\n",
                    path,
                )
                assert "database is locked" in out and "another process" in out
    open_map(path).close()


def test_a_program_without_our_lock_that_is_writing(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(MapError, match="another process holds it"):
            open_map(path)
        db.execute("ROLLBACK")
    open_map(path).close()


def test_all_refusals_let_go_of_the_file(path, sound):
    before = len(os.listdir("/proc/self/fd"))
    for content in (b"", sound[:5000], bytes(9000)):
        path.write_bytes(content)
        for read_only in (False, True):
            with pytest.raises(MapError):
                open_map(path, read_only=read_only)
    path.write_bytes(sound)
    for _ in range(3):
        with pytest.raises(WrongModelError):
            PlaceMap.open(path, "cd" * 32, DIM)
    assert len(os.listdir("/proc/self/fd")) == before
    with open_map(path) as place_map:
        assert place_map.verify() == []


# Read-only


def test_read_only_leaves_no_trace(path):
    before = folder_state(path.parent)
    with open_map(path, read_only=True) as place_map:
        assert folder_state(path.parent) == before
        place_map.search(descriptor(1).code, 5)
        place_map.features(place_map.ids())
        place_map.info()
        assert place_map.verify() == []
        for change in (
            lambda: add_places(place_map, 1, 2),
            place_map.clear,
            lambda: place_map.start_session("t"),
        ):
            with pytest.raises(MapError, match="opened read-only"):
                change()
        assert place_map.flush() == place_map.flush_if_due() == 0
        assert folder_state(path.parent) == before
    PlaceMap.read_info(path)
    assert folder_state(path.parent) == before


def test_read_only_file_system(path, tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    out = run(
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
source, target = (os.fsencode(a) for a in sys.argv[1:3])
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND = 0x20000, 1, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
if (libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(source, target, None, MS_BIND, None)
        or libc.mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)):
    say("skip", os.strerror(ctypes.get_errno()))
    sys.exit()
path = os.path.join(sys.argv[2], sys.argv[3])
with open_map(path, read_only=True) as m:
    say(len(m), m.verify(), len(m.features(m.ids())))
for options in ({}, {"create": False}):
    try: open_map(path, **options)
    except MapError as e: say(e)
""",
        path.parent,
        mounted,
        path.name,
    )
    if out.startswith("skip"):
        pytest.skip("no read-only file system can be mounted: " + out[5:])
    lines = out.splitlines()
    assert lines[0] == "20 [] 20"
    assert len(lines) == 3 and all("its disk is read-only" in line for line in lines[1:])


def crash(path, begin, end, command="os.kill(os.getpid(), signal.SIGKILL)"):
    """Add places in a process that commits them and ends without closing the map."""
    process = start(
        "m = open_map(sys.argv[1], session='crash')\n"
        "add_places(m, int(sys.argv[2]), int(sys.argv[3]))\n"
        f"m.flush()\n{command}\n",
        path,
        begin,
        end,
    )
    _, error = process.communicate(timeout=30)
    assert process.returncode == -9, error


def test_a_log_left_by_a_killed_writer_is_read(path):
    crash(path, 21, 31)
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    for options in ({"read_only": True}, {}):
        with open_map(path, **options) as place_map:
            assert len(place_map) == 30 and place_map.verify() == []
    assert list(folder_state(path.parent)) == [path.name]  # folded in by the writer


def test_a_log_is_found_through_a_symbolic_link(path, tmp_path):
    crash(path, 21, 31)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(path)
    with open_map(link, read_only=True) as place_map:
        assert len(place_map) == 30 and place_map.verify() == []
    with open_map(link) as place_map:
        add_places(place_map, 31, 32)
    assert link.is_symlink()
    assert list(folder_state(tmp_path / "links")) == ["current"]
    assert PlaceMap.read_info(path).keyframes == 31


def test_a_new_map_is_not_made_beside_the_log_of_a_deleted_one(path):
    crash(path, 21, 31)
    path.unlink()
    refused(path, "belongs to a map that does not exist")
    with open_map() as place_map, pytest.raises(MapError, match="a map that does not exist"):
        place_map.copy_to(path)
    assert not path.exists()
    path.with_name(path.name + "-wal").unlink()
    with open_map(path) as place_map:
        assert len(place_map) == 0 and place_map.verify() == []


def test_a_relative_path_stays_valid_when_the_process_changes_its_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with open_map(path.name) as place_map:
        monkeypatch.chdir("/")
        add_places(place_map, 21, 25)
        assert place_map.verify() == []
        assert place_map.file_bytes > 0
        assert place_map.path == str(path)


@pytest.mark.parametrize("name", ["a b?c#d%25.map", "карта-地图", "m;x'\"", "-wal", "~"])
def test_odd_names(tmp_path, monkeypatch, name):
    path = make_map(tmp_path / "new folder" / name, 5)
    with open_map(path, read_only=True) as place_map:
        assert len(place_map) == 5 and place_map.verify() == []
        place_map.copy_to(tmp_path / "copies" / name)
    assert list(folder_state(tmp_path)) == [
        "copies",
        f"copies/{name}",
        "new folder",
        f"new folder/{name}",
    ]
    assert PlaceMap.read_info(tmp_path / "copies" / name).keyframes == 5


# Hostile files


def use(path, read_only):
    """Open a map and use all of it; whatever is wrong may only be a MapError."""
    try:
        with open_map(path, read_only=read_only) as place_map:
            place_map.verify()
            for step in (
                lambda: place_map.search(descriptor(1).code, 10),
                lambda: place_map.features(place_map.ids()),
                lambda: place_map.keyframes(place_map.ids()),
                lambda: [place_map.thumbnail(i) for i in place_map.ids()],
                place_map.info,
                lambda: place_map.copy_to(path.with_name("copy"), overwrite=True),
                lambda: None if read_only else add_places(place_map, 1, 3),
                lambda: None if read_only else place_map.clear(),
            ):
                with contextlib.suppress(MapError):
                    step()
    except MapError as e:
        assert str(e)
        return "refused"
    return "opened"


def wipe(path):
    for p in path.parent.iterdir():
        p.unlink()


@BOTH
def test_random_bytes_after_the_magic(tmp_path, sound, read_only):
    rng = random.Random(1)
    path = tmp_path / "m"
    for i in range(60):
        content = bytearray(
            b"SQLite format 3\0" + rng.randbytes(rng.choice([84, 500, 8176, 40000]))
        )
        if i % 2:  # past the first check
            struct.pack_into(">I", content, 68, 0x48565052)
            struct.pack_into(">I", content, 60, 1)
        if i % 4 == 3:  # and past the header
            content[16:100] = sound[16:100]
            struct.pack_into(">I", content, 28, max(1, len(content) // 4096))
        path.write_bytes(content)
        assert use(path, read_only) == "refused"
        wipe(path)


@pytest.mark.parametrize("flips", [1, 8, 100])
def test_flipped_bits_anywhere(tmp_path, sound, flips):
    rng = random.Random(flips)
    path = tmp_path / "m"
    outcomes = []
    for i in range(80):
        content = bytearray(sound)
        for _ in range(flips):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        outcomes.append(use(path, read_only=i % 2 == 0))
        wipe(path)
    assert flips == 100 or "opened" in outcomes


def test_flipped_bits_where_the_structure_is(tmp_path, sound):
    """The first bytes of each page steer SQLite most."""
    rng = random.Random(5)
    path = tmp_path / "m"
    pages = range(0, len(sound), 4096)
    for i in range(150):
        content = bytearray(sound)
        at = rng.choice(pages) + rng.randrange(100 if i % 2 else 16) + (100 if i % 3 == 0 else 0)
        content[at] ^= rng.randrange(1, 256)
        path.write_bytes(content)
        use(path, read_only=i % 2 == 0)
        wipe(path)


def test_garbage_as_the_log_of_a_sound_map(path, sound):
    rng = random.Random(9)
    log = path.with_name(path.name + "-wal")
    for size in (1, 31, 32, 5000, 40000):
        for read_only in (True, False):
            path.write_bytes(sound)
            log.write_bytes(rng.randbytes(size))
            with open_map(path, read_only=read_only) as place_map:
                assert len(place_map) == 20
                # The writer has begun the log anew; garbage may have been a log.
                said = place_map.verify()
                assert ["header is damaged" in p for p in said] == [True] * (
                    read_only and size > 1000
                )
            wipe(path)


@pytest.mark.parametrize("page_size", [0, 3, 4, 6, 256, 4095, 131072, 2**32 - 8])
def test_a_log_with_the_checksum_of_a_wrong_page_size_is_damaged(path, page_size):
    crash(path, 21, 31)
    log = path.with_name(path.name + "-wal")
    content = bytearray(log.read_bytes())
    struct.pack_into(">I", content, 8, page_size)
    order = ">" if content[3] & 1 else "<"
    struct.pack_into(">II", content, 24, *integrity._checksum(content[:24], order, (0, 0)))
    log.write_bytes(content)
    assert "its header is damaged" in next(integrity.log_problems(path))
    with open_map(path, read_only=True) as place_map:
        assert len(place_map) == 20 and len(place_map.verify()) == 1


def test_flipped_bits_in_the_log_lose_no_more_than_its_end(path, tmp_path):
    crash(path, 21, 31)
    saved = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    log = path.name + "-wal"
    rng = random.Random(11)
    frame_bytes = 24 + 4096
    last_frame = len(saved[log]) - frame_bytes
    said = 0
    for i in range(60):
        for name, content in saved.items():
            (path.parent / name).write_bytes(content)
        content = bytearray(saved[log])
        at = rng.randrange(100 if i % 4 == 0 else len(content))
        content[at] ^= 1 << rng.randrange(8)
        (path.parent / log).write_bytes(content)
        with open_map(path, read_only=i % 2 == 0) as place_map:
            assert len(place_map) in (20, 30)
            problems = place_map.verify()
            if i % 2 == 0 and len(place_map) == 20 and at < last_frame:
                assert len(problems) == 1 and problems[0].startswith("WAL: "), at
                said += 1
            else:
                assert problems == []
        wipe(path)
    assert said > 20
