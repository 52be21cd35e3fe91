"""What lies beside a map, or changes under it, by the hand of others."""

import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from edit_helpers import content
from map_helpers import add_places, descriptor, make_map, open_map, place, run
from test_store import crash

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.backup import damage_of, keep_good_copy, restore
from hashvpr_ros.map.edit import MapReader
from hashvpr_ros.map.files import good_copy_of, remove
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.rows import MAX_THUMBNAIL_BYTES, NewPlace
from hashvpr_ros.map.schema import DamagedMapError
from hashvpr_ros.map.split import split_map


@pytest.fixture
def path(tmp_path):
    return make_map(tmp_path / "m", 20)


# What is no log


def _fifo(name):
    os.mkfifo(name)


def _device(name):
    os.symlink("/dev/zero", name)


def _folder(name):
    os.mkdir(name)


def _huge(name):
    with open(name, "wb") as f:
        f.truncate(5 * 10**9)


def _nowhere(name):
    os.symlink("/nowhere/at/all", name)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", [_fifo, _device, _folder, _huge, _nowhere])
def test_what_is_no_log_is_refused_before_it_is_read(path, suffix, kind):
    kind(f"{path}{suffix}")
    began = time.monotonic()
    for use in (
        lambda: open_map(path),
        lambda: open_map(path, read_only=True),
        lambda: open_map(path, read_only=True, on_damage="drop"),
        lambda: damage_of(path, {}),
        lambda: MapReader(path),
        lambda: keep_good_copy(path),
    ):
        with pytest.raises(MapError) as e:
            use()
        assert str(e.value).startswith(f"{path}{suffix}: ") and "move it away" in str(e.value)
    other = make_map(path.with_name("other"), 3)
    with pytest.raises(MapError, match="move it away"):
        split_map(other, path, sessions=["s"], overwrite=True)
    assert time.monotonic() - began < 5
    assert len(content(other)) == 3


@pytest.mark.parametrize("kind", [_fifo, _device, _folder])
def test_what_is_no_copy_is_said_and_left(path, kind):
    good = good_copy_of(path)
    kind(good)
    with open_map(path) as place_map, pytest.raises(MapError, match=r"m\.good: is not a file"):
        place_map.keep_good_copy()
    with pytest.raises(MapError, match=r"m\.good: is not a file"):
        restore(path, force=True)
    path.write_bytes(b"")
    with pytest.raises(MapError, match="the file is empty"):
        open_map(path)
    assert os.path.lexists(good) and not good.is_file()


def test_a_copy_that_would_never_end_is_not_read(path):
    with closing(sqlite3.connect(path.with_name("hostile"))) as db:
        db.execute(
            "CREATE VIEW keyframes AS WITH RECURSIVE r AS "
            "(SELECT 1 AS id UNION ALL SELECT id + 1 FROM r) SELECT * FROM r"
        )
    path.with_name("hostile").rename(good_copy_of(path))
    path.write_bytes(b"")
    with pytest.raises(MapError, match="with an unknown number of keyframes"):
        open_map(path)


def test_files_of_the_kernel_are_no_maps():
    for name in ("/proc/self/mem", "/proc/self/cmdline", "/proc/kmsg", "/sys/kernel/notes"):
        for read_only in (True, False):
            if os.path.exists(name):
                with pytest.raises(MapError, match=f"^{os.path.realpath(name)}: "):
                    open_map(name, read_only=read_only)


