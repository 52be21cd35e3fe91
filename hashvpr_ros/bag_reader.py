"""Opens a rosbag2 that may be damaged or hostile, and gives its messages as bytes. No ROS needed.

The storages are read by the library `rosbags`. Its reader of bags is not used: it drops a topic
where metadata.yaml and the storages differ about QoS, and it bounds no size.
"""

from __future__ import annotations

import heapq
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import yaml
from lz4.frame import LZ4FrameDecompressor
from rosbags.rosbag2 import ReaderError, storage_mcap
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import MB, check_regular, read_text
from hashvpr_ros.imaging import MAX_PIXELS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METADATA = "metadata.yaml"
SUFFIXES = (".db3", ".mcap")
# Of one message, decompressed: no image that is decoded has more than 8 bytes a pixel.
MOST_MESSAGE_BYTES = 8 * MAX_PIXELS + MB
MOST_OPEN_BYTES = 2 * MOST_MESSAGE_BYTES  # of all chunks that are in memory at a time
_MOST_METADATA_BYTES = 4 * MB  # a recording of a thousand files has some 700 kB
_MOST_STORAGE_BYTES = 10**13
_MOST_COUNT = 2**63 - 1  # of messages
_NEWEST_VERSION = 9  # of metadata.yaml
_MCAP_MAGIC, _MCAP_ATTACHMENT = b"\x89MCAP0\r\n", 0x09
_PART_BYTES = 1 << 24  # that are decompressed at a time
# A recording that is compressed as a whole shrinks some 2 to 100 times.
_FILE_RATIO, _SMALL_FILE_BYTES, _SPARE_BYTES = 1000, 1000 * MB, 1000 * MB

_Storage: TypeAlias = McapReader | Sqlite3Reader


class Raw(NamedTuple):
    """A message as it is stored; `BagReader.content` gives its CDR."""

    topic: str
    msgtype: str
    time_ns: int  # when it was received
    data: bytes


@dataclass
class Topic:
    """What a bag says of one topic."""

    types: set[str] = field(default_factory=set)
    formats: set[str] = field(default_factory=set)  # of serialisation; `cdr` for ROS 2
    digests: set[str] = field(default_factory=set)  # of the definitions of the types
    listed: int = 0  # messages, by metadata.yaml or the storages: the larger number


@dataclass
class _Metadata:
    files: list[Path]
    topics: dict[str, Topic]
    compression: str = ""  # "", message or file


