"""Which paths services take: every form of a path, every kind of file, links in and out."""

import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashvpr_ros.errors import ConfigError, HashVprError, MapError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.ros.allowed_dirs import AllowedDirs, PathError


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A home folder, an allowed folder with a map in it, and a folder outside with another."""
    for name in ("home", "maps", "outside", "maps/sub"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("maps", "outside"):
        PlaceMap.open(tmp_path / name / "m.vprmap", "ab" * 32, 32).close()
    return tmp_path


def dirs(world, *given):
    return AllowedDirs([str(world / g) for g in given], str(world / "maps" / "m.vprmap"))


def refusal(call, *args, **options):
    with pytest.raises(MapError) as raised:
        call(*args, **options)
    text = str(raised.value)
    assert "\n" not in text and "; " in text and len(text) < 1000, text
    return text


def test_the_folder_of_the_map_and_ros_are_allowed_by_default(world):
    allowed = AllowedDirs([], str(world / "maps" / "m.vprmap"))
    (world / "home" / ".ros").mkdir()
    for good in (world / "maps" / "a.vprmap", world / "maps" / "sub" / "a.vprmap"):
        assert allowed.to_write(str(good), overwrite=False) == good
    assert allowed.to_read("~/.ros/a") == world / "home" / ".ros" / "a"
    assert "map.allowed_dirs" in refusal(allowed.to_read, str(world / "outside" / "a"))
    assert "map.allowed_dirs" in refusal(AllowedDirs([], "").to_read, str(world / "maps" / "a"))
    only = dirs(world, "outside")
    assert only.to_read(str(world / "outside" / "a")) == world / "outside" / "a"
    assert "map.allowed_dirs" in refusal(only.to_read, str(world / "maps" / "a"))


@pytest.mark.parametrize("folder", ["relative", "~nobody", "", ".", "/a\0b"])
def test_a_folder_that_is_no_absolute_path_is_refused(folder):
    with pytest.raises(ConfigError, match=r"map\.allowed_dirs"):
        AllowedDirs([folder], "/x")


BAD = {
    "relative": ("a.vprmap", "not an absolute path"),
    "relative that exists": ("m.vprmap", "not an absolute path"),
    "empty": ("", "not an absolute path"),
    "dot": (".", "not an absolute path"),
    "of a user": ("~root/a", "folder of a user"),
    "of nobody": ("~nobody_at_all/a", "folder of a user"),
    "zero": ("{maps}/a\0b", "cannot be printed"),
    "zero and up": ("~root/../x\0y", "folder of a user"),
    "up": ("{maps}/../outside/a", "'..'"),
    "up and back": ("{maps}/../maps/a", "'..'"),
    "long name": ("{maps}/" + "n" * 300, "too long"),
    "long name of two bytes": ("{maps}/" + "ä" * 120, "too long"),
    "long path": ("{maps}" + "/x" * 5000, "too long"),
    "two lines": ("{maps}/a\nb", "cannot be printed"),
    "no text": ("{maps}/\ud800", "cannot be printed"),
    "the folder itself": ("{maps}", "not inside"),
    "the folder with a slash": ("{maps}/", "not inside"),
    "the root": ("/", "not inside"),
    "memory": ("/proc/self/mem", "not inside"),
    "by a descriptor": ("/proc/self/cwd/a", "not inside"),
    "begins alike": ("{maps}2/a", "not inside"),
    "two slashes": ("//etc/passwd", "not inside"),
    "good copy": ("{maps}/m.vprmap.good", "keeps beside it"),
    "former good copy": ("{maps}/m.vprmap.good.old", "keeps beside it"),
    "wal": ("{maps}/m.vprmap-wal", "keeps beside it"),
    "shm": ("{maps}/m.vprmap-shm", "keeps beside it"),
    "journal": ("{maps}/m.vprmap-journal", "keeps beside it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_paths_end_in_one_sentence(world, case, monkeypatch):
    monkeypatch.chdir(world / "maps")
    path, reason = BAD[case]
    path = path.replace("{maps}", str(world / "maps"))
    allowed = dirs(world, "maps")
    for overwrite in (False, True):
        assert reason in refusal(allowed.to_write, path, overwrite=overwrite)
    assert reason in refusal(allowed.to_read, path)


def test_nothing_tells_whether_there_is_a_file_outside(world):
    allowed = dirs(world, "maps")
    for name in ("m.vprmap", "none.vprmap", "m.vprmap/under", "none/under"):
        path = str(world / "outside" / name)
        for call in (allowed.to_read, lambda p: allowed.to_write(p, overwrite=True)):
            text = refusal(call, path)
            assert text.removeprefix(path).startswith(": is not inside a folder of")
    # Nor by a link that leads to it, or by the way there.
    (world / "maps" / "full").symlink_to(world / "outside" / "m.vprmap")
    (world / "maps" / "gone").symlink_to(world / "outside" / "none.vprmap")
    (world / "maps" / "out").symlink_to(world / "outside")
    texts = {
        refusal(allowed.to_write, str(world / "maps" / n), overwrite=o).replace(n, "N")
        for n in ("full", "gone", "out/m.vprmap", "out/none.vprmap", "out/none/none")
        for o in (False, True)
    }
    assert len(texts) == 1 and "outside" not in texts.pop()


def test_the_file_system_is_not_asked_about_what_lies_outside(world, monkeypatch):
    asked = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda p, **k: asked.append(str(p)) or real(p, **k))
    refusal(dirs(world, "maps").to_read, str(world / "outside" / "m.vprmap"))
    assert not [p for p in asked if "outside" in p]


def test_links_within_the_folders_are_followed_once(world):
    (world / "maps" / "link").symlink_to(world / "maps" / "sub")
    allowed = dirs(world, "maps")
    path = allowed.to_write(str(world / "maps" / "link" / "a"), overwrite=False)
    assert path == world / "maps" / "sub" / "a"
    (world / "maps" / "link").unlink()
    (world / "maps" / "link").symlink_to(world / "outside")
    assert path == Path(os.path.realpath(path))  # what is used from here on does not change
    assert "not inside" in refusal(allowed.to_read, str(world / "maps" / "link" / "a"))
    # An allowed folder may itself be a link: both of its names are good.
    (world / "alias").symlink_to(world / "maps")
    for name in ("alias", "maps"):
        assert dirs(world, "alias").to_read(str(world / name / "a")) == world / "maps" / "a"
    loop = world / "maps" / "loop"
    loop.symlink_to(loop)
    refusal(allowed.to_write, str(loop / "a"), overwrite=True)
    refusal(allowed.to_write, str(loop), overwrite=True)


def test_only_a_map_is_replaced_and_no_folder_is_made(world):
    allowed = dirs(world, "maps")
    folder = world / "maps"
    (folder / "text").write_text("precious")
    (folder / "empty").touch()
    (folder / "other.db").write_bytes(
        b"SQLite format 3\0" + bytes(52) + b"ABCD" + bytes(4000)
    )  # an SQLite file of another application
    os.mkfifo(folder / "fifo")
    for name, reason in {
        "text": "not a map", "empty": "not a map", "other.db": "not a map", "fifo": "not a file",
        "sub": "not a file", "none/a": "no such folder", "text/a": "no such folder",
    }.items():  # fmt: skip
        assert reason in refusal(allowed.to_write, str(folder / name), overwrite=True)
    assert not (folder / "none").exists()
    assert (folder / "text").read_text() == "precious"
    own = str(folder / "m.vprmap")
    assert "exists" in refusal(allowed.to_write, own, overwrite=False)
    assert allowed.to_write(own, overwrite=True) == Path(own)
    with PlaceMap.open(own, "ab" * 32, 32):  # closing another descriptor would take its locks
        assert "open" in refusal(allowed.to_write, own, overwrite=True)


def test_map_path_is_held_to_the_folders_when_it_is_set_later(world):
    allowed = AllowedDirs([str(world / "maps")], "/at/start.vprmap")
    for good in ("", "/at/start.vprmap", str(world / "maps" / "b.vprmap")):
        assert allowed.problem_with(good) == ""
    for bad in (str(world / "outside" / "b.vprmap"), "b.vprmap", "~root/b", "/at/other"):
        assert allowed.problem_with(bad).startswith("map.path: ")


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["", ".", "..", "~", "~root", "sub", "out", "m.vprmap", "a", "\0", "\n"]),
        st.text(st.sampled_from(string.printable + "\0ä\ud800"), max_size=6),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.sampled_from(["", "/", "//", "{maps}/", "{maps}", "~/"]), st.booleans())
def test_whatever_is_given_leads_inside_or_is_refused(tmp_path_factory, pieces, begin, overwrite):
    base = tmp_path_factory.getbasetemp() / "fuzzed"
    maps = base / "maps"
    if not maps.exists():
        (maps / "sub").mkdir(parents=True)
        (base / "outside").mkdir()
        (maps / "out").symlink_to(base / "outside")
    text = begin.replace("{maps}", str(maps)) + "/".join(pieces)
    allowed = AllowedDirs([str(maps)], "")
    try:
        found = allowed.to_write(text, overwrite=overwrite)
    except HashVprError as e:
        assert "\n" not in str(e)
        return
    assert maps in found.parents and Path(os.path.realpath(found)) == found


def test_the_error_is_told_from_that_of_a_map(world):
    with pytest.raises(PathError):
        dirs(world, "maps").to_read("/etc/passwd")
