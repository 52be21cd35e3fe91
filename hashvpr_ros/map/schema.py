"""The file format of a map: application id, schema version, tables, and checks before opening.

And what is said of a file that is not as it was written: `reading` is the one place where whatever
damage raises becomes a `MapError`.
"""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.connection import connect_unchanging
from hashvpr_ros.map.files import good_copy_of, is_read_only, size_of, wal_of
from hashvpr_ros.map.rows import MAX_THUMBNAIL_BYTES

APPLICATION_ID = 0x48565052  # "HVPR"
SCHEMA_VERSION = 3
MAX_ID = 2**31 - 1
MAX_FEATURE_DIM = 65536

# Each row has a checksum, `crc`, of all that it holds. That of a keyframe covers the checksums of
# its feature and its thumbnail, too. `checks` has for each of these tables the number of its rows
# and the sum of their checksums, so that a row that is lost is missed; see `integrity`.
#
# Features and thumbnails have tables of their own: loading all codes at start then reads no page
# of theirs, and reading a hundred features touches no thumbnail.
SCHEMA = f"""
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    crc INTEGER NOT NULL
);
CREATE TABLE keyframes (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND {MAX_ID}),
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    camera TEXT NOT NULL,
    stamp_ns INTEGER NOT NULL,
    frame_id TEXT,
    px REAL, py REAL, pz REAL, qx REAL, qy REAL, qz REAL, qw REAL,
    code BLOB NOT NULL CHECK (length(code) = 64),
    feature_crc INTEGER NOT NULL,
    thumbnail_crc INTEGER,
    crc INTEGER NOT NULL
);
CREATE TABLE features (
    id INTEGER PRIMARY KEY REFERENCES keyframes (id),
    feature BLOB NOT NULL CHECK (length(feature) <= {2 * MAX_FEATURE_DIM})
);
CREATE TABLE thumbnails (
    id INTEGER PRIMARY KEY REFERENCES keyframes (id),
    jpeg BLOB NOT NULL CHECK (length(jpeg) <= {MAX_THUMBNAIL_BYTES})
);
CREATE TABLE verdicts (
    query_ns INTEGER NOT NULL,
    match_id INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    log_odds REAL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (query_ns, match_id)
) WITHOUT ROWID;
CREATE TABLE checks (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    sum TEXT NOT NULL,
    crc INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# What reading a damaged file may raise: the second where SQLite's message quotes the damage.
SQLITE_ERRORS = (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError)
# What values may raise that are not as they were written.
_BAD_VALUES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
DAMAGE = (*SQLITE_ERRORS, *_BAD_VALUES)

_MAGIC = b"SQLite format 3\x00"


class MapNotFoundError(MapError):
    """There is no file at the path."""


class NewerMapError(MapError):
    """The map was made by a newer version than this one."""


class WrongModelError(MapError):
    """The map was made by another model than the one in use."""


class DamagedMapError(MapError):
    """The map is not as it was written."""


@contextmanager
def reading(path: str | Path, doing: str = "reading") -> Iterator[None]:
    """Turn whatever damage raises while a map is read or changed into one sentence.

    Args:
        path: of the map; "" in memory.
        doing: what is done, for errors of SQLite.

    Raises:
        MapError: SQLite or the system cannot do it. DamagedMapError: the map is damaged.
    """
    try:
        yield
    except SQLITE_ERRORS as e:
        raise explain(e, path, doing) from e
    except _BAD_VALUES as e:
        raise DamagedMapError(f"{path}: damaged ({one_line(e)}); {remedy(path)}") from e


def one_line(error: Exception) -> str:
    """What an error says, on one line and not longer than that; a damaged value can be long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def remedy(path: str | Path, otherwise: str = "restore it from a copy") -> str:
    """The end of a sentence that says that a map is damaged.

    Args:
        otherwise: the remedy if there is no backup.
    """
    good = good_copy_of(os.path.realpath(path))
    if not good.is_file():
        return otherwise
    date = datetime.fromtimestamp(good.stat().st_mtime)
    held = "an unknown number of"
    with (
        suppress(*SQLITE_ERRORS, MapError),
        closing(connect_unchanging(good)) as db,
    ):
        check_tables(db, good)  # of a view, counting may have no end
        held = str(db.execute("SELECT count(*) FROM keyframes").fetchone()[0])
    return (
        f"`hashvpr map restore {shlex.quote(str(path))}` restores the backup of "
        f"{date:%Y-%m-%d %H:%M} with {held} keyframes"
    )


