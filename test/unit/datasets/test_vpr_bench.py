"""The layout of VPR-Bench: the real sets, incomplete ones, and a hostile ground truth."""

import io
import os
import pickle
import shutil

import numpy as np
import pytest

from hashvpr_ros.datasets.vpr_bench import GROUND_TRUTH, VprBench, read_ground_truth
from hashvpr_ros.errors import DatasetError


def objects(*rows):
    array = np.empty((len(rows), 2), object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


def saved(tmp_path, array):
    path = tmp_path / GROUND_TRUTH
    np.save(path, array, allow_pickle=True)
    return path


def refused(path, queries, references, *words):
    with pytest.raises(DatasetError) as e:
        read_ground_truth(path, queries, references)
    text = str(e.value)
    assert text.startswith(f"{path}: ")
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(("name", "count"), [("corridor", 111), ("sped", 589)])
def test_the_real_sets(data, name, count):
    bench = VprBench(data / name)
    assert len(bench.queries) == len(bench.references) == len(bench.correct) == count
    assert bench.queries[10].name == bench.references[10].name == "0000010.jpg"
    rows = np.load(data / name / GROUND_TRUTH, allow_pickle=True)
    for query, right in rows:
        assert bench.correct[int(query)] == np.atleast_1d(right).tolist()


def test_tolerance(few):
    bench = VprBench(few(5, correct=[[0], [2, 4], [], [3], [4]]))
    assert bench.positives() == [{0}, {2, 4}, set(), {3}, {4}]
    assert bench.positives(1) == [{0, 1}, {1, 2, 3, 4}, set(), {2, 3, 4}, {3, 4}]
    assert bench.positives(100) == [set(range(5))] * 2 + [set()] + [set(range(5))] * 2


@pytest.mark.parametrize("part", ["query", "ref", GROUND_TRUTH])
def test_a_missing_piece_is_named(few, part):
    folder = few()
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError, match=part) as e:
        VprBench(folder)
    assert str(folder) in str(e.value)


def test_folders_that_are_none(few, tmp_path):
    with pytest.raises(DatasetError, match="no such folder; correct the path"):
        VprBench(tmp_path / "no")
    folder = few()
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        VprBench(folder / GROUND_TRUTH)
    for image in (folder / "ref").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="ref: holds no images"):
        VprBench(folder)


def test_rows_in_any_order_and_of_any_kind_of_number(tmp_path):
    rows = objects([2, np.array([1, 2])], [np.int64(0), (0,)], [1.0, np.float64(2)])
    assert read_ground_truth(saved(tmp_path, rows), 3, 3) == [[0], [2], [1, 2]]
    rows = objects([0, []], [1, np.array([], np.int32)])
    assert read_ground_truth(saved(tmp_path, rows), 2, 3) == [[], []]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64, ">i4"])
def test_a_plain_array_of_numbers(tmp_path, dtype):
    path = saved(tmp_path, np.array([[0, 2], [1, 0]], dtype))
    assert read_ground_truth(path, 2, 3) == [[2], [0]]


def test_indices_that_do_not_exist(tmp_path):
    refused(saved(tmp_path, objects([0, [0, 3]])), 1, 3, "query 0 names reference 3", "ref/ has 3")
    refused(saved(tmp_path, objects([0, [-1]])), 1, 3, "query 0 names reference -1")
    refused(saved(tmp_path, objects([0, [0]])), 2, 3, "query 1 has no entry")
    refused(saved(tmp_path, objects([0, [0]], [1, [0]])), 1, 3, "query 1", "query/ has 1 images")
    refused(saved(tmp_path, objects([-1, [0]])), 1, 3, "query -1")
    refused(saved(tmp_path, objects([0, [0]], [0, [1]])), 1, 3, "two entries for query 0")
    refused(saved(tmp_path, objects([0, [10**30]])), 1, 3, "write")


MALFORMED = {
    "scalar": np.array(5),
    "none": np.array(None, object),
    "one column": np.zeros((3, 1)),
    "flat": np.zeros(3),
    "empty": np.zeros((0, 2)),
    "text": np.array([["0", "a"]]),
    "fractions": np.array([[0, 1.5]]),
    "nan": np.array([[0, np.nan]]),
    "nothing for a query": objects([None, [0]]),
    "nothing for references": objects([0, None]),
    "nested": objects([0, [[0, 1]]]),
    "mapping": objects([0, {"a": 1}]),
    "complex": np.array([[0, 1j]]),
    "structure": np.zeros(2, [("a", int), ("b", int)]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_arrays(tmp_path, case):
    refused(saved(tmp_path, MALFORMED[case]), 1, 3)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(99)])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / GROUND_TRUTH
    path.write_bytes(content)
    refused(path, 1, 3, "write it again")


def test_any_damage_is_one_error(tmp_path):
    path = saved(tmp_path, objects(*[[i, [i, i + 1]] for i in range(4)]))
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, 4, 5)
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = rng.integers(0, 256)
        path.write_bytes(bytes(changed))
        try:
            assert len(read_ground_truth(path, 4, 5)) == 4
        except DatasetError as e:
            assert str(path) in str(e)


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, call, *arguments):
        self.what = (call, arguments)

    def __reduce__(self):
        return self.what


def npy(header_shape: tuple, content: bytes) -> bytes:
    out = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": header_shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + content


def test_a_hostile_pickle_runs_nothing(tmp_path):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Hostile(os.mkdir, str(mark))))
    assert mark.exists(), "the attack itself works"
    mark.rmdir()
    attacks = [
        Hostile(os.system, f"touch {mark}"),
        Hostile(eval, f"open({str(mark)!r}, 'w').close()"),
        Hostile(exec, f"open({str(mark)!r}, 'w').close()"),
        Hostile(open, str(mark), "w"),
        Hostile(os.mkdir, str(mark)),
        Hostile(getattr, "text", "upper"),
        Hostile(np.save, str(mark), 0),
        Hostile(np.load, str(mark)),
    ]
    for attack in attacks:
        for protocol in range(6):
            for content in (attack, objects([0, attack]), [0, [attack]]):
                path = tmp_path / GROUND_TRUTH
                path.write_bytes(npy((1, 2), pickle.dumps(content, protocol=protocol)))
                refused(path, 1, 3, "write it again")
    # The attribute of an allowed module that is reached by a dotted name, and the extension
    # registry, are other ways to name a function.
    for raw in (
        b"cos\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x08core.sys\x93.",
        b"\x80\x02\x82\x01.",
    ):
        path.write_bytes(npy((1, 2), raw))
        refused(path, 1, 3, "write it again")
    assert not list(tmp_path.glob("executed*"))


def test_a_header_that_lies_allocates_nothing(tmp_path):
    path = tmp_path / GROUND_TRUTH
    path.write_bytes(npy((10**12, 2), pickle.dumps(objects([0, [0]]))))
    refused(path, 1, 3, "disagree")
    out = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**12, 2)}
    np.lib.format.write_array_header_1_0(out, header)
    path.write_bytes(out.getvalue() + bytes(16))
    refused(path, 1, 3, "write it again")
