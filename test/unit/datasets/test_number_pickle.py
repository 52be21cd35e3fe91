"""Pickled arrays of numbers: what numpy 1 and 2 write, and programs that want something else."""

import contextlib
import io
import os
import pickle
import struct
import sys

import numpy as np
import pytest

from hashvpr_ros.datasets import number_pickle
from hashvpr_ros.datasets.number_pickle import read_array
from hashvpr_ros.datasets.vpr_bench import GROUND_TRUTH, read_ground_truth
from hashvpr_ros.errors import DatasetError

PROTOCOLS = (2, 3, 4, 5)
# Python raises an event for each of these; so does whatever else could leave the parser.
_watched = False
_seen = []


def _audit(event, arguments):
    if _watched and event not in ("object.__getattr__", "sys._getframe", "marshal.loads"):
        _seen.append((event, arguments))


sys.addaudithook(_audit)


def watched_read(data):
    """`read_array`, which must not import, open, run or look up anything."""
    global _watched
    _watched = True
    try:
        return read_array(data)
    finally:
        _watched = False
        assert not _seen, _seen[:3]


def rows(*pairs):
    array = np.empty((len(pairs), 2), object)
    for i, pair in enumerate(pairs):
        array[i, 0], array[i, 1] = pair
    return array


GOOD = {
    "lists": (rows((0, [1, 2]), (1, [])), [[1, 2], []]),
    "tuples": (rows((0, (1,)), (1, (0, 2))), [[1], [0, 2]]),
    "single numbers": (rows((0, 2), (1, np.int16(1))), [[2], [1]]),
    "int64": (
        rows((np.int64(0), np.array([1, 2])), (np.int64(1), np.array([], int))),
        [[1, 2], []],
    ),
    "small types": (
        rows((np.uint8(0), np.array([1, 2], np.uint8)), (1, np.array([0], np.int16))),
        [[1, 2], [0]],
    ),
    "big endian": (rows((0, np.array([1, 2], ">i4")), (1, np.array([0], ">u8"))), [[1, 2], [0]]),
    "floats": (rows((0.0, np.array([1.0, 2.0])), (np.float32(1), [0.0])), [[1, 2], [0]]),
    "objects": (rows((0, np.array([1, 2], object)), (1, np.array([], object))), [[1, 2], []]),
    "strided": (rows((0, np.arange(6)[1:4:2]), (1, np.arange(3)[::-1])), [[1, 3], [2, 1, 0]]),
    "arrays of no dimension": (
        rows((np.array(0), np.array(2)), (1, np.array(1, object))),
        [[2], [1]],
    ),
    "many": (rows(*((i, list(range(3000))) for i in range(2))), [list(range(3000))] * 2),
    "one list for all": (rows(*((i, [[7, 8]][0]) for i in range(3))), [[7, 8]] * 3),
    "a large index": (rows((0, [2**15, 2**31, 2**40])), [[2**15, 2**31, 2**40]]),
}


def file_of(array, protocol, version=(1, 0), content=None):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.empty(array.shape, "i1"), version=version)
    head = out.getvalue()[: -array.size].replace(b"'|i1'", b"'|O' ")
    return head + (pickle.dumps(array, protocol=protocol) if content is None else content)


def as_numpy_1(content):
    """The same pickle with the names of numpy 1."""
    content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        content = content.replace(bytes([0x8C, len(new)]) + new, bytes([0x8C, len(old)]) + old)
    at = content.find(b"\x95")
    if content[1] >= 4 and at == 2:  # Python's unpickler reads frames to their end
        (size,) = struct.unpack("<Q", content[3:11])
        content = content[:3] + struct.pack("<Q", min(size, len(content) - 11)) + content[11:]
    return content


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", GOOD)
def test_what_numpy_writes(tmp_path, name, protocol, order):
    array, expected = GOOD[name]
    content = pickle.dumps(np.asarray(array, order=order), protocol=protocol)
    path = tmp_path / GROUND_TRUTH
    for version in ((1, 0), (2, 0), (3, 0)):
        for pickled in (content, as_numpy_1(content)):
            path.write_bytes(file_of(array, protocol, version, pickled))
            watched_read(pickled)
            assert read_ground_truth(path, len(array), 2**41) == expected