def check_header(fd: int, path: Path) -> None:
    """Refuse what is not a readable map of this version, by its first 100 bytes.

    SQLite is not asked: opening a foreign database could create files beside it, and a truncated
    one would be noticed only when a missing page is first needed.

    Raises:
        NewerMapError, MapError: foreign, newer, empty or truncated file.
    """
    try:
        header = os.pread(fd, 100, 0)
    except OSError as e:  # as of files of the kernel, which pass for regular ones
        raise MapError(f"{path}: cannot be read: {e.strerror}; give the path of a map") from e
    size = os.fstat(fd).st_size
    if size == 0:
        raise DamagedMapError(
            f"{path}: the file is empty, so it is no map; "
            f"{remedy(path, 'delete it or give another')}"
        )
    if header[:16] != _MAGIC[: len(header)] or len(header) < 100:
        raise MapError(
            f"{path}: not a map of hashvpr_ros (not an SQLite file); "
            f"{remedy(path, 'give another path')}"
        )
    (application,) = struct.unpack_from(">I", header, 68)
    (version,) = struct.unpack_from(">I", header, 60)
    if application != APPLICATION_ID:
        raise MapError(
            f"{path}: an SQLite file of another application, not a map of hashvpr_ros; "
            f"{remedy(path, 'give another path')}"
        )
    if version == 0:
        raise DamagedMapError(f"{path}: damaged, it has no schema version; {remedy(path)}")
    if version < SCHEMA_VERSION:
        raise MapError(
            f"{path}: made by a version before the first release (schema {version}, this version "
            f"reads {SCHEMA_VERSION}); build it again from its images"
        )
    if version > SCHEMA_VERSION:
        raise NewerMapError(
            f"{path}: made by a newer hashvpr_ros (schema {version}, this version reads up to "
            f"{SCHEMA_VERSION}); update hashvpr_ros"
        )
    (page_size,) = struct.unpack_from(">H", header, 16)
    page_size = 65536 if page_size == 1 else page_size
    (pages,) = struct.unpack_from(">I", header, 28)
    # With a log, the missing pages may be there.
    if size < page_size * pages and not size_of(wal_of(path)):
        raise DamagedMapError(
            f"{path}: truncated ({size} bytes of {page_size * pages}); {remedy(path)}"
        )


def header_problems(header: bytes) -> Iterator[str]:
    """What is unusual in the first 100 bytes of a map, but for what changes with each write.

    SQLite takes much of it for a setting and none of it for damage. Fields are those of
    https://sqlite.org/fileformat2.html#the_database_header.
    """
    (changes, schema_format, cache_pages, largest_root, encoding) = (
        struct.unpack_from(">I", header, at)[0] for at in (24, 44, 48, 52, 56)
    )
    (incremental, valid_for) = (struct.unpack_from(">I", header, at)[0] for at in (64, 92))
    for sound, what in (
        (header[18:20] in (b"\x01\x01", b"\x02\x02"), "format version"),
        (header[20:24] == b"\x00\x40\x20\x20", "page layout"),
        (changes == valid_for, "change counter"),
        (schema_format == 4, "schema format"),
        (cache_pages == 0, "cache size"),
        (largest_root == incremental == 0, "vacuum mode"),
        (encoding == 1, "text encoding"),
        (header[72:92] == bytes(20), "reserved space"),
    ):
        if not sound:
            yield f"header: unusual {what}"


_Object = tuple[str, str, str | None]  # kind, table and SQL of a table or an index