class BagReader:
    """A bag that is open for reading, to be closed.

    Args:
        path: the folder of a rosbag2, or one of its storage files.

    Attributes:
        topics: by name.

    Raises:
        DatasetError: missing, foreign, damaged, or of files that are not regular ones in its
            folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: dict[str, Topic] = {}
        self._storages: list[_Storage] = []
        self._decompressed: tempfile.TemporaryDirectory[str] | None = None
        try:
            metadata = _metadata(path)
            self._compression = metadata.compression
            files = metadata.files
            if metadata.compression == "file":
                self._decompressed = tempfile.TemporaryDirectory(prefix="hashvpr_bag")
                files = [_decompressed(path, f, Path(self._decompressed.name)) for f in files]
            for file in files:
                self._storages.append(_opened(path, file))
            self._count(metadata.topics)
        except BaseException:
            self.close()
            raise

    def _count(self, listed: dict[str, Topic]) -> None:
        """What both metadata.yaml and the storages say of the topics."""
        for storage in self._storages:
            for connection in storage.connections:
                serialized = getattr(connection.ext, "serialization_format", "cdr")
                texts = connection.topic, connection.msgtype, serialized, connection.digest
                if not all(isinstance(text, str) for text in texts):  # a table can hold anything
                    name = Path(storage.path).name
                    raise _unreadable(
                        self.path, f"{name}: a topic's name is damaged", _remedy(name)
                    )
                topic = self.topics.setdefault(connection.topic, Topic())
                topic.types.add(connection.msgtype)
                topic.formats.add(serialized)
                topic.digests.add(connection.digest)
                topic.listed += _checked_count(self.path, connection.topic, connection.msgcount)
        for name, said in listed.items():
            topic = self.topics.setdefault(name, said)
            topic.types |= said.types
            topic.digests |= said.digests
            topic.listed = max(topic.listed, said.listed)
        for topic in self.topics.values():
            topic.digests.discard("")

    def messages(self, topics: Collection[str], on_damage: Callable[[str], None]) -> Iterator[Raw]:
        """The messages of some topics, of each storage in the order of their receipt.

        Args:
            on_damage: called with a sentence where a storage ends early because it is damaged.
        """
        for storage in self._storages:
            connections = [c for c in storage.connections if c.topic in topics]
            if not connections:  # for which rosbags would read everything
                continue
            messages = storage.messages(connections)
            while True:
                try:
                    connection, time_ns, data = next(messages)
                except StopIteration:
                    break
                except Exception as e:  # sqlite3, mcap, zstd and lz4 each raise their own
                    name = Path(storage.path).name
                    on_damage(f"{name} is damaged ({_reason(e)}); {_remedy(name)}")
                    break
                # A table can hold anything; what is no message is damaged, as any other.
                is_time = type(time_ns) is int and 0 <= time_ns <= _MOST_COUNT
                yield Raw(
                    connection.topic,
                    connection.msgtype,
                    time_ns if is_time else 0,
                    data if isinstance(data, bytes) else b"",
                )

    def content(self, raw: Raw) -> bytes:
        """The CDR of a message.

        Raises:
            ReaderError, ZstdError: its compression is damaged, or it is too large.
        """
        if self._compression != "message":
            return raw.data
        return _unpacked_zstd(raw.data, MOST_MESSAGE_BYTES)

    def close(self) -> None:
        """Close all files."""
        while self._storages:
            with suppress(Exception):  # one that could not be opened
                self._storages.pop().close()
        if self._decompressed is not None:
            self._decompressed.cleanup()


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _unreadable(path: Path, reason: str, remedy: str) -> DatasetError:
    return DatasetError(f"{path}: not a readable bag ({reason}); {remedy}")


def _remedy(name: str) -> str:
    """What helps with a storage file."""
    if Path(name).suffix == ".mcap":
        return f"`mcap recover {name} -o whole.mcap` saves what can be read"
    return "copy or record it again"


# metadata.yaml


_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast as the other


class _Loader(_BASE):  # type: ignore[misc]
    """Takes no merge keys, which can make a short text endless."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def _metadata(path: Path) -> _Metadata:
    """Which files a bag has, and what it says of its topics."""
    if not path.exists():
        raise DatasetError(f"{path}: no such bag; correct the path")
    if path.suffix == ".bag":
        what = "rename the folder" if path.is_dir() else "convert it by `rosbags-convert`"
        raise DatasetError(f"{path}: ROS 1 bags end in .bag and are not supported; {what}")
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DatasetError(
                f"{path}: is no bag; give the folder of a rosbag2, or its "
                f"{' or '.join(SUFFIXES)} file"
            )
        return _Metadata([path], {})
    if not (path / METADATA).exists():
        raise DatasetError(
            f"{path}: has no {METADATA}, so it is no bag; give the bag's folder, or make the "
            "file again with `ros2 bag reindex`"
        )
    text = read_text(path / METADATA, _MOST_METADATA_BYTES, error=DatasetError)
    try:
        return _parsed(path, yaml.load(text, Loader=_Loader))
    except DatasetError:
        raise
    except Exception as e:  # yaml raises several, and what it gives can be of any shape
        reason = f"{METADATA} is malformed: {_reason(e)}"
        raise _unreadable(path, reason, "`ros2 bag reindex` writes it again") from e


def _parsed(path: Path, content: Any) -> _Metadata:
    info = _of(dict, _of(dict, content, "content")["rosbag2_bagfile_information"], "information")
    version = _of(int, info["version"], "version")
    if version > _NEWEST_VERSION:
        raise ValueError(f"its version {version} is newer than {_NEWEST_VERSION}")
    names = [
        _of(str, name, "relative_file_paths")
        for name in _of(list, info["relative_file_paths"], "relative_file_paths")
    ]
    named = (_inside(path, name, version) for name in dict.fromkeys(names))
    files = list(dict.fromkeys(named))
    mode = _of(str, info.get("compression_mode") or "", "compression_mode").lower()
    method = _of(str, info.get("compression_format") or "", "compression_format")
    mode = "" if mode == "none" else mode
    if mode not in ("", "message", "file") or (mode and method != "zstd"):
        raise ValueError(f"compression {method[:30]!r} by {mode[:30]!r} is not supported")
    topics: dict[str, Topic] = {}
    for entry in _of(list, info["topics_with_message_count"], "topics_with_message_count"):
        said = _of(dict, entry, "a topic")
        about = _of(dict, said["topic_metadata"], "a topic")
        name = _of(str, about["name"], "name")
        topic = topics.setdefault(name, Topic())
        topic.types.add(_of(str, about["type"], "type"))
        topic.formats.add(_of(str, about.get("serialization_format", "cdr"), "format"))
        topic.digests.add(_of(str, about.get("type_description_hash") or "", "hash"))
        topic.listed += _checked_count(path, name, said["message_count"])
    return _Metadata(files, topics, mode)


