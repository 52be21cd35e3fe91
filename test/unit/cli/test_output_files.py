"""What commands write beside what they print replaces nothing but what they wrote before."""

import os
from pathlib import Path

import pytest
from cli_helpers import refused, strict_json, well
from test_map_command import small_map

from hashvpr_ros.cli.common import write_json
from hashvpr_ros.cli.outputs import HTML_FILE, JSON_FILE, PLOT_FILE, TIMING_FILE, check_folder
from hashvpr_ros.errors import ConfigError, HashVprError, MapError
from hashvpr_ros.map.place_map import PlaceMap


def test_a_map_is_not_replaced_by_json(run, tmp_path):
    path, other = small_map(tmp_path / "m", 3), small_map(tmp_path / "n", 4)
    before = path.read_bytes()
    refused(run("map", "info", other, "--json", path), path, "is no JSON", "another path")
    link = tmp_path / "link"
    link.symlink_to(path)
    refused(run("map", "info", other, "--json", link), link, "is no JSON")
    assert path.read_bytes() == before
    # The command itself makes the map, after the option was read.
    out = tmp_path / "out"
    refused(run("map", "merge", path, other, out, "--json", out), out, "is no JSON")
    assert PlaceMap.read_info(out).keyframes == 7


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", ".good", ".good.old"])
def test_what_a_map_keeps_beside_it_is_not_written(run, tmp_path, suffix):
    path = small_map(tmp_path / "m", 3)
    refused(run("map", "info", path, "--json", f"{path}{suffix}"), suffix, "keeps beside it")
    assert os.listdir(tmp_path) == ["m"]


def test_an_export_replaces_exports_alone(run, tmp_path):
    path, other = small_map(tmp_path / "m", 3), small_map(tmp_path / "n", 4)
    for out, said in (
        (other, "is no export"),
        (path, "is no export"),
        (f"{other}.good", "keeps beside it"),
        (f"{other}-wal", "keeps beside it"),
    ):
        done = run("map", "export", path, out, "--format", "csv", "--overwrite")
        refused(done, out, said)
    assert sorted(os.listdir(tmp_path)) == ["m", "n"]
    assert PlaceMap.read_info(other).keyframes == 4
    for form in ("csv", "npz", "csv"):
        well(run("map", "export", path, tmp_path / "x", "--format", form, "--overwrite"))


@pytest.mark.parametrize("suffix", ["-wal", ".good"])
def test_no_map_is_made_where_another_keeps_its_files(run, images, tmp_path, suffix):
    path = small_map(tmp_path / "m", 3)
    out = Path(f"{path}{suffix}")
    refused(run("map", "build", out, "--images", images), out, "keeps beside it")
    refused(run("map", "split", path, out, "--session", "s3"), out, "keeps beside it")
    done = run("map", "split", path, out, "--session", "s3", "--overwrite")
    refused(done, out, "keeps beside it")
    with PlaceMap.open(path, session="t") as place_map:
        with pytest.raises(MapError, match="keeps beside it"):
            place_map.copy_to(out, overwrite=True)
        with pytest.raises(MapError, match="keeps beside it"):
            PlaceMap.open(f"{tmp_path / 'new'}{suffix}", "ab" * 32, 4)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["m"]


def test_json_replaces_json_and_what_is_empty(tmp_path):
    path = tmp_path / "x"
    path.touch()
    for value in ({"a": 1}, [2], {"b": 3}):
        JSON_FILE.check(path)
        write_json(path, value)
        assert strict_json(path) == value


@pytest.mark.parametrize(
    ("kind", "mine"),
    [(JSON_FILE, b"{}"), (HTML_FILE, b"<!doctype html>"), (PLOT_FILE, b"<?xml version")],
)
def test_other_files_are_kept(kind, mine, tmp_path):
    path = tmp_path / "x.svg"
    assert kind.convert(str(path), None, None) == path
    path.write_bytes(mine)
    assert kind.convert(str(path), None, None) == path
    bag = b"\x89MCAP0\r\n", b"rosbag2_bagfile_information:", b"SQLite format 3\0"
    for begin in (*bag, b"\xff\xd8\xff\xe0", b"PK\x03\x04", b"\x08\x08\x12"):
        path.write_bytes(begin + b"and more")
        with pytest.raises(ConfigError, match=r"x\.svg: exists and is no "):
            kind.convert(str(path), None, None)
    path.unlink()
    os.mkfifo(path)  # neither read, which would wait, nor replaced
    with pytest.raises(ConfigError, match="exists and is no "):
        kind.convert(str(path), None, None)


def test_a_report_and_a_plot_are_checked_before_the_work(run, tmp_path):
    path = small_map(tmp_path / "m.png", 3)
    nowhere = tmp_path / "no" / "x.png"
    for words in (["audit", path, "--plot"], ["explain", tmp_path, "--plot"], ["bench", "--plot"]):
        refused(run(*words, path), path, "is no plot")
        refused(run(*words, tmp_path / "x.bmp"), "x.bmp", ".png or .svg")
        refused(run(*words, nowhere), nowhere.parent, "no such folder")
    refused(run("evaluate", tmp_path, "--ablate", "--report", path), path, "is no HTML")
    assert PlaceMap.read_info(path).keyframes == 3


def test_a_timing_cache_is_told_by_its_name(run, tmp_path):
    path = small_map(tmp_path / "m", 3)
    done = run("engine", "build", path, tmp_path / "e.engine", "--timing-cache", path)
    assert done.code == 2 and "must end in .timing or .cache" in done.err
    (tmp_path / "t.timing").write_bytes(b"of another version")
    TIMING_FILE.check(tmp_path / "t.timing")


def test_a_replay_replaces_what_a_replay_made(run, bag, tmp_path):
    path = small_map(tmp_path / "map.vprmap", 3)
    before = path.read_bytes()
    for words in (["--map", path], []):
        done = run("replay", bag, "--out", tmp_path, *words)
        refused(done, path, "is of no run before", "--out")
    ledger = tmp_path / "other" / "ledger"
    ledger.mkdir(parents=True)
    refused(run("replay", bag, "--out", ledger.parent), ledger, "is of no run before")
    out = tmp_path / "out"
    well(run("replay", bag, "--out", out))
    well(run("replay", bag, "--out", out))
    made = (out / "map.vprmap").read_bytes()
    refused(run("replay", bag, "--out", out, "--map", out / "map.vprmap"), "--out")
    assert (path.read_bytes(), (out / "map.vprmap").read_bytes()) == (before, made)


def test_a_folder_that_runs_write_into(tmp_path):
    check_folder(tmp_path, False, ["map", "bag"])
    (tmp_path / "bag").mkdir()
    with pytest.raises(HashVprError, match="bag: would be replaced"):
        check_folder(tmp_path, False, ["map", "bag"])
    check_folder(tmp_path, True, ["map", "bag"])
