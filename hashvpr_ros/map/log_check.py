"""Damage in the write-ahead log of a map, which SQLite passes over in silence.

SQLite reads a log up to the first frame that does not match its checksum, for there an interrupted
write ended it. Where frames of the same log follow, it was no interrupted write: what they hold
was committed, and is not seen. The format is that of https://sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from hashvpr_ros.map.files import wal_of

_HEADER, _FRAME_HEADER = 32, 24
_PAGE_SIZES = [1 << bits for bits in range(9, 17)]
_MAGIC = 0x377F0682  # the last bit: whether checksums are of big-endian words


def log_problems(path: Path) -> Iterator[str]:
    """What of the log beside a map is lost to damage; the map must be locked against writers.

    The last frame of a log says nothing: an interrupted write looks the same.
    """
    try:
        data = wal_of(path).read_bytes()
    except OSError:
        return  # there is none, or SQLite says why it cannot be read
    if len(data) < _HEADER + _FRAME_HEADER + 512:
        return  # no frame, so that nothing is lost
    magic, _, page_size = struct.unpack_from(">III", data)
    order = ">" if magic & 1 else "<"
    sums = _checksum(data[:24], order, (0, 0))
    sound = magic & ~1 == _MAGIC and page_size in _PAGE_SIZES
    if not sound or sums != struct.unpack_from(">II", data, 24):
        yield f"log: its header is damaged, so that its {len(data)} bytes are not read"
        return
    salts = data[16:24]
    size = _FRAME_HEADER + page_size
    frames = range(_HEADER, len(data) - size + 1, size)
    for at in frames:
        sums = _checksum(data[at : at + 8], order, sums)
        sums = _checksum(data[at + _FRAME_HEADER : at + size], order, sums)
        sound = sums == struct.unpack_from(">II", data, at + 16)
        if not sound or data[at + 8 : at + 16] != salts:
            break
    else:
        return
    # After a checkpoint the log begins anew with other salts, over the frames of before.
    lost = sum(
        data[later + 8 : later + 16] == salts for later in range(at + size, frames.stop, size)
    )
    if lost:
        yield (
            f"log: damaged at byte {at} (by a power cut or a flipped bit), so that {lost} frames "
            "after it are not read; what was committed in them is lost"
        )


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    s0, s1 = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + first + s1) & 0xFFFFFFFF
        s1 = (s1 + second + s0) & 0xFFFFFFFF
    return s0, s1
