"""Trajectories in the format of TUM: nanoseconds, separators, and lines that are no pose."""

import math
import os

import numpy as np
import pytest

from hashvpr_ros.datasets.trajectory import read_tum
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.types import Pose

HEAD = "# ground truth trajectory\n# timestamp tx ty tz qx qy qz qw\n"
REST = "1.5 -2 3e-1 0 0 0 1"
S = 10**9


@pytest.fixture
def write(tmp_path):
    def call(content):
        path = tmp_path / "trajectory.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return call


def refused(path, *words):
    with pytest.raises(DatasetError) as e:
        read_tum(path)
    text = str(e.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 300
    for word in words:
        assert word in text, text


def stamps(path):
    return [stamp for stamp, _ in read_tum(path)]


def test_poses(write):
    half = math.sqrt(0.5)
    path = write(f"{HEAD}\n1305031098.6659 {REST}\n1305031099 0 0 0 0 0 {half} {-half}\n")
    assert read_tum(path) == [
        (1305031098_665900000, Pose((1.5, -2.0, 0.3), (0.0, 0.0, 0.0, 1.0))),
        (1305031099_000000000, Pose((0.0, 0.0, 0.0), (0.0, 0.0, half, -half))),
    ]


@pytest.mark.parametrize(
    "line",
    ["7 1 2 3 0 0 0 1", "7,1,2,3,0,0,0,1", "7, 1, 2, 3, 0, 0, 0, 1", "  7\t1  2 3 0 0 0 1 \t",
     "7 1 2 3 0 0 0 1,", "7.0 +1. 20e-1 .3E1 -0 0 0 1"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r", "\n\n\n# end"])
def test_separators_and_ends_of_lines(write, line, end):
    wanted = [(7 * S, Pose((1.0, 2.0, 3.0)))]
    for mark in ("", "\ufeff", "   # comment, 1 2 3\n", "#\n\n"):
        assert read_tum(write(mark + line + end)) == wanted


@pytest.mark.parametrize(
    ("text", "stamp_ns"),
    [
        ("1700000000.123456789", 1700000000_123456789),
        ("1700000000.000000001", 1700000000_000000001),
        ("1699999999.999999999", 1699999999_999999999),
        ("1.700000000123456789e+09", 1700000000_123456789),
        ("1403636579.7635555845", 1403636579_763555584),  # half a nanosecond, to the even one
        ("1403636579.76355558451", 1403636579_763555585),
        ("1403636579.763555584000000000000000000000001", 1403636579_763555584),
        ("0", 0),
        ("-0.0", 0),
        ("1e-99999999", 0),
        ("0.000000001", 1),
        ("9223372035", 9223372035 * S),
    ],
)
def test_no_nanosecond_is_lost(write, text, stamp_ns):
    assert stamps(write(f"{text} {REST}\n")) == [stamp_ns]


def test_ascending_whatever_the_order_of_lines(write):
    path = write("".join(f"{t} {t} 0 0 0 0 0 1\n" for t in ("3", "1", "10", "2.000000001", "2")))
    read = read_tum(path)
    assert [s for s, _ in read] == [S, 2 * S, 2 * S + 1, 3 * S, 10 * S]
    assert [p.position_m[0] for _, p in read] == [1, 2, 2.000000001, 3, 10]


def test_what_numpy_writes(write, tmp_path):
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(50, 4))
    turns /= np.linalg.norm(turns, axis=1)[:, None]
    rows = np.column_stack([1.4e9 + np.arange(50) / 8, rng.normal(size=(50, 3)), turns])
    np.savetxt(tmp_path / "t.txt", rows, header="timestamp tx ty tz qx qy qz qw")
    for (stamp_ns, pose), row in zip(read_tum(tmp_path / "t.txt"), rows, strict=True):
        assert stamp_ns == round(row[0] * 8) * S // 8
        assert pose.position_m == tuple(row[1:4])
        np.testing.assert_allclose(pose.orientation, row[4:], atol=1e-15)


def test_quaternions_of_few_digits_are_normalised(write):
    ((_, pose),) = read_tum(write("1 0 0 0 0.5 -0.499 0.5 0.502\n"))
    assert math.hypot(*pose.orientation) == pytest.approx(1, abs=1e-15)
    np.testing.assert_allclose(pose.orientation, (0.5, -0.499, 0.5, 0.502), atol=1e-3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 1 2 3 0 0 0", ["has 7 columns, not the 8 of TUM (timestamp tx ty tz qx qy qz qw)"]),
        ("2 1 2 3 0 0 0 1 5", ["has 9 columns"]),
        ("2,1,,3,0,0,0,1", ["has 7 columns"]),
        ("2;1;2;3;0;0;0;1", ["has 1 columns"]),
        ("timestamp,tx,ty,tz,qx,qy,qz,qw", ["'timestamp' as timestamp, which is no finite"]),
        ("2 nan 2 3 0 0 0 1", ["'nan' as tx"]),
        ("2 1 2 -inf 0 0 0 1", ["'-inf' as tz"]),
        ("2 1e999 2 3 0 0 0 1", ["'1e999' as tx"]),
        ("2 1 2 3 0 0 0 one", ["'one' as qw"]),
        ("2 1_0 2 3 0 0 0 1", ["'1_0' as tx"]),
        ("2 0x1 2 3 0 0 0 1", ["'0x1' as tx"]),
        ("2 ١ 2 3 0 0 0 1", ["'١' as tx"]),
        ("nan 1 2 3 0 0 0 1", ["'nan' as timestamp"]),
        ("2 1 2 3 0 0 0 0", ["has a quaternion of length 0, not 1"]),
        ("2 1 2 3 0 0 0 2", ["has a quaternion of length 2, not 1"]),
        ("2 1 2 3 0 0 0 1.02", ["length 1.02"]),
        ("2 1 2 3 1e308 1e308 1e308 1e308", ["length inf"]),
        ("-1 1 2 3 0 0 0 1", ["the timestamp -1, which is not in seconds"]),
        ("1403636579763555584 1 2 3 0 0 0 1", ["1403636579763555584, which is not in seconds"]),
        ("9223372037 1 2 3 0 0 0 1", ["not in seconds"]),
        ("1e300 1 2 3 0 0 0 1", ["not in seconds"]),
        ("1.0 1 2 3 0 0 0 1", ["has the timestamp of line 3"]),
        ("1.0000000001 1 2 3 0 0 0 1", ["has the timestamp of line 3"]),
    ],
)
def test_lines_that_are_no_pose(write, line, words):
    for end in ("\n", f"\n5 {REST}\n"):
        refused(write(f"{HEAD}1 {REST}\n\n{line}{end}"), "line 5 ", "correct or remove it", *words)


@pytest.mark.parametrize(
    "text", ["1e999999999", "1e99999999999999999999999", "1" * 1_000_000, "1" * 1_000_000 + "x"]
)
def test_numbers_that_would_take_all_memory_or_time(write, text):
    refused(write(f"{text} {REST}\n"), "line 1 has ")
    refused(write(f"1 {text} 0 0 0 0 0 1\n"), "line 1 has ", " as tx")


@pytest.mark.parametrize("content", ["", "\n\n", HEAD, "\ufeff"])
def test_nothing_in_it(write, content):
    refused(write(content), "holds no poses", "timestamp tx ty tz")


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(500), b"\xff\xfe1\x00 \x00", b"\x1f\x8b\x08" * 99,
     b"SQLite format 3\x00", b'{"poses": []}', bytes(range(256))],
)  # fmt: skip
def test_files_of_another_kind(write, content):
    refused(write(content), "line ", "correct or remove it")


def test_what_is_cut_is_told(write):
    whole = f"1 {REST}\n2 {REST}"
    lengths = range(len(f"1 {REST}\n") + 1, len(whole) - 1)
    for length in lengths:
        refused(write(whole[:length]), "line 2 has ", "columns")


def test_any_damage_is_one_error(write):
    whole = "".join(f"{1700000000 + i}.{i:09d} {i} 0.5 -1 0 0 0 1\n" for i in range(5)).encode()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            changed[at] = rng.integers(0, 256)
        path = write(bytes(changed))
        try:
            read = read_tum(path)
        except DatasetError as e:
            assert str(e).startswith(f"{path}: ") and "\n" not in str(e)
        else:
            assert all(pose.is_valid() for _, pose in read)
            assert [s for s, _ in read] == sorted({s for s, _ in read})


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "no.txt", "No such file", "check the path")
    refused(tmp_path / ("long" * 100), "cannot be read: File name too long")
    refused(tmp_path, "is a folder, not a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a FIFO, not a file")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**10)
    refused(tmp_path / "large", "more than the 300.0 MB")
