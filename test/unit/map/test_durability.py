"""Killed processes and full disks: nothing that was reported as stored is lost."""

import random
import signal
import time

import numpy as np
import pytest
from map_helpers import (
    add_places,
    folder_state,
    make_map,
    open_map,
    place,
    start,
)

from hashvpr_ros.errors import MapError

# Pictures of this size make SQLite fold its log into the file several times a run.
ADD = """
rng = np.random.default_rng(int(sys.argv[2]))
m = open_map(sys.argv[1], session=sys.argv[2], commit_period_s=0.001)
picture = rng.bytes(12000)
while True:
    for i in range(int(rng.integers(1, 30))):
        d = descriptor(i)
        last = m.add(camera="c", stamp_ns=i, pose=None, descriptor=d, thumbnail=picture)
        m.flush_if_due()
    m.flush()
    say(last)
"""


def kill(process, after_s, begun=lambda: True):
    """SIGKILL a process so long after its first line and a condition; all lines it has said."""
    first = process.stdout.readline()
    limit = time.monotonic() + 5
    while not begun() and time.monotonic() < limit:
        pass
    time.sleep(after_s)  # a random moment is the point
    process.kill()
    out, error = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL and first, error
    lines = (first + out).split("\n")
    return lines[:-1]  # what follows the last newline may be cut


def test_a_writer_killed_again_and_again_loses_nothing_that_was_committed(tmp_path):
    rng = random.Random(20)
    path = tmp_path / "m"
    committed: set[int] = set()
    before = np.empty(0, np.int32)
    with_log = 0
    for i in range(22):
        lines = kill(start(ADD, path, i), rng.uniform(0, 0.08))
        highest = max(int(line) for line in lines)
        with_log += (tmp_path / "m-wal").exists()
        with open_map(path, read_only=i % 2 == 0) as place_map:
            assert place_map.verify() == []
            ids = place_map.ids()
        # All ids of a run up to the last one that it knew to be committed, and all earlier runs.
        first = int(before[-1]) + 1 if len(before) else 1
        committed.update(range(first, highest + 1))
        assert committed <= set(ids.tolist())
        np.testing.assert_array_equal(ids[: len(before)], before)
        assert len(ids) > len(before)
        before = ids
    assert with_log > 15  # the kills did interrupt
    with open_map(path) as place_map:
        np.testing.assert_array_equal(place_map.ids(), before)
        assert [s.name for s in place_map.info().sessions] == [str(i) for i in range(22)]
        assert add_places(place_map, 1, 2) == [before[-1] + 1]
    assert list(folder_state(tmp_path)) == ["m"]


