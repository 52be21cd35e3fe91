"""Sums over the rows of a map's tables, kept in the map, which show what was changed or lost.

A checksum within a row says nothing of a row that is gone, and SQLite's `integrity_check` nothing
of a value that is another valid one. Each table has the number of its rows and the sum, modulo
2^64, of a hash of each: whoever writes rows adds theirs and subtracts those of rows that go, so
that recording costs the same however large the map is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b

from hashvpr_ros.map import verdicts

TABLE = """CREATE TABLE checks (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    sum TEXT NOT NULL
) WITHOUT ROWID"""

# The first column identifies a row. Where there is a `crc`, it covers the rest of the row, of a
# keyframe with its feature and its thumbnail.
_COLUMNS = {
    "meta": ("key", "value"),
    "sessions": ("id", "name"),
    "keyframes": ("id", "session_id", "crc"),
    "sqlite_sequence": ("name", "seq"),
    "verdicts": ("query_ns", "match_id", "crc"),
}
_MODULUS = 1 << 64


def count_all(db: sqlite3.Connection) -> None:
    """Count the rows of all tables anew; within a transaction."""
    count_anew(db, *_COLUMNS)


def count_anew(db: sqlite3.Connection, *tables: str) -> None:
    """Count the rows of tables anew, which is for small ones; within a transaction."""
    for table in tables:
        _keep(db, table, *_sum(_rows(db, table)))


def change(
    db: sqlite3.Connection, table: str, gone: Iterable[Sequence], new: Iterable[Sequence]
) -> None:
    """Count rows that went and rows that came, each as `rows` gives them; within a transaction."""
    kept = db.execute("SELECT count, sum FROM checks WHERE name = ?", (table,)).fetchone()
    count, total = (0, "0") if kept is None else kept
    gone_count, gone_sum = _sum(gone)
    new_count, new_sum = _sum(new)
    total = (int(total, 16) + new_sum - gone_sum) % _MODULUS
    _keep(db, table, count + new_count - gone_count, total)


def rows(db: sqlite3.Connection, table: str, keys: Sequence[int]) -> list[tuple]:
    """What is counted of the rows that have one of these values in the first column."""
    found: list[tuple] = []
    if not _has(db, table):
        return found
    columns = ", ".join(_COLUMNS[table])
    for begin in range(0, len(keys), 512):  # a statement takes a limited number of parameters
        some = keys[begin : begin + 512]
        marks = ",".join("?" * len(some))
        found += db.execute(
            f"SELECT {columns} FROM {table} WHERE {_COLUMNS[table][0]} IN ({marks})", some
        )
    return found


def problems(db: sqlite3.Connection) -> Iterator[str]:
    """Tables that are not as their writer left them.

    The connection must decode text by `surrogateescape`: damage in a name is to be seen.

    Raises:
        sqlite3.Error: the file cannot be read.
    """
    kept = {name: values for name, *values in db.execute("SELECT name, count, sum FROM checks")}
    for table in _COLUMNS:
        count, total = _sum(_rows(db, table))
        expected = kept.pop(table, None)
        if expected == [count, _text(total)]:
            continue
        if expected is None or expected[0] == count:
            yield f"table {table}: its {count} rows do not match their checksum"
        else:
            yield f"table {table}: has {count} rows, but {expected[0]} were written"
    for table in kept:
        yield f"table checks: has a row for {table!r}, which no map has"


def content_of(db: sqlite3.Connection) -> list[tuple] | None:
    """What tells the content of a map from any other; None where it is of schema 1."""
    with suppress(sqlite3.OperationalError):
        return db.execute("SELECT name, count, sum FROM checks ORDER BY name").fetchall()
    return None


def _has(db: sqlite3.Connection, table: str) -> bool:
    return table != "verdicts" or verdicts.has_table(db)


def _rows(db: sqlite3.Connection, table: str) -> Iterable[tuple]:
    if not _has(db, table):
        return ()
    return db.execute(f"SELECT {', '.join(_COLUMNS[table])} FROM {table}")


def _sum(values: Iterable[Sequence]) -> tuple[int, int]:
    count = total = 0
    for row in values:
        # repr tells types apart, too: damage can make a number of a text.
        digest = blake2b(ascii(tuple(row)).encode(), digest_size=8).digest()
        total += int.from_bytes(digest, "little")
        count += 1
    return count, total % _MODULUS


def _text(total: int) -> str:
    return f"{total:016x}"


def _keep(db: sqlite3.Connection, table: str, count: int, total: int) -> None:
    db.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", (table, count, _text(total)))
