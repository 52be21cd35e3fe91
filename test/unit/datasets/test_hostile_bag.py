"""Bags that lie, are cut, or want more than a bag may have; and bags whose parts disagree."""

import itertools
import os
import re
import resource
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from zlib import crc32

import lz4.frame
import numpy as np
import pytest
import yaml
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from test_bag import IMAGE, ODOMETRY, STORAGES, STORE, S, image, images, pose_message, record

from hashvpr_ros import bag_reader
from hashvpr_ros.bag_reader import BagReader, zstd
from hashvpr_ros.datasets.bag import BagFrames, Losses, image_topics, read_poses
from hashvpr_ros.errors import DatasetError

EVER = QosTime(9223372036, 854775807)
STAMPS = [S * i for i in range(1, 7)]


def qos(durability=QosDurability.VOLATILE):
    return [Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, durability, EVER, EVER,
                QosLiveliness.AUTOMATIC, EVER, False)]  # fmt: skip


def edited(bag, change):
    """A bag with another metadata.yaml."""
    path = bag / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    change(content["rosbag2_bagfile_information"])
    path.write_text(yaml.safe_dump(content))
    return bag


def set_qos(value):
    def change(info):
        for topic in info["topics_with_message_count"]:
            topic["topic_metadata"]["offered_qos_profiles"] = value

    return change


def set_count(count):
    def change(info):
        info["topics_with_message_count"][0]["message_count"] = count

    return change


def storage_file(bag):
    (file,) = [p for p in bag.iterdir() if p.name != "metadata.yaml"]
    return file


def refused(path, *words, call=lambda path: list(BagFrames(path, "/c"))):
    with pytest.raises(DatasetError) as e:
        call(path)
    text = str(e.value)
    assert "\n" not in text and len(text) < 700 and "; " in text, text
    for word in words:
        assert word in text, text


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


# QoS, and what is missing


@pytest.mark.parametrize("profiles", ["", [], None, "transient_local"])
def test_no_topic_is_lost_for_its_qos(tmp_path, storage, profiles):
    with Writer(tmp_path / "bag", version=8, storage_plugin=STORAGES[storage]) as writer:
        for topic, kind in (("/c", IMAGE), ("/o", ODOMETRY)):
            connection = writer.add_connection(
                topic, kind, typestore=STORE, offered_qos_profiles=qos()
            )
            for stamp in STAMPS:
                message = image(stamp) if kind == IMAGE else pose_message(kind, stamp, (1, 0, 0))
                writer.write(connection, stamp, STORE.serialize_cdr(message, kind))
    if profiles == "transient_local":
        path = tmp_path / "bag" / "metadata.yaml"
        text = path.read_text()
        path.write_text(re.sub(r"durability: \d", "durability: 1", text))
        assert path.read_text() != text
    else:
        edited(tmp_path / "bag", set_qos(profiles))
    frames = BagFrames(tmp_path / "bag", "/c", "/o")
    assert [f.stamp_ns for f in frames if f.pose is not None] == STAMPS
    assert frames.lost == 0 and frames.notes == []