def copying(folder):
    """Whether a copy has been begun and is not yet in its place."""
    return folder.exists() and any(p.name.startswith(".copy.") for p in folder.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_copy_that_is_killed_leaves_nothing_or_all(tmp_path, overwrite):
    rng = random.Random(21)
    source = tmp_path / "m"
    with open_map(source, session="s") as place_map:
        picture = bytes(60_000)
        for i in range(1, 201):
            p = place(i)
            place_map.add(
                camera="c", stamp_ns=i, pose=p.pose, descriptor=p.descriptor, thumbnail=picture
            )
    target = tmp_path / "copies" / "copy"
    script = """
m = open_map(sys.argv[1])
say("ready")
m.copy_to(sys.argv[2], overwrite=sys.argv[3] == "True")
say("done")
sys.stdin.read()
"""
    for _ in range(8):
        if overwrite:
            if not target.exists():
                make_map(target, 3)
        else:
            target.unlink(missing_ok=True)
        for leftover in target.parent.glob(".copy.*"):
            leftover.unlink()
        process = start(script, source, target, overwrite)
        lines = kill(process, rng.uniform(0, 0.03), begun=lambda: copying(target.parent))
        names = set(folder_state(tmp_path / "copies")) if target.parent.exists() else set()
        assert all(n == "copy" or n.startswith(".copy.") for n in names)
        if target.exists():
            with open_map(target, read_only=True) as copy:
                assert len(copy) in ((3, 200) if overwrite else (200,))
                assert copy.verify() == []
        else:
            assert "done" not in lines and not overwrite
    with open_map(source) as place_map:
        assert place_map.verify() == [] and len(place_map) == 200
        assert place_map.copy_to(target, overwrite=True) == 200


def test_creation_that_is_killed_leaves_no_map_or_an_empty_one(tmp_path):
    rng = random.Random(22)
    script = """
for i in range(10**6):
    open_map(f"{sys.argv[1]}/{i}").close()
    if i == 0: say("ready")
"""
    made = 0
    for i in range(8):
        folder = tmp_path / str(i)
        kill(start(script, folder), rng.uniform(0, 0.03))
        for path in folder.iterdir():
            if path.name.isdecimal():
                made += 1
                with open_map(path) as place_map:
                    assert len(place_map) == 0 and place_map.verify() == []
    assert made >= 8


def test_closing_that_is_killed(tmp_path):
    rng = random.Random(23)
    script = """
m = open_map(sys.argv[1])
for i in range(100):
    m.add(camera="c", stamp_ns=i, pose=None, descriptor=descriptor(i), thumbnail=bytes(20000))
say("ready")
m.close()
say("closed")
sys.stdin.read()
"""
    count = 0
    for _ in range(6):
        lines = kill(start(script, tmp_path / "m"), rng.uniform(0, 0.01))
        with open_map(tmp_path / "m") as place_map:
            assert place_map.verify() == []
            assert len(place_map) in ((count, count + 100) if len(lines) == 1 else (count + 100,))
            count = len(place_map)


def test_clearing_that_is_killed_leaves_all_or_nothing(tmp_path):
    rng = random.Random(24)
    script = """
m = open_map(sys.argv[1])
add_places(m, 1, 400)
m.flush()
say(m.ids()[-1])
m.clear()
say("cleared")
sys.stdin.read()
"""
    for _ in range(6):
        lines = kill(start(script, tmp_path / "m"), rng.uniform(0, 0.004))
        with open_map(tmp_path / "m") as place_map:
            assert place_map.verify() == []
            assert len(place_map) == 0 or (len(place_map) >= 399 and len(lines) == 1)
            place_map.clear()
            assert add_places(place_map, 1, 2)[0] > int(lines[0])  # none is used again
            place_map.clear()


# Full disks

FULL = """
from hashvpr_ros.map.place_map import MAX_WAITING, PlaceMap

def fill(m):
    "Add until the file takes no more; how many keyframes were reported as written."
    stored = len(m) - m.uncommitted()
    while True:
        add_places(m, len(m) + 1, len(m) + 101)
        try:
            stored += m.flush()
        except MapError as e:
            return stored, str(e)

def check_full(path, free):
    m = open_map(path, session="s")
    stored, error = fill(m)
    assert path in error and "writing keyframes failed" in error, error
    say(error)
    assert stored >= 100 and m.uncommitted() == 100 and len(m) == stored + 100

    # What is not written is there all the same.
    ids = m.ids()
    assert len(m.features(ids)) == len(m.keyframes(ids)) == stored + 100
    for i in ids[-4:].tolist():
        assert m.thumbnail(i) == place(i).thumbnail
    assert m.search(descriptor(stored + 50).code, 1)[0].tolist() == [stored + 50]
    assert m.info().uncommitted == 100 and m.info().keyframes == stored + 100

    # Not tried again before another period has passed.
    assert m.flush_if_due() == 0
    m._rows.commit_period_s = 0.0
    for attempt in (m.flush_if_due, m.flush, m.verify):
        try:
            attempt()
        except MapError:
            pass
        else:
            assert False, attempt
    assert m.uncommitted() == 100

    # A copy has what waits, too, where there is room for it.
    try:
        copied = m.copy_to(path + ".copy")
    except MapError as e:
        assert "disk is full" in str(e), e
    else:
        assert copied == stored + 100
        with open_map(path + ".copy", read_only=True) as copy:
            assert copy.verify() == [] and copy.ids().tolist() == m.ids().tolist()
            assert copy.thumbnail(copied - copied % 2) == place(copied - copied % 2).thumbnail
        os.unlink(path + ".copy")
    assert m.uncommitted() == 100

    # More waits in memory, up to a limit.
    add_places(m, len(m) + 1, stored + MAX_WAITING)
    add_places(m, len(m) + 1, len(m) + 2)
    assert m.uncommitted() == MAX_WAITING
    for _ in range(2):
        try:
            add_places(m, 1, 2)
        except MapError as e:
            assert "writing keyframes failed" in str(e)
        else:
            assert False
    assert m.uncommitted() == MAX_WAITING and len(m) == stored + MAX_WAITING

    free()
    assert m.flush() == MAX_WAITING
    assert m.verify() == [] and len(m.features(m.ids())) == stored + MAX_WAITING
    assert add_places(m, len(m) + 1, len(m) + 2) == [stored + MAX_WAITING + 1]
    m.close()
    with open_map(path) as m:
        assert len(m) == stored + MAX_WAITING + 1 and m.verify() == []
        assert m.ids().tolist() == list(range(1, len(m) + 1))
    return stored
"""


def test_a_file_that_may_not_grow(tmp_path):
    process = start(
        FULL
        + """
import resource
path = sys.argv[1]
open_map(path).close()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
stored = check_full(
    path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2))
say("good")
""",
        tmp_path / "m",
    )
    out, error = process.communicate(timeout=60)
    assert out.endswith("good\n"), out + error
    assert list(folder_state(tmp_path)) == ["m"]


TMPFS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def mount(folder, size):
    "Mount a small disk that nothing but this process sees and that ends with it."
    os.makedirs(folder)
    if (libc.unshare(0x20000) or libc.mount(None, b"/", None, 16384 | (1 << 18), None)
            or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size)):
        say("skip", os.strerror(ctypes.get_errno()))
        sys.exit()