@cache
def _objects() -> dict[str, _Object]:
    """What SQLite keeps of each table and index of a map, by name."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _objects_of(db)


def _objects_of(db: sqlite3.Connection) -> dict[str, _Object]:
    rows = db.execute("SELECT name, type, tbl_name, sql FROM sqlite_master")
    return {name: (kind, table, sql) for name, kind, table, sql in rows}


def check_tables(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file whose tables are not those of a map, or that would run code of its own.

    Raises:
        MapError: tables or indexes are missing, altered or others, or there are triggers or views.
    """
    found = _objects_of(db)
    for name, (kind, *_) in found.items():
        if kind not in ("table", "index"):
            raise MapError(
                f"{path}: holds a {kind} ({name!r}), so it is no map; give another path"
            )
    wrong = {of[1] for name, of in _objects().items() if found.get(name) != of}
    if wrong:
        raise DamagedMapError(
            f"{path}: damaged, these tables are missing or altered: {', '.join(sorted(wrong))}; "
            f"{remedy(path)}"
        )
    for name, (kind, *_) in found.items():
        # A unique index alone makes SQLite delete what was written before. What `ANALYZE` leaves
        # is harmless.
        if name not in _objects() and not name.startswith("sqlite_stat"):
            raise MapError(
                f"{path}: holds the {kind} {name!r}, which no map has; drop it, or {remedy(path)}"
            )


def check_meta(have: Mapping[str, str], want: Mapping[str, str], path: Path) -> None:
    """Compare what a map records of itself with the engine in use.

    Args:
        want: fingerprint, feature_dim, model_name; what is empty or absent is not compared.

    Raises:
        WrongModelError: another model made the map.
        MapError: the record is incomplete.
    """
    missing = {"map_id", "fingerprint", "feature_dim"} - have.keys()
    if missing:
        raise DamagedMapError(
            f"{path}: damaged, it lacks {', '.join(sorted(missing))}; {remedy(path)}"
        )
    dim = have["feature_dim"]
    if not (dim.isdecimal() and 1 <= int(dim[:9]) <= MAX_FEATURE_DIM):
        raise DamagedMapError(
            f"{path}: damaged, features cannot have {dim[:20]!r} values; {remedy(path)}"
        )
    for key in ("fingerprint", "feature_dim"):
        if want.get(key) and want[key] != have[key]:
            raise WrongModelError(
                f"{path}: made by model {have.get('model_name') or 'unnamed'} "
                f"({have['fingerprint'][:12]}, {dim}-d), but the engine is "
                f"{want.get('model_name') or 'unnamed'} ({want.get('fingerprint', '')[:12]}, "
                f"{want.get('feature_dim') or '?'}-d); give that model's engine or "
                "another map, or make one of it by `hashvpr map reembed`"
            )


def _on_read_only(path: str | Path) -> bool:
    return str(path) != "" and is_read_only(Path(path))


def cannot_write(error: OSError, path: Path) -> MapError:
    """Turn what the system says of a file that is to be made into a sentence with a remedy."""
    helps = "check the folder"
    if error.errno == errno.EROFS:
        helps = "its disk is read-only; make it writable, or give a path on another disk"
    return MapError(f"{path}: cannot be written: {error.strerror}; {helps}")


def explain(error: Exception, path: str | Path, doing: str) -> MapError:
    """Turn one of `SQLITE_ERRORS` into a sentence with a remedy."""
    text = one_line(error)
    kind = MapError
    where = str(path) or "map in memory"
    if "disk is full" in text:
        helps = "the disk is full; free some space"
    elif ("I/O" in text or "readonly" in text or "unable to open" in text) and _on_read_only(path):
        log = wal_of(Path(path))
        helps = f"its disk is read-only ({text}); " + (
            f"its WAL {log.name} can only be read on a writable disk: copy both files to one"
            if doing == "opening" and size_of(log)
            else "make it writable, or open the map read-only (mode localization)"
            if doing.startswith("opening")
            else "make it writable, or give a path on another disk"
        )
    elif "readonly" in text or "unable to open" in text:
        helps = f"{text}; check the permissions of the file and its folder"
    elif "locked" in text or "busy" in text:
        helps = "another process holds it; close that one first"
    elif isinstance(error, sqlite3.IntegrityError) and "UNIQUE" in text:
        helps = (
            f"another program has written keyframes with the same ids ({text}), which stay; save "
            "the keyframes of this process under another name (~/save_map)"
        )
    elif isinstance(error, (UnicodeDecodeError, sqlite3.DataError)) or any(
        word in text for word in ("malformed", "not a database", "decode to UTF-8")
    ):
        kind = DamagedMapError
        helps = f"the file is damaged ({text}); {remedy(path)}"
    else:
        helps = text
    return kind(f"{where}: {doing} failed: {helps}")