def _of(kind: type, value: Any, what: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is no {kind.__name__}")
    return value


def _checked_count(path: Path, topic: str, count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_COUNT:
        shown = f"{count:.3g}" if isinstance(count, int) and abs(count) < 10**300 else "unreadable"
        raise _unreadable(
            path,
            f"its number of messages on {topic[:200]} is {shown}",
            "`ros2 bag reindex` writes it again",
        )
    return count


def _inside(path: Path, name: str, version: int) -> Path:
    """A storage file by its name in metadata.yaml, which must lie in the bag's folder."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(f"it names {name[:200]!r}, which is not in the bag's folder")
    file = path / relative
    if version < 4 or not file.exists():  # by the name of the folder at the time
        file = path / relative.name
    if not file.exists():
        raise _unreadable(
            path,
            f"{relative.name} is missing",
            "copy it there, or give the files that are left by themselves",
        )
    if not file.resolve().is_relative_to(path.resolve()):
        raise _unreadable(
            path,
            f"{relative.name} is a link to a file outside of the bag's folder",
            f"copy the file there, or give {file} itself",
        )
    return file


# Storages


def _opened(path: Path, file: Path) -> _Storage:
    """A storage that is open for reading."""
    check_regular(file, _MOST_STORAGE_BYTES, error=DatasetError)
    named = "" if file == path else f"{file.name}: "
    storage: _Storage
    try:
        if file.suffix == ".mcap":
            _check_records(file)
            storage = mcap = McapReader(file)
            mcap.open()
            try:
                _check_chunks(mcap)
            except BaseException:
                mcap.close()
                raise
        elif file.suffix == ".db3":
            _check_tables(file)
            storage = Sqlite3Reader(file)
            storage.open()
        else:
            raise ReaderError(f"its files end in neither {' nor '.join(SUFFIXES)}")
    except Exception as e:  # apsw, mcap and zstd each raise their own
        reason = _reason(e)
        if "end magic" in reason:
            reason = f"the recording was killed, or it is cut off: {reason}"
        raise _unreadable(path, f"{named}{reason}", _remedy(file.name)) from e
    return storage


def _check_tables(file: Path) -> None:
    """Refuse tables whose rows are computed, and messages that are too large.

    Raises:
        ReaderError, sqlite3.Error: of them, or of a file that is no database.
    """
    if any(c in str(file) for c in "?#%"):  # rosbags opens it by a URI in which these mean more
        raise ReaderError("its path has one of ?, # and %: rename it")
    address = f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        objects = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        for kind, name, table, sql in objects.fetchall():
            if kind == "table":
                columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,))
                is_plain = not any(hidden for (hidden,) in columns)
                is_plain &= "VIRTUAL" not in str(sql).upper().split()[:2]
            else:
                is_plain = kind == "index"
            if not is_plain:
                raise ReaderError(f"its {kind} {str(name)[:60]!r} is computed, which no bag has")
            if str(table).lower() not in _BAG_TABLES:
                continue
            through = f"INDEXED BY {_quoted(name)}" if kind == "index" else "NOT INDEXED"
            _check_rows(database, f"{_quoted(table)} {through}", file.stat().st_size)
        (longest,) = database.execute("SELECT max(length(data)) FROM messages").fetchone()
        if longest is not None and longest > MOST_MESSAGE_BYTES:
            raise ReaderError(_too_large("a message"))


# Those that rosbags reads.
_BAG_TABLES = ("messages", "topics", "schema", "message_definitions")


def _check_rows(database: sqlite3.Connection, source: str, file_bytes: int) -> None:
    """Refuse a tree with more rows than its file has room for: it leads back into itself.

    Raises:
        ReaderError: it does. sqlite3.Error: it is damaged.
    """
    most = file_bytes // 2  # a row has at least a length and a header
    rows = f"SELECT 1 FROM {source} LIMIT {most + 1}"
    (count,) = database.execute(f"SELECT count(*) FROM ({rows})").fetchone()
    if count > most:
        raise ReaderError("a table of it has no end")


def _quoted(name: object) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _check_records(file: Path) -> None:
    """Refuse records that would not fit into memory, before rosbags reads one.

    Raises:
        ReaderError: there are such.
    """
    with file.open("rb") as content:
        at = len(_MCAP_MAGIC)
        if content.read(at) != _MCAP_MAGIC:
            return  # rosbags says why
        while len(head := content.read(9)) == 9:
            length = int.from_bytes(head[1:], "little")
            if head[0] != _MCAP_ATTACHMENT and length > MOST_OPEN_BYTES:
                raise ReaderError(_too_large("a record", MOST_OPEN_BYTES))
            at += 9 + length
            if at >= 2**63:  # no file is that long
                return
            content.seek(at)


def _check_chunks(storage: McapReader) -> None:
    """Refuse chunks that, in memory together, would need too much of it.

    What they say of their size is held to when they are decompressed.

    Raises:
        ReaderError: they do.
    """
    open_bytes = 0
    ends: list[tuple[int, int]] = []  # of chunks that are open
    for chunk in sorted(storage.chunks, key=lambda c: c.message_start_time):
        while ends and ends[0][0] < chunk.message_start_time:
            open_bytes -= heapq.heappop(ends)[1]
        size = max(chunk.uncompressed_size, chunk.compressed_size)
        open_bytes += size
        if open_bytes > MOST_OPEN_BYTES:
            raise ReaderError(_too_large("chunks of the same time"))
        heapq.heappush(ends, (chunk.message_end_time, size))


def _too_large(what: str, most: int = MOST_MESSAGE_BYTES) -> str:
    return f"{what} would take more than {most / MB:,.0f} MB"


# Decompression


def _unpacked_zstd(data: bytes, most: int) -> bytes:
    """Decompressed bytes, at most so many.

    Raises:
        ReaderError: there are more, or they are cut off. ZstdError: they are damaged.
    """
    parts, total = [], 0
    rest = bytes(data)
    while rest:
        frame = zstd.ZstdDecompressor()
        while not frame.eof:
            part = frame.decompress(rest, max_length=_PART_BYTES)
            rest = b""
            total += len(part)
            if total > most:
                raise ReaderError(_too_large("its decompressed content", most))
            if not part and frame.needs_input:
                raise ReaderError("its compressed content is cut off")
            parts.append(part)
        rest = frame.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpacked_lz4(data: bytes, most: int) -> bytes:
    part: bytes = LZ4FrameDecompressor().decompress(data, max_length=most + 1)
    if len(part) > most:
        raise ReaderError(_too_large("its decompressed content", most))
    return part


def _chunk(unpack: Callable[[bytes, int], bytes]) -> Callable[[bytes, int], bytes]:
    """A decompressor of chunks as rosbags calls it: with the size that the chunk says it has."""

    def decompress(data: bytes, size: int) -> bytes:
        if size > MOST_OPEN_BYTES:
            raise ReaderError(_too_large("a chunk", MOST_OPEN_BYTES))
        return unpack(data, size)

    return decompress


# The table by which rosbags decompresses chunks; its own entries know no bound.
storage_mcap.DECOMPRESSORS.update(zstd=_chunk(_unpacked_zstd), lz4=_chunk(_unpacked_lz4))


def _decompressed(path: Path, file: Path, folder: Path) -> Path:
    """A storage file that was compressed as a whole, decompressed into a folder.

    Raises:
        DatasetError: it is damaged, or larger than the disk or any recording can be.
    """
    size = check_regular(file, _MOST_STORAGE_BYTES, error=DatasetError).st_size
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    most = min(max(_SMALL_FILE_BYTES, _FILE_RATIO * size), free)
    out = folder / file.stem
    written = 0
    try:
        with zstd.open(file, "rb") as packed, out.open("xb") as unpacked:
            while part := packed.read(1 << 20):
                written += len(part)
                if written > most:
                    raise ReaderError(
                        f"it would take more than {most / MB:,.0f} MB in {folder.parent}"
                    )
                unpacked.write(part)
    except (OSError, EOFError, ReaderError, zstd.ZstdError) as e:
        raise _unreadable(
            path,
            f"{file.name} cannot be decompressed: {_reason(e)}",
            f"decompress it by `zstd -d {file.name}`, or set TMPDIR to a folder with more space",
        ) from e
    return out