def test_numpy_1_is_named_as_numpy_1_does():
    for protocol in PROTOCOLS:
        content = as_numpy_1(pickle.dumps(rows((0, np.array([1]))), protocol=protocol))
        assert b"_core" not in content and b"numpy.core.multiarray" in content


def test_python_2_wrote_texts_as_bytes(data):
    """The set `corridor` has such a file."""
    content = (data / "corridor" / GROUND_TRUTH).read_bytes()
    assert b"U\x01b" in content  # SHORT_BINSTRING


BAD_VALUES = {
    "a set": {1},
    "a mapping": {"a": 1},
    "a text": "1",
    "nothing": None,
    "a truth value": True,
    "numpy's truth value": np.True_,
    "truth values": np.array([True, False]),
    "a list in a list": [[1]],
    "two dimensions": np.zeros((1, 1), int),
    "a fraction": [1.5],
    "NaN": [float("nan")],
    "infinity": np.array([np.inf]),
    "complex": np.array([1j]),
    "a date": np.array(["2020-01-01"], "M8[D]"),
    "texts": np.array(["1"]),
    "a structure": np.zeros(1, [("a", int)]),
    "a long number": [10**30],
    "a range": range(2),
    "a long double": np.array([1], np.longdouble),
    "a class": int,
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_what_is_no_index_is_refused(tmp_path, name):
    path = tmp_path / GROUND_TRUTH
    for protocol in PROTOCOLS:
        path.write_bytes(file_of(rows((0, 0)), protocol, content=pickle.dumps(
            rows((0, BAD_VALUES[name])), protocol=protocol)))  # fmt: skip
        with pytest.raises(DatasetError, match=r"; write it again") as e:
            read_ground_truth(path, 1, 9)
        assert "\n" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize("columns", [1, 3])
def test_rows_of_another_length_are_refused(tmp_path, columns):
    path = tmp_path / GROUND_TRUTH
    for array in (np.zeros((2, columns), int), np.zeros((2, columns), object)):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DatasetError, match=rf"shape is \[2, {columns}\], not \[N, 2\]"):
            read_ground_truth(path, 2, 2)


