"""Services write and read only in `map.allowed_dirs`, and replace only maps."""

import os
import threading

import pytest
from vpr_process import Camera

from hashvpr_ros.srv import LoadMap, SaveMap

SAVE, LOAD = SaveMap.Response, LoadMap.Response


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def node(start_module, folder):
    """An active node with one keyframe, and with the default folders."""
    # [""] is how an empty list can be given on a command line.
    node = start_module(map__path=str(folder / "own.vprmap"), map__allowed_dirs=[""])
    assert list(node.get("map.allowed_dirs")) == []
    Camera(node.activate()).connect().show(1, 1.0)
    return node


def save(node, path, overwrite=True):
    return node.call(SaveMap, "save_map", path=str(path), overwrite=overwrite)


def load(node, path):
    return node.call(LoadMap, "load_map", path=str(path))


def test_a_file_outside_is_neither_written_nor_looked_at(node, tmp_path):
    victim = tmp_path / "bashrc"
    victim.write_text("precious")
    told = set()
    for path in (victim, tmp_path / "none", tmp_path / "none" / "none", "/etc/shadow"):
        for answer in (save(node, path), save(node, path, overwrite=False)):
            assert answer.result == SAVE.RESULT_INVALID_PATH
            told.add(answer.message.replace(str(path), "PATH"))
        answer = load(node, path)
        assert answer.result == LOAD.RESULT_INVALID_PATH
        told.add(answer.message.replace(str(path), "PATH"))
    assert len(told) == 1 and "map.allowed_dirs" in told.pop()
    assert victim.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bashrc"]


def test_bad_paths_within_have_a_result_code_and_a_sentence(node, folder):
    (folder / "notes.txt").write_text("precious")
    os.mkfifo(folder / "fifo")
    for path, reason in (
        (folder / "notes.txt", "not a map"), (folder / "fifo", "not a file"),
        (folder / "none" / "a", "no such folder"), (folder / "own.vprmap.good", "keeps beside"),
        (folder / "own.vprmap-wal", "keeps beside"), ("own.vprmap", "not an absolute path"),
        ("~root/x", "folder of a user"), (f"{folder}/{'n' * 300}", "too long"),
        (f"{folder}/../x", "'..'"), ("/proc/self/mem", "map.allowed_dirs"),
    ):  # fmt: skip
        answer = save(node, path)
        assert answer.result == SAVE.RESULT_INVALID_PATH and reason in answer.message, path
    assert load(node, folder / "own.vprmap.good").result == LOAD.RESULT_INVALID_PATH
    assert load(node, folder / "fifo").result == LOAD.RESULT_INVALID_MAP
    assert (folder / "notes.txt").read_text() == "precious"
    assert "unforeseen" not in node.text() and "Traceback" not in node.text()


def test_a_map_is_saved_replaced_and_loaded_within(node, folder):
    copy = folder / "copy.vprmap"
    assert save(node, copy, overwrite=False).result == SAVE.RESULT_OK
    assert save(node, copy, overwrite=False).result == SAVE.RESULT_INVALID_PATH
    assert save(node, copy).result == SAVE.RESULT_OK
    assert load(node, copy).result == LOAD.RESULT_OK
    assert load(node, folder / "own.vprmap").result == LOAD.RESULT_OK


def test_a_link_that_is_swapped_meanwhile_leads_nowhere(node, folder, tmp_path):
    """A link turns between a folder within and one outside as fast as it can."""
    (folder / "sub").mkdir()
    link, other = folder / "link", folder / "next"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for target in (tmp_path, folder / "sub"):
                other.symlink_to(target)
                other.replace(link)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        results = {save(node, link / f"{i}.vprmap").result for i in range(20)}
    finally:
        stop.set()
        thread.join()
    assert results <= {SAVE.RESULT_OK, SAVE.RESULT_INVALID_PATH}
    assert list(tmp_path.iterdir()) == []


def test_map_path_cannot_be_set_to_a_file_outside(start, tmp_path):
    node = start(map__allowed_dirs=[str(tmp_path / "maps")])
    outside = str(tmp_path / "elsewhere" / "new.vprmap")
    answer = node.set("map.path", outside)
    assert not answer.successful and "map.allowed_dirs" in answer.reason
    assert not node.set("map.allowed_dirs", ["/"]).successful
    assert node.set("map.path", str(tmp_path / "maps" / "m.vprmap")).successful
    assert node.change("configure")
    assert not (tmp_path / "elsewhere").exists()
