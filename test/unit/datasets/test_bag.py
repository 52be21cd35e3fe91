"""Bags written and read by rosbags, in both storages: messages, poses, damage."""

import math
import shutil

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from hashvpr_ros.bag_reader import BagReader
from hashvpr_ros.datasets.bag import BagFrames, Losses, read_own, typestore
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.errors import DatasetError, ImageError
from hashvpr_ros.types import Pose

STORE = typestore()
T = STORE.types
RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STAMPED = "geometry_msgs/msg/PoseStamped"
COVARIANCE = "geometry_msgs/msg/PoseWithCovarianceStamped"
ODOMETRY = "nav_msgs/msg/Odometry"
TEXT = "std_msgs/msg/String"
STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
S = 1_000_000_000


def header(stamp, frame="map"):
    time = T["builtin_interfaces/msg/Time"](sec=stamp // S, nanosec=stamp % S)
    return T["std_msgs/msg/Header"](stamp=time, frame_id=frame)


def image(stamp, rgb=RGB, encoding="rgb8", step=None, data=None):
    rows = np.ascontiguousarray(rgb)
    return T[IMAGE](
        header=header(stamp, "camera"),
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=step or rows[0].nbytes,
        data=np.frombuffer(rows.tobytes(), np.uint8) if data is None else data,
    )


def compressed(stamp, suffix=".png", kind="rgb8; png compressed bgr8", picture=None, cut=None):
    picture = RGB[..., ::-1] if picture is None else picture
    data = cv2.imencode(suffix, picture)[1].reshape(-1)[:cut]
    return T[COMPRESSED](header=header(stamp), format=kind, data=data)


def pose_message(kind, stamp, position, turn=(0.0, 0.0, 0.0, 1.0), frame="map"):
    pose = T["geometry_msgs/msg/Pose"](
        position=T["geometry_msgs/msg/Point"](*map(float, position)),
        orientation=T["geometry_msgs/msg/Quaternion"](*map(float, turn)),
    )
    wide = T["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.zeros(36))
    if kind == STAMPED:
        return T[STAMPED](header=header(stamp, frame), pose=pose)
    if kind == COVARIANCE:
        return T[COVARIANCE](header=header(stamp, frame), pose=wide)
    still = T["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    twist = T["geometry_msgs/msg/Twist"](linear=still, angular=still)
    return T[ODOMETRY](
        header=header(stamp, frame),
        child_frame_id="base",
        pose=wide,
        twist=T["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=np.zeros(36)),
    )


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


def record(path, topics, storage="sqlite3"):
    """A bag of topic -> (type, [(time, message or raw bytes)])."""
    with Writer(path, version=8, storage_plugin=STORAGES[storage]) as writer:
        for topic, (kind, messages) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=STORE)
            for stamp, message in messages:
                raw = message if isinstance(message, bytes) else STORE.serialize_cdr(message, kind)
                writer.write(connection, stamp, raw)
    return path


def images(*stamps):
    return IMAGE, [(s, image(s)) for s in stamps]


# Reading


def test_images_of_every_kind_of_message(tmp_path, storage):
    bag = record(
        tmp_path / "bag",
        {
            "/raw": (IMAGE, [(S, image(S)), (2 * S, image(2 * S, RGB[..., ::-1], "bgr8"))]),
            "/small": (
                COMPRESSED,
                [(S, compressed(S)), (2 * S, compressed(2 * S, ".bmp", "bmp"))],
            ),
        },
        storage,
    )
    for topic in ("/raw", "/small"):
        frames = BagFrames(bag, topic)
        assert len(frames) == 2
        for _ in range(2):
            read = list(frames)
            assert [f.stamp_ns for f in read] == [S, 2 * S]
            assert all(f.pose is None and f.name == topic for f in read)
            for frame in read:
                np.testing.assert_array_equal(frame.rgb, RGB)
        assert frames.skipped == []


def test_a_compressed_bayer_image_has_its_colours_as_on_the_robot(tmp_path):
    mosaic = np.zeros((24, 32), np.uint8)
    mosaic[::2, ::2] = 250  # the red pixels of RGGB
    message = compressed(S, kind="bayer_rggb8; png compressed ", picture=mosaic)
    (frame,) = BagFrames(record(tmp_path / "bag", {"/c": (COMPRESSED, [(S, message)])}), "/c")
    assert frame.rgb[8:16, 8:16, 0].min() > 200 > 50 > frame.rgb[8:16, 8:16, 1:].max()


@pytest.mark.parametrize("kind", [ODOMETRY, STAMPED, COVARIANCE])
def test_poses_of_every_kind_of_message(tmp_path, storage, kind):
    turn = (0.0, 0.0, math.sin(0.3), math.cos(0.3))
    poses = [(s * S, pose_message(kind, s * S, (s, 2.5, -1), turn, "world")) for s in (1, 2, 3)]
    bag = record(tmp_path / "bag", {"/c": images(S, 2 * S, 3 * S), "/p": (kind, poses)}, storage)
    read = [f.pose for f in BagFrames(bag, "/c", "/p")]
    assert read == [Pose((float(s), 2.5, -1.0), turn, "world") for s in (1, 2, 3)]


def test_the_pose_is_interpolated_between_those_within_the_age(tmp_path):
    ms = 1_000_000
    # Recorded in another order than stamped, as poses of a filter are.
    stamps = [S + 400 * ms, S, S + 100 * ms, S + 1000 * ms]
    poses = [(S + i, pose_message(STAMPED, s, (s / S, 0, 0))) for i, s in enumerate(stamps)]
    bag = record(tmp_path / "bag", {"/c": images(S), "/p": (STAMPED, poses)})
    frames = BagFrames(bag, "/c", "/p", max_age_s=0.2)

    def x(at_ms):
        pose = frames.pose_at(S + round(at_ms * ms))
        return None if pose is None else round(pose.position_m[0] - 1, 3)

    assert [x(0), x(40), x(60), x(100), x(240), x(260)] == [0, 0.04, 0.06, 0.1, 0.24, 0.26]
    assert [x(150), x(320)] == [0.1, 0.4]  # of two, one is too far: near no more than one
    assert [x(-200), x(-200.001), x(600), x(600.001), x(799.999), x(800)] == [
        0, None, 0.4, None, None, 1.0,
    ]  # fmt: skip
    assert [x(1200), x(1200.001), x(1e9)] == [1.0, None, None]
    exact = BagFrames(bag, "/c", "/p", max_age_s=0.0)
    assert exact.pose_at(S) is not None and exact.pose_at(S + 1) is None


def test_poses_that_are_none(tmp_path, storage):
    nan = float("nan")
    poses = [
        (1 * S, pose_message(ODOMETRY, 1 * S, (nan, 0, 0))),
        (2 * S, pose_message(ODOMETRY, 2 * S, (2, 0, 0), (0, 0, nan, 1))),
        (3 * S, pose_message(ODOMETRY, 3 * S, (3, 0, 0), (0, 0, 0, 0))),
        (4 * S, pose_message(ODOMETRY, 4 * S, (4, float("inf"), 0))),
        (5 * S, pose_message(ODOMETRY, 5 * S, (5, 0, 0))),
    ]
    stamps = [i * S for i in range(1, 6)]
    bag = record(tmp_path / "bag", {"/c": images(*stamps), "/o": (ODOMETRY, poses)}, storage)
    read = [f.pose for f in BagFrames(bag, "/c", "/o")]
    assert read[:4] == [None] * 4 and read[4].position_m == (5.0, 0.0, 0.0)


def test_images_that_cannot_be_decoded_are_left_out_with_the_reason(tmp_path, storage):
    bad = [
        (2 * S, image(2 * S, data=np.zeros(10, np.uint8))),
        (3 * S, image(3 * S, encoding="32FC1")),
        (4 * S, b"\x00\x01\x00\x00garbage"),
        (5 * S, b""),
    ]
    topics = {"/c": (IMAGE, [(S, image(S)), *bad, (6 * S, image(6 * S))])}
    small = [(S, compressed(S)), (2 * S, compressed(2 * S, cut=100)), (3 * S, compressed(3 * S))]
    topics["/s"] = (COMPRESSED, small)
    bag = record(tmp_path / "bag", topics, storage)
    frames = BagFrames(bag, "/c")
    assert [f.stamp_ns for f in frames] == [S, 6 * S] and len(frames) == 6
    assert [line.split(" s: ")[0].split()[-1] for line in frames.skipped] == [
        "2.000", "3.000", "4.000", "5.000",
    ]  # fmt: skip
    for line, word in zip(
        frames.skipped, ("truncated", "32FC1", "damaged", "damaged"), strict=True
    ):
        assert word in line and "\n" not in line
    list(frames)
    assert len(frames.skipped) == 4  # of the last reading
    frames = BagFrames(bag, "/s")
    assert [f.stamp_ns for f in frames] == [S, 3 * S]
    assert "truncated PNG" in frames.skipped[0]


def test_a_file_of_a_bag_by_itself(tmp_path, storage):
    bag = tmp_path / "drive"
    assert write_bag(bag, [Frame(RGB, S)], storage=storage) == 1
    (file,) = [p for p in bag.iterdir() if p.name != "metadata.yaml"]
    assert file.name == ("drive.db3" if storage == "sqlite3" else "drive.mcap")
    assert [f.stamp_ns for f in BagFrames(file, IMAGE_TOPIC)] == [S]


# What cannot be read


def refused(path, *words, topic="/c", pose_topic=""):
    with pytest.raises(DatasetError) as e:
        list(BagFrames(path, topic, pose_topic))
    text = str(e.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    for word in words:
        assert word in text, text


def test_topics_that_do_not_fit(tmp_path, storage):
    text = T[TEXT](data="text")
    bag = record(
        tmp_path / "bag",
        {
            "/c": images(S),
            "/left": (COMPRESSED, [(S, compressed(S))]),
            "/odom": (ODOMETRY, [(S, pose_message(ODOMETRY, S, (0, 0, 0)))]),
            "/log": (TEXT, [(S, text)]),
        },
        storage,
    )
    told = "topic /no is not in the bag", "/odom (nav_msgs/msg/Odometry)", "give /c or /left"
    refused(bag, *told, topic="/no")
    refused(bag, "topic c is not in the bag", "give /c or /left", topic="c")
    refused(bag, "topic /odom is of type nav_msgs/msg/Odometry, not Image or CompressedImage",
            topic="/odom")  # fmt: skip
    refused(bag, "topic /no is not in the bag", "give /odom", pose_topic="/no")
    refused(bag, "topic /log is of type std_msgs/msg/String, not Odometry or PoseStamped or",
            pose_topic="/log")  # fmt: skip
    without = record(tmp_path / "without", {"/log": (TEXT, [(S, text)])}, storage)
    refused(without, "/log (std_msgs/msg/String)", "none of type Image or CompressedImage")


def test_a_topic_of_two_types(tmp_path):
    with Writer(tmp_path / "bag", version=8) as writer:
        for kind, message in ((IMAGE, image(S)), (COMPRESSED, compressed(S))):
            connection = writer.add_connection("/c", kind, typestore=STORE)
            writer.write(connection, S, STORE.serialize_cdr(message, kind))
    refused(tmp_path / "bag", "topic /c is of type more than one")


def test_a_bag_without_messages(tmp_path, storage):
    refused(record(tmp_path / "nothing", {}, storage), "the bag has no topics")
    frames = BagFrames(record(tmp_path / "quiet", {"/c": (IMAGE, [])}, storage), "/c")
    assert len(frames) == 0 and list(frames) == []


def test_what_is_no_bag(tmp_path):
    refused(tmp_path / "no", "no such bag", "correct the path")
    (tmp_path / "images").mkdir()
    refused(tmp_path / "images", "metadata.yaml", "give the bag's folder", "ros2 bag reindex")
    for name in ("notes.txt", "notes", "metadata.yaml"):
        (tmp_path / name).write_text("text")
        refused(tmp_path / name, "is no bag", ".db3 or .mcap")
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    refused(tmp_path / "old.bag", "ROS 1", "rosbags-convert")
    (tmp_path / "new.bag").mkdir()
    refused(tmp_path / "new.bag", "rename the folder")
    for suffix in (".db3", ".mcap"):
        for content in (b"", b"text", bytes(5000)):
            (tmp_path / f"file{suffix}").write_bytes(content)
            refused(tmp_path / f"file{suffix}", "not a readable bag")
    for content in ("", "text", "{", "rosbag2_bagfile_information: {}", "- a\n- b\n"):
        (tmp_path / "images" / "metadata.yaml").write_text(content)
        refused(tmp_path / "images", "not a readable bag")


def test_a_bag_that_lacks_its_file(tmp_path, storage):
    bag = record(tmp_path / "bag", {"/c": images(S)}, storage)
    next(p for p in bag.iterdir() if p.name != "metadata.yaml").unlink()
    refused(bag, "not a readable bag")


def test_a_truncated_or_damaged_bag_is_one_error(tmp_path, storage):
    stamps = [i * S for i in range(1, 9)]
    bag = record(tmp_path / "bag", {"/c": images(*stamps)}, storage)
    (file,) = [p for p in bag.iterdir() if p.name != "metadata.yaml"]
    whole = file.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.95):
        file.write_bytes(whole[: int(share * len(whole))])
        refused(bag)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 40):
            changed[at] = rng.integers(0, 256)
        file.write_bytes(bytes(changed))
        try:  # pixels have no checksum: what is read may be as damaged as the file
            frames = BagFrames(bag, "/c")
            assert all(f.rgb.ndim == 3 for f in frames)
        except DatasetError as e:
            assert str(bag) in str(e) and "\n" not in str(e)


def test_poses_that_are_damaged_are_no_poses(tmp_path):
    good = pose_message(ODOMETRY, 2 * S, (2, 0, 0))
    poses = [(S, b"\x00\x01\x00\x00"), (2 * S, good)]
    bag = record(tmp_path / "bag", {"/c": images(S, 2 * S), "/o": (ODOMETRY, poses)})
    frames = BagFrames(bag, "/c", "/o")
    assert [f.pose is None for f in frames] == [True, False] and frames.lost == 0
    damaged, without = frames.notes
    assert "1 messages on /o are left out: message at 1.000 s: damaged" in damaged
    assert "1 of 2 images have no pose within 0.2 s: the nearest on /o is 1.000 s away" in without


def test_a_bag_without_answers_has_none(tmp_path, storage):
    bag = record(
        tmp_path / "bag", {"/c": images(S), "/t": (TEXT, [(S, T[TEXT](data="a"))])}, storage
    )
    assert list(read_own(bag, "PlaceHypotheses", Losses())) == []


# Writing


def test_what_is_written_is_read(tmp_path, storage):
    wanted = [
        Frame(RGB, 1_700_000_000_123_456_789, planar_pose(1.5, -2.25, 0.7, "odom")),
        Frame(RGB[::-1], 1_700_000_001_000_000_001, None),
        Frame(RGB[:5, :7], 1_700_000_002_999_999_999, planar_pose(3, 4, -3)),
    ]
    assert write_bag(tmp_path / "deep" / "er" / "bag", iter(wanted), storage=storage) == 3
    read = list(BagFrames(tmp_path / "deep" / "er" / "bag", IMAGE_TOPIC, ODOMETRY_TOPIC))
    for frame, want in zip(read, wanted, strict=True):
        assert (frame.stamp_ns, frame.pose) == (want.stamp_ns, want.pose)
        np.testing.assert_array_equal(frame.rgb, want.rgb)
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["bag"]
    reader = BagReader(tmp_path / "deep" / "er" / "bag")
    assert {name: topic.types for name, topic in reader.topics.items()} == {
        IMAGE_TOPIC: {IMAGE}, ODOMETRY_TOPIC: {ODOMETRY},
    }  # fmt: skip
    reader.close()


@pytest.mark.parametrize(
    "error", [DatasetError("no more"), ImageError("bad"), KeyboardInterrupt()]
)
def test_no_half_bag_is_left(tmp_path, storage, error):
    def frames():
        yield Frame(RGB, S)
        yield Frame(RGB, 2 * S)
        raise error

    with pytest.raises(type(error)):
        write_bag(tmp_path / "bag", frames(), storage=storage)
    assert list(tmp_path.iterdir()) == []
    assert write_bag(tmp_path / "bag", [Frame(RGB, S)], storage=storage) == 1


def test_nothing_is_written_over(tmp_path):
    for path in (tmp_path / "folder", tmp_path / "file"):
        path.mkdir() if path.name == "folder" else path.write_text("mine")
        with pytest.raises(DatasetError, match=r"exists; give another path") as e:
            write_bag(path, [Frame(RGB, S)])
        assert str(path) in str(e.value)
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())
    with pytest.raises(DatasetError, match=r"file/bag: cannot be written: .+; check the folder"):
        write_bag(tmp_path / "file" / "bag", [Frame(RGB, S)])
    with pytest.raises(DatasetError, match=r"unknown storage 'rocksdb'; give sqlite3 or mcap"):
        write_bag(tmp_path / "bag", [Frame(RGB, S)], storage="rocksdb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_bag_can_be_moved(tmp_path, storage):
    write_bag(tmp_path / "bag", [Frame(RGB, S)], storage=storage)
    shutil.move(tmp_path / "bag", tmp_path / "other")
    assert len(list(BagFrames(tmp_path / "other", IMAGE_TOPIC))) == 1


def test_planar_pose():
    pose = planar_pose(1, 2, math.pi / 2)
    assert pose.position_m == (1, 2, 0.0) and pose.frame_id == "odom" and pose.is_valid()
    np.testing.assert_allclose(pose.orientation, (0, 0, math.sqrt(0.5), math.sqrt(0.5)))


def test_depth_in_a_bag_is_left_out_and_dark_images_are_said_once(tmp_path, storage, caplog):
    deep = np.full((6, 8), 900, np.uint16)
    kinds = {"/depth": "16UC1; png compressed ", "/dark": "mono16; png compressed "}
    bag = record(
        tmp_path / "bag",
        {
            topic: (
                COMPRESSED,
                [(i * S, compressed(i * S, kind=kind, picture=deep)) for i in (1, 2)],
            )
            for topic, kind in kinds.items()
        },
        storage,
    )
    depth = BagFrames(bag, "/depth")
    assert list(depth) == [] and len(depth.skipped) == 2
    assert all("depth or raw" in reason for reason in depth.skipped)
    assert len(list(BagFrames(bag, "/dark"))) == 2
    said = [r.getMessage() for r in caplog.records if "nearly black" in r.getMessage()]
    assert len(said) == 1 and "topic /dark" in said[0]
