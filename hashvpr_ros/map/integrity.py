"""Whether a map is valid: checksums of rows, sums of tables, structure, and the WAL.

A checksum within a row says nothing of a row that is gone, and SQLite's `integrity_check` nothing
of a value that is another valid one. So the table `checks` has for each table the number of its
rows and the sum of their checksums. Whoever writes rows adds theirs and subtracts those of rows
that go. The sums are never recomputed from the rows, which would make damaged rows valid.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files
from hashvpr_ros.map.connection import connect_unchanging
from hashvpr_ros.map.rows import KEYFRAME_COLUMNS, is_blob, is_sound, values_crc
from hashvpr_ros.map.schema import (
    DAMAGE,
    DamagedMapError,
    check_tables,
    one_line,
    remedy,
)

_log = logging.getLogger(__name__)
_MOST = 20  # problems that are listed; more tell nothing new

# Columns that the checksum of a row of a small table covers.
_SMALL = {
    "meta": "key, value",
    "sessions": "id, name",
    "verdicts": "query_ns, match_id, verdict, log_odds",
}
_LAST_ID = "last id"  # a row of `checks`, whose count is the highest id that was ever used
_NAMES = (*_SMALL, "keyframes", _LAST_ID)
# All that a keyframe holds: `KEYFRAME_COLUMNS`, `crc`, feature, thumbnail.
ALL_COLUMNS = (
    ", ".join(f"k.{name}" for name in (*KEYFRAME_COLUMNS.split(", "), "crc"))
    + ", feature, jpeg FROM keyframes k LEFT JOIN features f ON f.id = k.id "
    "LEFT JOIN thumbnails t ON t.id = k.id"
)
Sum = tuple[int, int]  # number of rows, sum of their checksums


# Sums of tables


def begin(db: sqlite3.Connection) -> None:
    """Make the rows of `checks` for empty tables; within a transaction."""
    for name in _NAMES:
        _keep(db, name, (0, 0))


def sums(db: sqlite3.Connection) -> dict[str, Sum]:
    """What the tables were written with, by their names.

    Raises:
        ValueError: `checks` is damaged.
    """
    found: dict[str, Sum] = {}
    for name, count, total, crc in db.execute("SELECT name, count, sum, crc FROM checks"):
        # A tree that leads back into itself may have no end.
        if values_crc(name, count, total) != crc or name not in _NAMES or name in found:
            raise ValueError("table checks: a row does not match its checksum")
        found[name] = (count, int(total, 16))
    if len(found) != len(_NAMES):
        raise ValueError(f"table checks: has {len(found)} rows, but {len(_NAMES)} were written")
    return found


def change(db: sqlite3.Connection, table: str, gone: Iterable[int], new: Iterable[int]) -> None:
    """Change the sum of a table by what rows went and came; within a transaction.

    Args:
        gone, new: checksums of the rows.

    Raises:
        ValueError: `checks` is damaged.
    """
    went, came = list(gone), list(new)
    if went or came:
        count, total = sums(db)[table]
        _keep(db, table, (count + len(came) - len(went), total + sum(came) - sum(went)))


def emptied(db: sqlite3.Connection, table: str) -> None:
    """Remember that all rows of a table were deleted; within a transaction."""
    _keep(db, table, (0, 0))


def last_id(db: sqlite3.Connection) -> int:
    """The highest id that a keyframe of the map has ever had.

    Raises:
        ValueError: `checks` is damaged.
    """
    return sums(db)[_LAST_ID][0]


def raise_last_id(db: sqlite3.Connection, id_: int) -> None:
    """Remember that all ids up to one are used; within a transaction.

    Raises:
        ValueError: `checks` is damaged.
    """
    if id_ > last_id(db):
        _keep(db, _LAST_ID, (id_, 0))


def _keep(db: sqlite3.Connection, name: str, of: Sum) -> None:
    # In hexadecimal: the sum of very many checksums has more than 64 bits.
    row = (name, of[0], f"{of[1]:x}")
    db.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?)", (*row, values_crc(*row)))


def check_sum(table: str, found: Sum, expected: Sum) -> None:
    """Compare a table with what it was written with.

    Raises:
        ValueError: rows are missing or others.
    """
    if found[0] != expected[0]:
        raise ValueError(f"table {table}: has {found[0]} rows, but {expected[0]} were written")
    if found != expected:
        raise ValueError(f"table {table}: its {found[0]} rows do not match their checksum")


# Rows of small tables


def small_rows(
    db: sqlite3.Connection, table: str, where: str = "", *values: object
) -> list[tuple]:
    """Rows of one of the small tables, each tested by its checksum; see `checked_rows` for all.

    Args:
        where, values: a condition in SQL and what its question marks stand for.

    Returns:
        the columns that the table has, without the checksum.

    Raises:
        ValueError: a row does not match its checksum.
    """
    rows: dict[tuple, None] = {}
    for *values_of, crc in db.execute(f"SELECT {_SMALL[table]}, crc FROM {table} {where}", values):
        row = tuple(values_of)
        # A tree that leads back into itself may have no end.
        if values_crc(*row) != crc or row in rows:
            raise ValueError(f"table {table}: a row does not match its checksum")
        rows[row] = None
    return list(rows)


def checked_rows(db: sqlite3.Connection, table: str) -> list[tuple]:
    """All rows of one of the small tables as they were written.

    Raises:
        ValueError: one of them does not match its checksum, is missing, or too many.
    """
    rows = small_rows(db, table)
    check_sum(table, (len(rows), sum(values_crc(*row) for row in rows)), sums(db)[table])
    return rows


# All of a map


def find_problems(db: sqlite3.Connection) -> list[str]:
    """Check all pages and all rows of a map; an empty list means that it is valid.

    It does not see bits that nobody reads, of free pages and of free space within pages, nor what
    `Store.file_problems` sees.
    """
    problems: list[str] = []
    text_factory = db.text_factory
    # A name that damage has made undecodable must neither end the search nor look like another.
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    begun = not db.in_transaction
    try:
        if begun:  # all that is compared is of one moment, whoever writes meanwhile
            db.execute("BEGIN")
        for (text,) in db.execute(f"PRAGMA integrity_check({_MOST})"):
            # Some of them come together, several lines under one title.
            lines = [line for line in text.splitlines() if not line.startswith("***")]
            problems += [f"structure: {line}" for line in lines if text != "ok"]
        if problems:
            return problems  # reading a tree that leads back into itself may have no end
        problems += islice(_wrong_keyframes(db), _MOST)
        problems += _orphans(db)
        for table in _SMALL:
            try:
                checked_rows(db, table)
            except ValueError as e:
                problems.append(str(e))
    except DAMAGE as e:
        problems.append(f"cannot be read: {one_line(e)}")
    finally:
        if begun and db.in_transaction:
            db.execute("ROLLBACK")
        db.text_factory = text_factory
    return problems


def _wrong_keyframes(db: sqlite3.Connection) -> Iterator[str]:
    try:
        feature_dim = int(dict(checked_rows(db, "meta"))["feature_dim"])
    except DAMAGE:
        feature_dim = 0  # which is said with the table
    count = total = last = 0
    wrong = False
    for *row, feature, jpeg in db.execute(f"SELECT {ALL_COLUMNS} ORDER BY k.id"):
        id_ = row[0]
        if id_ <= last:
            yield f"keyframe {id_}: follows keyframe {last}"
            return  # a tree that leads back into itself may have no end
        last = id_
        if problem := problem_of(row, feature, jpeg, feature_dim):
            wrong = True
            yield problem
        else:
            total += row[-1]
        count += 1
    expected = sums(db)
    if wrong:  # of their checksums all is said
        total = expected["keyframes"][1]
    try:
        check_sum("keyframes", (count, total), expected["keyframes"])
    except ValueError as e:
        yield str(e)
    if last > expected[_LAST_ID][0]:
        yield f"keyframe {last}: is beyond {expected[_LAST_ID][0]}, the highest id ever used"


def problem_of(row: Sequence, feature: object, jpeg: object, feature_dim: int) -> str:
    """What is wrong with a keyframe, "" for nothing.

    Args:
        row: `KEYFRAME_COLUMNS`, then `crc`.
        feature_dim: values of a feature; 0: not known.
    """
    if not is_sound(row):
        return f"keyframe {row[0]}: its content does not match its checksum"
    for blob, crc, what in ((feature, row[13], "feature"), (jpeg, row[14], "thumbnail")):
        if blob is None and crc is not None:
            return f"keyframe {row[0]}: its {what} is missing"
        if not is_blob(blob, crc):
            return f"keyframe {row[0]}: its {what} does not match its checksum"
    if feature_dim and len(feature) != 2 * feature_dim:  # type: ignore[arg-type]
        return f"keyframe {row[0]}: its feature has a wrong size"
    return ""


def _orphans(db: sqlite3.Connection) -> Iterator[str]:
    for table, column, parent in (
        ("features", "id", "keyframes"),
        ("thumbnails", "id", "keyframes"),
        ("keyframes", "session_id", "sessions"),
    ):
        (count,) = db.execute(
            f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT id FROM {parent})"
        ).fetchone()
        if count:
            yield f"{count} {table} belong to no {parent[:-1]}"


# The write-ahead log (WAL) that a killed writer left

# SQLite takes any log of the right name for that of the file, also where the file was replaced
# meanwhile. It reads a log up to the first frame that does not match its checksum, for there an
# interrupted write ended it. Where frames of the same log follow, it was no interrupted write:
# what they hold was committed, and is not seen. Folding a log in cannot be undone. The format is
# that of https://sqlite.org/fileformat2.html#walformat.
_HEADER, _FRAME_HEADER = 32, 24
_PAGE_SIZES = [1 << bits for bits in range(9, 17)]
_MAGIC = 0x377F0682  # the last bit: whether checksums are of big-endian words


def check_leftover(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a log that makes a damaged map of its file; keep a copy of one that is cut short.

    What of a log can be read before the damage is an earlier state of the map, as after a power
    cut, so that a robot goes on from there. Nothing is done where there is no log.

    Args:
        db: reads the map with its log; nobody writes.

    Raises:
        DamagedMapError: map and log do not go together. MapError: the copy cannot be written.
            All is as it was.
    """
    log = files.wal_of(path)
    if not files.size_of(log):
        return
    if problems := find_problems(db):
        raise blame_log(
            DamagedMapError(
                f"{path}: damaged when read with {log.name}, the WAL of a killed writer "
                f"({problems[0]}); {remedy(path)}"
            ),
            path,
        )
    for problem in log_problems(path):
        kept = files.dated(log, "damaged")
        try:
            with open(log, "rb") as source, open(files.create(kept), "wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as e:
            raise MapError(
                f"{path}: {problem}, and {kept} cannot be written to keep it: {e.strerror}; "
                "free some space or check the folder"
            ) from e
        _log.warning("%s: %s; the WAL is kept as %s", path, problem, kept)


def blame_log(error: DamagedMapError, path: Path) -> DamagedMapError:
    """The error of a map that nobody writes; it names the WAL if the file is valid without it."""
    log = files.wal_of(path)
    count = _held_without_log(path) if files.size_of(log) else None
    if count is None:
        return error
    return DamagedMapError(
        f"{path}: damaged when read with {log.name}, the WAL of a killed writer; the file without "
        f"the WAL is valid, with {count} keyframes: move the WAL away to use it, or "
        f"{remedy(path)}"
    )


def _held_without_log(path: Path) -> int | None:
    """How many keyframes the file holds without its WAL; None if it is not valid then."""
    try:
        with closing(connect_unchanging(path)) as db:
            check_tables(db, path)
            if find_problems(db):
                return None
            return sums(db)["keyframes"][0]
    except (MapError, *DAMAGE):
        return None


def log_problems(path: Path) -> Iterator[str]:
    """What of the log beside a map is lost to damage; the map must be locked against writers.

    The last frame of a log says nothing: an interrupted write looks the same.

    Raises:
        MapError: what has the name of the log is no file, or too large. OSError: it cannot be
            read.
    """
    files.check_beside(path)
    if not files.size_of(files.wal_of(path)):
        return
    with open(files.wal_of(path), "rb") as log:
        header = log.read(_HEADER)
        length = os.fstat(log.fileno()).st_size
        if length < _HEADER + _FRAME_HEADER + _PAGE_SIZES[0]:
            return  # no frame, so that nothing is lost
        magic, _, page_size = struct.unpack_from(">III", header)
        order = ">" if magic & 1 else "<"
        sums = _checksum(header[:24], order, (0, 0))
        sound = magic & ~1 == _MAGIC and page_size in _PAGE_SIZES
        if not sound or sums != struct.unpack_from(">II", header, 24):
            yield f"WAL: its header is damaged, so its {length} bytes are not read"
            return
        salts = header[16:24]
        damaged_at = lost = 0
        for at in range(_HEADER, length, _FRAME_HEADER + page_size):
            frame = log.read(_FRAME_HEADER + page_size)  # one at a time, however long the log is
            if len(frame) < _FRAME_HEADER + page_size:
                break
            if damaged_at:
                # After a checkpoint SQLite overwrites the WAL from its start, with other salts.
                lost += frame[8:16] == salts
                continue
            sums = _checksum(frame[:8], order, sums)
            sums = _checksum(frame[_FRAME_HEADER:], order, sums)
            if sums != struct.unpack_from(">II", frame, 16) or frame[8:16] != salts:
                damaged_at = at
    if lost:
        yield (
            f"WAL: damaged at byte {damaged_at} (by a power cut or a flipped bit), so the {lost} "
            "frames after it are lost"
        )


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    s0, s1 = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + first + s1) & 0xFFFFFFFF
        s1 = (s1 + second + s0) & 0xFFFFFFFF
    return s0, s1