def test_a_value_larger_than_any_of_a_map_takes_no_memory(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE features SET feature = zeroblob(100000000) WHERE id = 3")
        db.commit()
    out = run(
        """
import resource
from hashvpr_ros.map.backup import damage_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
say(damage_of(sys.argv[1], {})[0])
m = open_map(sys.argv[1], read_only=True)
try: m.features(m.ids())
except MapError as e: say(e)
say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000)
""",
        path,
    )
    said = out.splitlines()
    assert "CHECK constraint" in said[0] or "too big" in said[0]
    assert "damaged" in said[1] and said[2] == "True"


def test_what_is_larger_than_a_map_takes_is_refused_when_it_is_added():
    of = place(1)
    with open_map() as place_map:
        for camera, thumbnail, reason in (
            ("x" * 70_000, None, "the name of a camera has 70000 bytes"),
            ("c", bytes(MAX_THUMBNAIL_BYTES + 1), "a thumbnail may have"),
        ):
            with pytest.raises(MapError, match=reason):
                place_map.add_many([NewPlace(camera, 1, of.pose, of.descriptor, thumbnail)])
        assert len(place_map) == 0


# What changes under a map that is open


def copy_over(path, other):
    """`cp other path`: the same inode with other content."""
    inode = path.stat().st_ino
    shutil.copyfile(other, path)
    assert path.stat().st_ino == inode


def uses(place_map):
    return (
        lambda: place_map.search(descriptor(3).code, 3),
        lambda: place_map.features([3]),
        lambda: place_map.keyframes([3]),
        lambda: place_map.thumbnail(4),
        lambda: place_map.info(),
        lambda: place_map.verify(),
        lambda: place_map.copy_to(f"{place_map.path}.copy"),
    )


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_map_that_is_copied_over_gives_no_more_answers(path, read_before, read_only, same_size):
    other = path.with_name("other")
    with open_map(other, session="s") as made:
        made.add_many([place(i) for i in range(101, 121 if same_size else 400)])
    with open_map(path, read_only=read_only) as place_map:
        if read_before:
            content_before = [place_map.features(place_map.ids()), place_map.keyframes([3])]
            assert len(content_before[0]) == 20
        copy_over(path, other)
        for use in uses(place_map):
            with pytest.raises(MapError, match="was changed by another program while it was open"):
                use()
        if not read_only:
            with pytest.raises(MapError, match="was changed by another program"):
                add_places(place_map, 21, 23)
                place_map.flush()
        assert not os.path.exists(f"{path}.copy")
    if read_only or not os.path.exists(f"{path}-wal"):
        assert content(path) == content(other)


def test_a_writer_does_not_fold_its_log_into_what_was_copied_over(path):
    other = make_map(path.with_name("other"), 30)
    with pytest.raises(MapError), open_map(path, session="t") as place_map:
        add_places(place_map, 21, 25)
        place_map.flush()
        copy_over(path, other)
        add_places(place_map, 25, 26)
        place_map.flush()
    with pytest.raises(MapError, match="the file without the WAL is valid, with 30 keyframes"):
        open_map(path)
    os.rename(f"{path}-wal", f"{path}.log")
    assert content(path) == content(other)


@pytest.mark.parametrize("replace", [_fifo, _folder, _nowhere])
def test_a_changed_map_in_whose_place_something_else_came_is_closed_at_once(path, replace):
    """SQLite would wait for a FIFO, and the node's cleanup with it."""
    held = open_map(path)
    os.truncate(path, os.path.getsize(path) // 2)
    os.unlink(path)
    replace(path)
    closing_it = threading.Thread(target=_close_whatever, args=(held,), daemon=True)
    closing_it.start()
    closing_it.join(10.0)
    assert not closing_it.is_alive()


def test_a_reader_beside_a_live_writer_does_not_wait_for_a_fifo_in_its_place(path):
    code = (
        "from map_helpers import *\nimport os, sys\n"
        f"m = open_map({str(path)!r}); add_places(m, 21, 25); m.flush()\n"
        "print('open', flush=True); sys.stdin.readline(); os._exit(9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent,
    ) as writer:  # fmt: skip
        assert writer.stdout.readline() == "open\n"
        held = open_map(path, read_only=True)
        os.truncate(path, os.path.getsize(path) - 1)
        os.unlink(path)
        os.mkfifo(path)
        refused = []

        def ask():
            try:
                held.check_unchanged()
            except MapError as e:
                refused.append(str(e))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(10.0)
        writer.stdin.close()
    assert not asking.is_alive() and "changed by another program" in refused[0]
    held.close()


def _close_whatever(held):
    with suppress(MapError):
        held.close()


def test_what_changes_no_content_is_no_change(path):
    with open_map(path, read_only=True) as place_map:
        os.chmod(path, 0o640)
        assert len(place_map.features([3])) == 1
        os.link(path, path.with_name("link"))
        assert len(place_map.features([3])) == 1
        path.rename(path.with_name("moved"))
        assert len(place_map.features([3])) == 1
        # The bytes that are there, written once more: nobody knows that they are the same.
        path.with_name("moved").write_bytes(path.with_name("moved").read_bytes())
        with pytest.raises(MapError, match="was changed by another program"):
            place_map.features([3])


def test_a_writer_knows_its_own_changes(path):
    with open_map(path, session="t") as place_map:
        # Large enough that the log is folded into the file while it is open.
        for i in range(30):
            of = place(100 + i)
            place_map.add_many([NewPlace("c", i, None, of.descriptor, bytes(200_000))])
            place_map.flush()
        place_map.add_headings({"c": 1.0})
        assert place_map.verify() == [] and len(place_map.features(place_map.ids())) == 50


def test_a_reader_beside_a_live_writer_notices_another_map(path):
    other = make_map(path.with_name("other"), 40)
    with open_map(path, session="t") as writer:
        out = run(
            """
import shutil
with open_map(sys.argv[1], read_only=True) as m:
    say(len(m.features([3])))
    shutil.copyfile(sys.argv[2], sys.argv[1])
    try: m.features([4])
    except MapError as e: say(e)
""",
            path,
            other,
        )
        with pytest.raises(MapError, match="was changed by another program"):
            writer.features([3])
    assert out.splitlines()[0] == "1" and "was changed by another program" in out


# Ids that are taken


def test_ids_that_another_writer_took_are_not_replaced(path, monkeypatch, caplog):
    """As where locks do not hold: NFS with local locks, or two hosts."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(MapError), open_map(path, session="s") as place_map:
        run(
            "import fcntl\nfcntl.flock = lambda *_: None\n"
            "with open_map(sys.argv[1], session='s') as m:\n    add_places(m, 50, 55)\n",
            path,
        )
        add_places(place_map, 60, 63)
        with pytest.raises(
            MapError, match=r"another program has written keyframes with the same ids .*save_map"
        ):
            place_map.flush()
        # None is lost: in a copy they have other ids.
        assert place_map.copy_to(path.with_name("copy")) == 28
        assert "keyframes 21 to 23 get the ids from 26 on" in caplog.text
    stamps = [k[2] // 10**9 for k in content(path).values()]
    assert stamps == [*range(1, 21), *range(50, 55)] and damage_of(path, {}) == []
    with PlaceMap.open(path.with_name("copy"), read_only=True, verify=True) as copy:
        found = copy.keyframes(copy.ids())
        assert [k.stamp_ns // 10**9 for k in found] == [*stamps, 60, 61, 62]


def test_a_batch_that_comes_again_is_written_once(path):
    with open_map(path) as place_map:
        add_places(place_map, 21, 24)
        waiting = dict(place_map._rows.waiting)
        place_map.flush()
        place_map._rows.waiting = waiting  # as where the commit took effect, and then failed
        assert place_map.flush() == 3
        assert place_map.verify() == [] and len(place_map) == 23


# No write makes damage look sound


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = replace(value, '1.5', '1.25') WHERE key = 'headings'",
        "UPDATE sessions SET name = 'sx' WHERE name = 's'",
        "UPDATE keyframes SET session_id = 2 WHERE id = 3",
        "UPDATE checks SET count = count - 1 WHERE name = 'last id'",
        "UPDATE checks SET sum = 'v' WHERE name = 'keyframes'",
        "UPDATE verdicts SET verdict = 'rejected'",
        "DELETE FROM keyframes WHERE id = 7",
    ],
)
def test_writing_beside_damage_does_not_bless_it(path, change):
    from hashvpr_ros.map.verdicts import StoredVerdict

    with open_map(path, session="s") as place_map:
        place_map.add_headings({"camera1": 1.5})
        place_map.add_verdict(StoredVerdict(1, 2, "accepted", 0.5))
        with closing(sqlite3.connect(path)) as db:
            db.execute(change)
            db.commit()
        add_places(place_map, 21, 23)
        for write in (
            place_map.flush,
            lambda: place_map.add_headings({"camera2": 0.5}),
            lambda: place_map.add_verdict(StoredVerdict(1, 3, "accepted", 0.5)),
            lambda: place_map.add_verdict(StoredVerdict(1, 2, "accepted", 0.75)),
            lambda: place_map.start_session("another"),
            place_map.flush,
        ):
            try:
                write()
            except DamagedMapError as e:
                assert "\n" not in str(e)
        try:
            assert place_map.verify() != []
        except DamagedMapError:  # what waits cannot be written
            assert place_map.uncommitted() > 0
        with pytest.raises(DamagedMapError):
            place_map.keep_good_copy()
        with pytest.raises(DamagedMapError):
            place_map.copy_to(path.with_name("copy"))
        place_map._rows.waiting.clear()
    assert damage_of(path, {}) != []
    assert not good_copy_of(path).exists() and not path.with_name("copy").exists()


# Who may read


def modes(folder):
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o660])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_maps_and_copies_have_the_mode_that_is_asked_for(tmp_path, mode, umask):
    before = os.umask(umask)
    try:
        options = {} if mode == 0o600 else {"file_mode": mode}
        path = tmp_path / "m"
        with open_map(path, session="s", **options) as place_map:
            add_places(place_map, 1, 5)
            place_map.flush()
            assert set(modes(tmp_path).values()) == {mode}  # with what SQLite keeps beside it
            place_map.copy_to(tmp_path / "copy")
            place_map.keep_good_copy()
        split_map(path, tmp_path / "part", sessions=["s"])
        assert modes(tmp_path) == {"m": mode, "copy": mode, "m.good": mode, "part": 0o600}
    finally:
        os.umask(before)


def test_a_log_that_is_kept_is_nobody_elses_to_read(path):
    crash(path, 21, 31)
    log = path.with_name("m-wal")
    damaged = bytearray(log.read_bytes())
    damaged[damaged.rindex(place(22).thumbnail)] ^= 2
    log.write_bytes(damaged)
    log.chmod(0o644)
    open_map(path).close()
    (kept,) = (p for p in path.parent.iterdir() if ".damaged-" in p.name)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.read_bytes() == damaged


def test_a_map_that_is_removed_leaves_nothing_that_keeps_the_next_from_beginning(path):
    with open_map(path) as place_map:
        add_places(place_map, 0, 3)
        place_map.flush()
        assert place_map.keep_good_copy()
    remove(path)
    assert list(path.parent.glob(f"{path.name}*")) == []
    with open_map(path) as place_map:
        assert len(place_map) == 0