def test_parts_of_different_qos_are_all_read(tmp_path):
    (tmp_path / "bag").mkdir()
    for i, profiles in enumerate((qos(), [], qos(QosDurability.TRANSIENT_LOCAL))):
        with Writer(tmp_path / f"p{i}", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connection = writer.add_connection(
                "/c", IMAGE, typestore=STORE, offered_qos_profiles=profiles
            )
            for stamp in STAMPS[2 * i : 2 * i + 2]:
                writer.write(connection, stamp, STORE.serialize_cdr(image(stamp), IMAGE))
        storage_file(tmp_path / f"p{i}").rename(tmp_path / "bag" / f"bag_{i}.mcap")
    (tmp_path / "p0" / "metadata.yaml").rename(tmp_path / "bag" / "metadata.yaml")

    def join(info):
        info["relative_file_paths"] = [f"bag_{i}.mcap" for i in range(3)]
        set_count(6)(info)

    edited(tmp_path / "bag", join)
    assert [f.stamp_ns for f in BagFrames(tmp_path / "bag", "/c")] == STAMPS


def test_fewer_messages_than_listed_are_an_error_unless_asked_for(tmp_path, storage):
    bag = edited(record(tmp_path / "bag", {"/c": images(*STAMPS)}, storage), set_count(30))
    refused(bag, "holds 6 of 30 messages on /c", "--allow-partial")
    frames = BagFrames(bag, "/c", allow_partial=True)
    assert len(list(frames)) == 6 and frames.lost == 24 and len(frames) == 30
    (note,) = frames.notes
    assert note.startswith(f"{bag}: holds 6 of 30 messages on /c")


def test_fewer_poses_than_listed_are_an_error_too(tmp_path, storage):
    poses = [(s, pose_message(ODOMETRY, s, (1, 0, 0))) for s in STAMPS]
    bag = edited(record(tmp_path / "bag", {"/o": (ODOMETRY, poses)}, storage), set_count(9))
    refused(bag, "6 of 9 messages on /o", call=lambda p: read_poses(p, "/o", Losses()))
    losses = Losses(allow_partial=True)
    assert read_poses(bag, "/o", losses).at(S, 0.1) is not None and losses.missing == 3


def test_a_storage_that_ends_early_is_read_as_far_as_it_goes(tmp_path):
    """One chunk of several is damaged."""
    bag = tmp_path / "bag"
    with Writer(bag, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/c", IMAGE, typestore=STORE)
        rng = np.random.default_rng(0)
        for stamp in STAMPS:
            big = rng.integers(0, 256, (900, 900, 3), np.uint8)  # more than a chunk
            writer.write(connection, stamp, STORE.serialize_cdr(image(stamp, big), IMAGE))
    reader = BagReader(bag)
    chunks = list(reader._storages[0].chunks)
    reader.close()
    assert len(chunks) > 3
    file = storage_file(bag)
    content = bytearray(file.read_bytes())
    at = chunks[3].chunk_start_offset + 9 + 24  # of its checksum, which may be left out as 0
    content[at : at + 4] = b"\x01\x02\x03\x04"
    file.write_bytes(bytes(content))
    refused(bag, "messages on /c", "damaged", "mcap recover")
    frames = BagFrames(bag, "/c", allow_partial=True)
    read = [f.stamp_ns for f in frames]
    assert 1 <= len(read) < 6 and read == STAMPS[: len(read)]
    assert len(read) + frames.lost == 6 and len(frames.notes) == 1


@pytest.mark.parametrize("count", [-1, -(10**30), 10**30, "6", None, 1.5, True, [6]])
def test_counts_that_are_none(tmp_path, storage, count):
    bag = edited(record(tmp_path / "bag", {"/c": images(*STAMPS)}, storage), set_count(count))
    refused(bag, "not a readable bag", "number of messages on /c", "ros2 bag reindex")


def test_an_absurd_count_is_no_length(tmp_path, storage):
    bag = edited(record(tmp_path / "bag", {"/c": images(S)}, storage), set_count(2**63 - 1))
    assert 1 < len(BagFrames(bag, "/c")) < 10**9
    refused(bag, "holds 1 of 9223372036854775807 messages")


@pytest.mark.parametrize("identifier", ["", None, "rosbag_v9"])
def test_the_storage_is_known_by_its_file(tmp_path, storage, identifier):
    bag = record(tmp_path / "bag", {"/c": images(*STAMPS)}, storage)
    edited(bag, lambda info: info.update(storage_identifier=identifier))
    assert len(list(BagFrames(bag, "/c"))) == 6


@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_a_recording_that_was_killed(tmp_path, share):
    bag = record(tmp_path / "bag", {"/c": images(*STAMPS)}, "mcap")
    file = storage_file(bag)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    for path in (bag, file):
        refused(path, "recording was killed", "`mcap recover bag.mcap -o whole.mcap`")


def test_messages_that_are_damaged_are_left_out(tmp_path, storage):
    whole = STORE.serialize_cdr(image(S), IMAGE)
    bad = [b"", b"\x00", whole[:50], b"\xff" * 100, bytes(whole[:8]) + b"\xff" * 2000]
    messages = [(S * (i + 1), raw) for i, raw in enumerate([*map(bytes, bad), bytes(whole)])]
    frames = BagFrames(record(tmp_path / "bag", {"/c": (IMAGE, messages)}, storage), "/c")
    assert len(list(frames)) == 1 and frames.lost == len(frames.skipped) == 5
    assert all("message at" in line and "\n" not in line for line in frames.skipped)


def test_definitions_come_from_here(tmp_path):
    """A bag that says that an image has no stamp, or a header of another kind."""
    bag = record(tmp_path / "bag", {"/c": images(S)}, "sqlite3")
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("UPDATE message_definitions SET encoded_message_definition = 'int8 x\n'")
    assert [f.stamp_ns for f in BagFrames(bag, "/c")] == [S]


def test_another_definition_is_said(tmp_path):
    bag = record(tmp_path / "bag", {"/c": images(S)}, "sqlite3")

    def change(info):
        info["topics_with_message_count"][0]["topic_metadata"]["type_description_hash"] = (
            "RIHS01_" + "0" * 64
        )

    refused(edited(bag, change), "another definition of sensor_msgs/msg/Image")


# Stamps


def test_without_stamps_the_time_of_receipt_counts(tmp_path, storage):
    messages = [(s, image(0)) for s in STAMPS]
    frames = BagFrames(record(tmp_path / "bag", {"/c": (IMAGE, messages)}, storage), "/c")
    assert [f.stamp_ns for f in frames] == STAMPS
    (note,) = frames.notes
    assert "6 images have no stamp, so the time of their receipt is used" in note


def test_one_stamp_for_all_is_said(tmp_path, storage):
    messages = [(s, image(5 * S)) for s in STAMPS]
    frames = BagFrames(record(tmp_path / "bag", {"/c": (IMAGE, messages)}, storage), "/c")
    assert [f.stamp_ns for f in frames] == [5 * S] * 6
    assert "all 6 images have the stamp 5.000 s" in frames.notes[0]
    single = BagFrames(record(tmp_path / "one", {"/c": images(S)}, storage), "/c")
    assert len(list(single)) == 1 and single.notes == []


def test_poses_of_another_clock_are_said(tmp_path):
    poses = [(s, pose_message(ODOMETRY, s + 1000 * S, (1, 0, 0))) for s in STAMPS]
    topics = {"/c": images(*STAMPS), "/o": (ODOMETRY, poses)}
    frames = BagFrames(record(tmp_path / "bag", topics), "/c", "/o")
    assert all(f.pose is None for f in frames)
    assert (
        "6 of 6 images have no pose within 0.2 s: the nearest on /o is 995.000 s away"
        in (frames.notes[0])
    )
    topics["/o"] = (ODOMETRY, [])
    frames = BagFrames(record(tmp_path / "none", topics), "/c", "/o")
    assert len(list(frames)) == 6 and "there is none on /o" in frames.notes[0]


# Files


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside.{suffix}", "sub/../../outside.{suffix}", "..", "/", ".", ""]
)
def test_no_file_outside_of_the_folder_is_read(tmp_path, storage, name):
    bag = record(tmp_path / "bag", {"/c": images(S)}, storage)
    suffix = storage_file(bag).suffix[1:]
    outside = tmp_path / f"outside.{suffix}"
    storage_file(bag).rename(outside)
    name = name.format(outside=outside, suffix=suffix)
    refused(
        edited(bag, lambda info: info.update(relative_file_paths=[name])),
        "not a readable bag",
    )


def test_links_out_of_the_folder_are_refused(tmp_path, storage):
    bag = record(tmp_path / "bag", {"/c": images(S)}, storage)
    file = storage_file(bag)
    outside = tmp_path / f"outside{file.suffix}"
    file.rename(outside)
    file.symlink_to(outside)
    refused(bag, "is a link to a file outside", "copy the file there")
    assert len(list(BagFrames(file, "/c"))) == 1  # which the user names
    file.unlink()
    outside.rename(bag / f"inside{file.suffix}")
    file.symlink_to(f"inside{file.suffix}")
    assert len(list(BagFrames(bag, "/c"))) == 1


def test_what_is_no_regular_file_is_refused(tmp_path, storage):
    bag = record(tmp_path / "bag", {"/c": images(S)}, storage)
    file = storage_file(bag)
    file.unlink()
    os.mkfifo(file)
    for path in (bag, file):
        refused(path, "is a FIFO", "give the path of a file")
    file.unlink()
    file.mkdir()
    refused(bag, "is a folder")
    metadata = bag / "metadata.yaml"
    metadata.unlink()
    os.mkfifo(metadata)
    refused(bag, "metadata.yaml: is a FIFO")
    metadata.unlink()
    metadata.symlink_to("/dev/zero")
    refused(bag, "metadata.yaml: is a device")
    metadata.unlink()
    with metadata.open("wb") as f:
        f.truncate(10**10)
    refused(bag, "metadata.yaml: has 10,000.0 MB")


YAMLS = {
    "a python object": "!!python/object/apply:os.system [exit]",
    "nested": "[" * 20_000,
    "a long number": "9" * 100_000,
    "a date": "2020-13-77",
    "merge keys": "a: &a {x: 1}\n"
    + "".join(f"{c}: &{c} {{<<: [{', '.join('*' + p for _ in range(9))}]}}\n"
              for p, c in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)),
    "aliases": "a: &a [1]\n"
    + "".join(f"{c}: &{c} [{', '.join('*' + p for _ in range(9))}]\n"
              for p, c in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True))
    + "rosbag2_bagfile_information: *p\n",
    "itself": "rosbag2_bagfile_information: &a {version: *a}",
    "NUL": "a\0b",
    "a list": "rosbag2_bagfile_information: []",
}  # fmt: skip


