"""Files of others are read only where they are regular and not too large; ours are written whole.

A FIFO or a device never ends, and a file that claims to be small need not be: whatever reads a
file that came from outside reads it here, or asks `check_regular` before a library reads it.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hashvpr_ros.errors import ConfigError, HashVprError

MB = 1_000_000
MOST_CHECKPOINT_BYTES = 8_000 * MB
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_ARCHIVES = (
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
)


def check_regular(
    path: str | Path, most_bytes: int, *, error: type[HashVprError] = ConfigError
) -> os.stat_result:
    """Refuse what is no regular file, or too large, without opening it.

    Args:
        most_bytes: the largest size that is taken.
        error: what is raised.

    Returns:
        the file's status.

    Raises:
        HashVprError: of the given class: there is no such file, it is no regular one, or it is
            too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as e:
        raise error(_cannot_read(path, e)) from e
    _check(path, found, most_bytes, error)
    return found


@contextmanager
def open_regular(
    path: str | Path, most_bytes: int, *, error: type[HashVprError] = ConfigError
) -> Iterator[BinaryIO]:
    """A regular file of bounded size, open for reading.

    Args:
        most_bytes: the largest size that is taken.
        error: what is raised.

    Raises:
        HashVprError: of the given class: the file cannot be read, is no regular one, or is too
            large.
    """
    try:
        # Without O_NONBLOCK opening a FIFO waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as e:
        raise error(_cannot_read(path, e)) from e
    try:
        _check(path, os.fstat(fd), most_bytes, error)
    except HashVprError:
        os.close(fd)
        raise
    with open(fd, "rb") as file:
        try:
            yield file
        except OSError as e:
            raise error(_cannot_read(path, e)) from e


def read_bytes(
    path: str | Path, most_bytes: int, *, error: type[HashVprError] = ConfigError
) -> bytes:
    """All of a regular file of bounded size; see `open_regular`."""
    with open_regular(path, most_bytes, error=error) as file:
        content = file.read(most_bytes + 1)  # its size may have been a lie, or has grown
    if len(content) > most_bytes:
        raise error(_too_large(path, len(content), most_bytes))
    return content


def read_text(
    path: str | Path, most_bytes: int, *, error: type[HashVprError] = ConfigError
) -> str:
    """All of a UTF-8 text file; a byte order mark is left out. See `read_bytes`.

    Raises:
        HashVprError: of the given class: as `read_bytes` does, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, most_bytes, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise error(
            f"{path}: is not a UTF-8 text file ({e.reason} at byte {e.start}); correct the path"
        ) from e


def mistaken_for(head: bytes) -> str:
    """What a file is that should hold weights or a network, by its first bytes.

    Args:
        head: the first 512 bytes, or fewer.

    Returns:
        the kind and the remedy as "is ...; ...", or "" where it is none of those that are known.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch that by `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            "is a web page that was saved in the place of a download; open its address in a "
            "browser, confirm the download and save the file that comes"
        )
    for start, kind in _ARCHIVES:
        if head.startswith(start):
            return f"is {kind}; unpack it, and give the file inside"
    if head[8:9] == b"{" and head[8:].lstrip(b"{ ").startswith(b'"'):
        return "is in the format safetensors; give the same weights as written by torch.save"
    try:
        # A character may be cut in two at the end.
        decoded = head.decode("utf-8") if len(head) < 512 else head[:508].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return ""
    if head and all(c.isprintable() or c in "\t\r\n\ufeff" for c in decoded):
        return "is a text file; correct the path, or download the file again"
    return ""


def _check(
    path: str | Path, found: os.stat_result, most_bytes: int, error: type[HashVprError]
) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise error(f"{path}: is {kind}, not a file; give the path of a file")
    if found.st_size > most_bytes:
        raise error(_too_large(path, found.st_size, most_bytes))


def _too_large(path: str | Path, size: int, most_bytes: int) -> str:
    return (
        f"{path}: has {size / MB:,.1f} MB, more than the {most_bytes / MB:,.1f} MB that such a "
        "file may have; check that it is the right file"
    )


def _cannot_read(path: str | Path, error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    named = path if isinstance(error, OSError) else repr(str(path))
    return f"{named}: cannot be read: {reason}; check the path"


@contextmanager
def replacing(path: Path, *, error: type[HashVprError] = ConfigError) -> Iterator[Path]:
    """A new empty file to be written, which becomes `path` where the block ends well.

    Its name cannot be guessed, so that nobody can put a link in its place.

    Args:
        error: what is raised.

    Raises:
        HashVprError: of the given class: it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex}.new")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield temporary
        os.replace(temporary, path)
    except OSError as e:
        raise error(f"{path}: cannot be written: {e.strerror}; give another path") from e
    finally:
        with suppress(OSError):
            temporary.unlink()