CONTENT = b"\x80\x04"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
TYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00i8\x89\x88\x87R"
PROGRAMS = {
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02Pname\n.",
    "INST": b"\x80\x02(ios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\no.",
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a name that is dotted": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    "a name of no text": b"\x80\x04K\x01K\x02\x93.",
    # What can run code: ndarray called with a buffer for objects.
    "ndarray called": b"\x80\x02cnumpy\nndarray\nK\x02\x85cnumpy\ndtype\nX\x01\x00\x00\x00O"
    b"\x89\x88\x87RU\x10AAAAAAAAAAAAAAAA\x87R.",
    "objects from bytes": b"\x80\x02" + ARRAY + b"(K\x01K\x02\x85cnumpy\ndtype\nX\x02\x00\x00\x00"
    b"O8\x89\x88\x87R\x89U\x10AAAAAAAAAAAAAAAAtb.",
    "a type with fields": b"\x80\x02" + TYPE + b"(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00aNK\x01"
    b"K\x01K\x00tb.",
    "a type of a type": b"\x80\x02cnumpy\ndtype\n" + TYPE + b"\x89\x88\x87R.",
    "objects by _frombuffer": b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(C\x08AAAAAAAAcnumpy\n"
    b"dtype\nX\x01\x00\x00\x00O\x89\x88\x87RK\x01\x85X\x01\x00\x00\x00CtR.",
    "an array that is completed twice": b"\x80\x02" + ARRAY + (
        b"(K\x01)" + TYPE + b"\x89U\x08AAAAAAAAtb") * 2 + b".",
    "no array": b"\x80\x02K\x01.",
    "a list": b"\x80\x02].",
    "an empty stack": b"\x80\x02.",
    "a memo without an entry": b"\x80\x02h\x05.",
    "a mark for a value": b"\x80\x02(q\x00.",
    "a negative shape": b"\x80\x02" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + TYPE
    + b"\x89U\x00tb.",
    "a text as long as memory": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "bytes as long as memory": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "nested marks": b"\x80\x02" + b"(" * 1000 + b".",
    "protocol 1": b"\x80\x01" + ARRAY + b".",
    "no protocol": ARRAY + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_numpy_does_not_write(name):
    with pytest.raises(ValueError):
        watched_read(PROGRAMS[name])


def test_values_are_bounded(monkeypatch):
    monkeypatch.setattr(number_pickle, "MOST_VALUES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 instructions"):
        watched_read(b"\x80\x02" + b"]" * 2000 + b".")


def test_a_text_cannot_be_copied_without_end():
    text = b"\x80\x02X" + struct.pack("<I", 10_000) + b"a" * 10_000 + b"q\x00"
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    with pytest.raises(ValueError, match="in another way"):
        watched_read(text + again * 100 + b".")


def test_a_list_that_holds_itself(tmp_path):
    endless = [0]
    endless.append(endless)
    path = tmp_path / GROUND_TRUTH
    for protocol in PROTOCOLS:
        path.write_bytes(file_of(rows((0, endless)), protocol))
        with pytest.raises(DatasetError, match="list is no index"):
            read_ground_truth(path, 1, 9)


def test_one_list_for_many_queries_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("hashvpr_ros.datasets.vpr_bench._MOST_INDICES", 1000)
    shared = list(range(100))
    path = tmp_path / GROUND_TRUTH
    path.write_bytes(file_of(rows(*((i, shared) for i in range(50))), 4))
    with pytest.raises(DatasetError, match="more than 1,000 references"):
        read_ground_truth(path, 50, 100)


def test_what_is_no_regular_file_is_refused(tmp_path):
    path = tmp_path / GROUND_TRUTH
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="is a FIFO"):
        read_ground_truth(path, 1, 1)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(DatasetError, match="more than the 200"):
        read_ground_truth(path, 1, 1)


def seeds():
    return [
        convert(pickle.dumps(array, protocol=p))
        for array, _ in GOOD.values()
        if array.shape[0] < 4 and np.size(array[0, 1]) < 100
        for p in PROTOCOLS
        for convert in (bytes, as_numpy_1)
    ] + list(PROGRAMS.values())


def fuzz(count, seed):
    """Changed good programs and random ones; each ends as an array or a ValueError.

    Returns:
        how many ended as an array.
    """
    rng = np.random.default_rng(seed)
    good = seeds()
    codes = np.frombuffer(b"KMJNXBCU(t)]aecRbqrhj.G\x80\x82\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e"
                          b"\x93\x94\x95\x96\x97\x98", np.uint8)  # fmt: skip
    arrays = 0
    for i in range(count):
        program = bytearray(good[rng.integers(len(good))])
        if i % 4 == 0:  # a stream of instructions, most of them with something to work on
            parts = [ARRAY, TYPE, b"K\x01", b"]", b"(", bytes([codes[rng.integers(len(codes))]]),
                     bytes(rng.integers(0, 256, 3, np.uint8)), b"h\x00", b"q\x00"]  # fmt: skip
            program = bytearray(b"\x80\x04")
            for k in rng.integers(0, len(parts), rng.integers(1, 40)):
                program += parts[k]
                if rng.random() < 0.3:
                    program.append(codes[rng.integers(len(codes))])
            program += b"."
        elif i % 4 == 1:  # parts of two
            other = good[rng.integers(len(good))]
            program = program[: rng.integers(len(program))] + other[rng.integers(len(other)) :]
        else:
            for at in rng.integers(0, len(program), rng.integers(1, 6)):
                any_byte = rng.random() < 0.5
                program[at] = rng.integers(256) if any_byte else codes[rng.integers(len(codes))]
        with contextlib.suppress(ValueError):
            arrays += watched_read(bytes(program)) is not None
    return arrays


def test_changed_programs_end_as_an_array_or_one_error():
    assert fuzz(4000, 0) > 50
