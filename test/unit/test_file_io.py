"""Files of others: what is no regular file, or too large, ends in one sentence and at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.file_io import check_regular, read_bytes, read_text, replacing


def _made(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(5_000_000_000)  # sparse
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "is a FIFO"),
        ("folder", "is a folder"),
        ("link to a device", "is a device"),
        ("link to itself", "cannot be read"),
        ("large", "has 5,000.0 MB, more than the 1.0 MB"),
        ("missing", "No such file"),
    ],
)
@pytest.mark.parametrize("read", [check_regular, read_bytes, read_text])
def test_what_is_no_file_of_bounded_size_is_refused(tmp_path, kind, reason, read):
    with pytest.raises(DatasetError, match=reason):
        read(_made(tmp_path, kind), 1_000_000, error=DatasetError)


@pytest.mark.parametrize("name", ["nul\0byte", "a" * 300])
@pytest.mark.parametrize("read", [check_regular, read_bytes, read_text])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name, read):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / name, 10)


def test_a_file_of_the_largest_size_is_read_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbf123")
    assert read_bytes(path, 6) == b"\xef\xbb\xbf123"
    assert read_text(path, 6) == "123"
    assert check_regular(path, 6).st_size == 6
    with pytest.raises(ConfigError, match="more than"):
        read_bytes(path, 5)


def test_a_file_that_hides_its_size_is_read_no_further_than_the_bound():
    # Files of /proc have size 0.
    with pytest.raises(ConfigError, match="more than"):
        read_bytes("/proc/self/status", 10)


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match="not a UTF-8 text file"):
        read_text(path, 10)


def test_a_link_beside_the_file_that_is_written_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "report.json"
    victim.write_text("kept")
    (tmp_path / ".report.json.new").symlink_to(victim)
    with replacing(path) as temporary:
        temporary.write_text("written")
    assert victim.read_text() == "kept"
    assert path.read_text() == "written"


@pytest.mark.parametrize("error", [ConfigError, DatasetError])
def test_where_nothing_can_be_written_nothing_is_left(tmp_path, error):
    path = tmp_path / "file"
    with pytest.raises(error, match="cannot be written"), replacing(path, error=error) as new:
        new.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