@pytest.mark.parametrize("name", YAMLS)
def test_metadata_of_any_shape(tmp_path, name):
    bag = record(tmp_path / "bag", {"/c": images(S)})
    (bag / "metadata.yaml").write_text(YAMLS[name])
    refused(bag, "not a readable bag", "ros2 bag reindex")


def test_any_change_of_metadata_is_one_error(tmp_path):
    bag = record(tmp_path / "bag", {"/c": images(S, 2 * S)})
    whole = (bag / "metadata.yaml").read_bytes()
    rng = np.random.default_rng(0)
    for i in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 1 + i % 4):
            changed[at] = rng.choice(np.frombuffer(b" -:0[{&*!\n\xff", np.uint8))
        (bag / "metadata.yaml").write_bytes(bytes(changed))
        try:
            assert len(list(BagFrames(bag, "/c"))) == 2
            image_topics(bag)
        except DatasetError as e:
            assert "\n" not in str(e)


def test_metadata_that_would_take_minutes_to_parse(tmp_path, monkeypatch):
    bag = record(tmp_path / "bag", {"/c": images(S)})
    looked_at = []
    inside = bag_reader._inside
    monkeypatch.setattr(bag_reader, "_inside", lambda *a: looked_at.append(a) or inside(*a))
    edited(bag, lambda info: info.update(relative_file_paths=100 * info["relative_file_paths"]))
    assert len(list(BagFrames(bag, "/c"))) == 1
    assert len(looked_at) == 2  # once for each time that the bag is opened
    with (bag / "metadata.yaml").open("a") as metadata:
        metadata.write(f"x: [{2_000_000 * 'a,'}]")
    refused(bag, "more than the 4.0 MB")