def fill_up(folder):
    "Use all the space; gives a function that frees it."
    name = folder + "/filler"
    with open(name, "wb", buffering=0) as f:
        try:
            while f.write(bytes(4096)): pass
        except OSError:
            pass
    return lambda: os.unlink(name)
"""


def on_a_small_disk(tmp_path, script):
    """Run a script beside a tmpfs of its own at argument 1; skip where none can be mounted."""
    process = start(TMPFS + FULL + script, tmp_path / "disk")
    out, error = process.communicate(timeout=60)
    if out.startswith("skip"):
        pytest.skip("no small disk can be mounted: " + out[5:])
    assert process.returncode == 0 and out.endswith("good\n"), out + error
    return out


def test_a_full_disk(tmp_path):
    out = on_a_small_disk(
        tmp_path,
        """
disk = sys.argv[1]
mount(disk, 6_000_000)
with open(disk + "/ballast", "wb") as f:
    f.write(bytes(5_500_000))
stored = check_full(disk + "/m", lambda: os.unlink(disk + "/ballast"))
assert os.listdir(disk) == ["m"]
say("good")
""",
    )
    assert "the disk is full; free some space" in out


def test_a_map_closed_on_a_full_disk_keeps_what_was_stored(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
disk = sys.argv[1]
mount(disk, 600_000)
m = open_map(disk + "/m")
stored, _ = fill(m)
try:
    m.close()
except MapError as e:
    say(e)
else:
    assert False
m.close()
for read_only in (True, False):
    try:
        with open_map(disk + "/m", read_only=read_only) as m:
            assert len(m) == stored and m.verify() == []
    except MapError as e:  # there may be no room for SQLite's own bookkeeping
        assert not read_only and "disk is full" in str(e), e
say("good")
""",
    )