def test_a_path_that_sqlite_would_take_apart(tmp_path):
    bag = record(tmp_path / "bag", {"/c": images(S)})
    outside = tmp_path / "secret.db3"
    storage_file(bag).rename(outside)
    name = "..%2fsecret.db3"
    (bag / name).write_bytes(b"")
    edited(bag, lambda info: info.update(relative_file_paths=[name]))
    refused(bag, "one of ?, # and %")


ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "


@pytest.mark.parametrize("table, create", [
    ("messages", "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp "
     "INTEGER, data BLOB AS (zeroblob(900000000)))"),
    ("messages", f"CREATE VIEW messages AS {ENDLESS} SELECT x AS id, 1 AS topic_id, x AS "
     "timestamp, x'' AS data FROM r"),
    ("messages", "CREATE VIRTUAL TABLE messages USING fts5(topic_id, timestamp, data)"),
    ("schema", f"CREATE VIEW schema AS {ENDLESS} SELECT sum(x) AS schema_version FROM r"),
    ("message_definitions", "CREATE TABLE message_definitions(id, topic_type, encoding, "
     "encoded_message_definition AS (hex(zeroblob(400000000))), type_description_hash)"),
    ("message_definitions", f"CREATE VIEW message_definitions AS {ENDLESS} SELECT x AS id, '' AS "
     "topic_type, '' AS encoding, '' AS encoded_message_definition, '' AS type_description_hash "
     "FROM r"),
])  # fmt: skip
def test_tables_that_are_computed(tmp_path, table, create):
    bag = record(tmp_path / "bag", {"/c": images(S)})
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute(f"DROP TABLE {table}")
        database.execute(create)
    refused(bag, f"{table}' is computed")