def test_a_full_disk_takes_no_new_map_and_no_copy(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
disk = sys.argv[1]
mount(disk, 400_000)
make_map(disk + "/old", 5)
m = open_map()
add_places(m, 1, 2000)
attempts = (
    lambda: m.copy_to(disk + "/copy"),
    lambda: m.copy_to(disk + "/old", overwrite=True),
    lambda: open_map(disk + "/new"),
)
def refused():
    for attempt in attempts:
        try:
            attempt()
        except MapError as e:
            assert disk in str(e) and ("full" in str(e) or "No space" in str(e)), e
            assert "kept in memory" not in str(e), e
        else:
            assert False
free = fill_up(disk)
refused()
assert sorted(os.listdir(disk)) == ["filler", "old"]
free()
attempts = attempts[:2]  # there is room, but too little
refused()
assert os.listdir(disk) == ["old"]
with open_map(disk + "/old") as old:
    assert len(old) == 5 and old.verify() == []
say("good")
""",
    )


def test_a_read_only_disk_takes_no_new_map_and_the_error_names_it(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
from hashvpr_ros.cli.map import _new_or
disk = Path(sys.argv[1])
mount(disk, 4_000_000)
assert libc.mount(None, os.fsencode(disk), None, 1 | 32, None) == 0  # read-only from here on
def build():
    with _new_or(disk / "new"):
        assert False
for attempt, helps in (
    (build, "Read-only file system; check the folder"),
    (lambda: open_map(disk / "new"), "make it writable, or give a path on another disk"),
    (lambda: open_map().copy_to(disk / "new"), "make it writable, or give a path on another disk"),
):
    try:
        attempt()
    except MapError as e:
        assert str(e).startswith(f"{disk}/new: ") and str(e).endswith(helps), e
        assert str(e).count(str(disk)) == 1, e
    else:
        assert False
say("good")
""",
    )


def test_a_full_disk_can_still_be_cleared_or_says_so(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
disk = sys.argv[1]
mount(disk, 600_000)
m = open_map(disk + "/m")
stored, _ = fill(m)
before = len(m)
try:
    m.clear()
    assert len(m) == m.uncommitted() == 0
except MapError as e:
    assert "disk is full" in str(e) and len(m) == before
    assert len(m.keyframes(m.ids())) == before
say("good")
""",
    )


@pytest.mark.parametrize("by_another", [False, True])
def test_a_map_that_is_removed_while_it_is_written_is_an_error_and_can_be_saved(
    tmp_path, by_another
):
    """Someone deletes or replaces the file: others would not find what went on being written."""
    path = tmp_path / "m"
    with pytest.raises(MapError, match="was deleted or replaced"), open_map(path) as place_map:
        add_places(place_map, 1, 10)
        place_map.flush()
        if by_another:
            make_map(tmp_path / "other", 3).replace(path)
        else:
            path.unlink()
        add_places(place_map, 10, 12)
        for use in (
            place_map.flush,
            place_map.verify,
            place_map.keep_good_copy,
            place_map.clear,
            lambda: place_map.add_headings({"camera0": 1.0}),
        ):
            with pytest.raises(MapError, match=f"{path}: was deleted or replaced .* save"):
                use()
        assert len(place_map.features(place_map.ids())) == 11 and place_map.uncommitted() == 2
        assert place_map.copy_to(tmp_path / "saved") == 11
    with open_map(tmp_path / "saved", read_only=True) as saved:
        assert saved.verify() == [] and len(saved) == 11
    for log in tmp_path.glob("m-*"):
        log.unlink()
    if by_another:
        with open_map(path) as place_map:
            assert len(place_map) == 3 and place_map.verify() == []


def test_a_map_that_is_replaced_while_it_is_read_is_not_mistaken_for_the_other(tmp_path):
    with open_map(make_map(tmp_path / "m", 5), read_only=True) as place_map:
        (tmp_path / "link").symlink_to("m")
        assert place_map.is_at(tmp_path / "link") and not place_map.is_at(tmp_path / "none")
        make_map(tmp_path / "other", 3).replace(tmp_path / "m")
        assert not place_map.is_at(tmp_path / "m")
        with pytest.raises(MapError, match="was deleted or replaced"):
            place_map.verify()
        assert place_map.copy_to(tmp_path / "saved") == 5