@pytest.mark.parametrize("tree", ["messages", "timestamp_idx"])
def test_a_tree_that_leads_back_into_itself(tmp_path, tree):
    """Its pages lie on twelve levels, of which each leads to the next one some fifty times."""
    bag = record(tmp_path / "bag", {"/c": images(S)})
    file = storage_file(bag)
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute("VACUUM")
        database.execute(
            "INSERT INTO messages(topic_id, timestamp, data) WITH RECURSIVE r(x) AS (SELECT 2 "
            "UNION ALL SELECT x + 1 FROM r WHERE x < 40000) SELECT 1, x, zeroblob(8) FROM r"
        )
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (tree,)
        ).fetchone()
    content = bytearray(file.read_bytes())
    kind = 5 if tree == "messages" else 2
    pages = range(len(content) // 1024, len(content) // 512)  # of the rows that came last
    inner = [root, *(p for p in pages if content[512 * (p - 1)] == kind)][:12]
    assert len(inner) == 12
    for page, child in itertools.pairwise(inner):
        start = 512 * (page - 1)
        (cells,) = struct.unpack_from(">H", content, start + 3)
        struct.pack_into(">I", content, start + 8, child)
        for i in range(cells):
            (at,) = struct.unpack_from(">H", content, start + 12 + 2 * i)
            struct.pack_into(">I", content, start + at, child)
    file.write_bytes(content)
    refused(bag, "has no end")


@pytest.mark.parametrize("value", ["x'0102'", "5", "1.5"])
@pytest.mark.parametrize("column", ["name", "type", "serialization_format",
                                    "type_description_hash", "offered_qos_profiles"])  # fmt: skip
def test_topics_of_any_kind_of_text(tmp_path, column, value):
    bag = record(tmp_path / "bag", {"/c": images(S)})
    file = storage_file(bag)
    with sqlite3.connect(file) as database:  # a column of no type keeps what it is given
        database.execute("CREATE TABLE other AS SELECT * FROM topics")
        database.execute("DROP TABLE topics")
        columns = "id, name, type, serialization_format, offered_qos_profiles, "
        columns += "type_description_hash"
        database.execute(f"CREATE TABLE topics({columns})")
        database.execute(f"INSERT INTO topics SELECT {columns} FROM other")
        database.execute(f"UPDATE topics SET {column} = {value}")
    for path in (bag, file):
        try:
            assert len(list(BagFrames(path, "/c"))) == 1
        except DatasetError as e:
            assert "\n" not in str(e)


def test_cells_of_any_kind_are_damaged_messages(tmp_path):
    bag = record(tmp_path / "bag", {"/c": images(*STAMPS)})
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("UPDATE messages SET data = 'text' WHERE id = 1")
        database.execute("UPDATE messages SET data = 12345678 WHERE id = 2")
        database.execute("UPDATE messages SET data = zeroblob(20) WHERE id = 3")
        database.execute("UPDATE messages SET timestamp = 'soon' WHERE id = 4")
        database.execute("UPDATE messages SET timestamp = -5 WHERE id = 5")
    frames = BagFrames(bag, "/c")
    assert len(list(frames)) == 3 and frames.lost == 3


# Compression


def mcap(chunks, op=0x06):
    """An MCAP without an index: chunks of (compression, compressed, claimed size, times)."""

    def text(value):
        return struct.pack("<I", len(value)) + value.encode()

    def part(code, content):
        return struct.pack("<BQ", code, len(content)) + content

    magic = b"\x89MCAP0\r\n"
    out = magic + part(1, text("ros2") + text(""))
    for compression, data, size, (first, last) in chunks:
        head = struct.pack("<QQQI", first, last, size, 0) + text(compression)
        out += part(op, head + struct.pack("<Q", len(data)) + data)
    return out + part(2, struct.pack("<QQI", 0, 0, 0)) + magic


def bomb(kind, size):
    zeros = bytes(1 << 20)
    if kind == "lz4":
        with lz4.frame.LZ4FrameCompressor() as c:
            return c.begin() + b"".join(c.compress(zeros) for _ in range(size >> 20)) + c.flush()
    c = zstd.ZstdCompressor()
    return b"".join(c.compress(zeros) for _ in range(size >> 20)) + c.flush()


@pytest.mark.parametrize("code", [0x03, 0x05, 0x06])
@pytest.mark.parametrize("length", [2**31, 2**40, 2**63, 2**64 - 1])
def test_a_record_as_long_as_memory(tmp_path, code, length):
    """The file itself takes no space: it is sparse."""
    head = mcap([])[:-37]
    path = tmp_path / "file.mcap"
    with path.open("wb") as file:
        file.write(head + struct.pack("<BQ", code, length))
        file.seek(min(length, 2**32), os.SEEK_CUR)
        file.write(mcap([])[-37:])
    refused(path, "a record would take more than")


@pytest.mark.parametrize("claimed", [100, 2**31, 2**63])
@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_a_chunk_that_is_a_bomb(tmp_path, monkeypatch, kind, claimed):
    monkeypatch.setattr(bag_reader, "MOST_OPEN_BYTES", 10_000_000)
    path = tmp_path / "file.mcap"
    path.write_bytes(mcap([(kind, bomb(kind, 64 << 20), claimed, (S, S))]))
    refused(path, "not a readable bag", "would take more than")


def test_a_message_that_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(bag_reader, "MOST_MESSAGE_BYTES", 10_000_000)
    good = zstd.compress(STORE.serialize_cdr(image(2 * S), IMAGE))
    cut = good[: len(good) // 2]
    two = zstd.compress(b"\x00\x01\x00\x00") + zstd.compress(bytes(40))
    messages = [(S, bomb("zstd", 64 << 20)), (2 * S, good), (3 * S, cut), (4 * S, two)]
    bag = record(tmp_path / "bag", {"/c": (IMAGE, messages)})
    edited(bag, lambda i: i.update(compression_mode="MESSAGE", compression_format="zstd"))
    frames = BagFrames(bag, "/c")
    assert [f.stamp_ns for f in frames] == [2 * S] and frames.lost == 3
    assert "would take more than 10 MB" in frames.skipped[0] and "cut off" in frames.skipped[1]


def test_a_file_that_is_a_bomb(tmp_path, monkeypatch):
    bag = record(tmp_path / "bag", {"/c": images(S, 2 * S)})
    file = storage_file(bag)
    packed = file.with_name(file.name + ".zstd")
    packed.write_bytes(zstd.compress(file.read_bytes()))
    file.unlink()
    edited(
        bag,
        lambda i: i.update(
            compression_mode="FILE", compression_format="zstd", relative_file_paths=[packed.name]
        ),
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert len(list(BagFrames(bag, "/c"))) == 2
    monkeypatch.setattr(bag_reader, "_SMALL_FILE_BYTES", 10_000_000)
    packed.write_bytes(bomb("zstd", 64 << 20))
    refused(bag, "cannot be decompressed: it would take more than 10 MB", "TMPDIR")
    packed.write_bytes(b"no zstd")
    refused(bag, "cannot be decompressed")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_a_bomb_takes_no_more_memory_than_an_image(tmp_path):
    """The limits as they are, in a process that may not have more."""
    bag = record(tmp_path / "bag", {"/c": (IMAGE, [(S, bomb("zstd", 1 << 30))])})
    assert storage_file(bag).stat().st_size < 100_000
    edited(bag, lambda i: i.update(compression_mode="MESSAGE", compression_format="zstd"))
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from hashvpr_ros.datasets.bag import BagFrames\n"
        "frames = BagFrames(Path(sys.argv[1]), '/c'); print(len(list(frames)), frames.lost)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bag)], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "0 1"
    assert int(done.stdout.splitlines()[1]) < 900_000  # kB


def test_chunks_of_the_same_time_share_the_memory(tmp_path, monkeypatch):
    """Each is small enough, but all would be in memory together."""
    bag = tmp_path / "bag"
    with Writer(bag, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/c", IMAGE, typestore=STORE)
        rng = np.random.default_rng(0)
        for _ in range(6):
            big = rng.integers(0, 256, (900, 900, 3), np.uint8)
            writer.write(connection, S, STORE.serialize_cdr(image(S, big), IMAGE))
    monkeypatch.setattr(bag_reader, "MOST_OPEN_BYTES", 6_000_000)
    refused(bag, "chunks of the same time would take more than")


def test_an_mcap_of_the_helper_is_one(tmp_path):
    """So that the tests above fail for their chunks alone."""
    inner = b""
    path = tmp_path / "file.mcap"
    path.write_bytes(mcap([("", inner, 0, (S, S)), ("zstd", zstd.compress(b""), 0, (S, S))]))
    assert image_topics(path) == [] and crc32(b"") == 0
