"""`hashvpr map` as a newcomer runs it: real maps, and every wrong turn."""

import re

import numpy as np
import pytest
from cli_helpers import refused, strict_json, well
from rosbags.rosbag2 import Writer

from hashvpr_ros.datasets.bag import typestore
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC
from hashvpr_ros.map.place_map import PlaceMap

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


# map build, map info


def test_a_map_from_images(run, images, built, tmp_path):
    well(run("map", "info", built, "--json", tmp_path / "i.json"))
    info = strict_json(tmp_path / "i.json")
    assert (info["keyframes"], info["with_pose"], info["with_thumbnail"]) == (4, 0, 4)
    assert info["cameras"] == ["camera"] and info["model_name"] == "hashvpr_lite"
    assert [(s["name"], s["keyframes"]) for s in info["sessions"]] == [("first", 4)]
    assert (info["feature_dim"], len(info["fingerprint"])) == (512, 64)
    assert info["file_bytes"] == built.stat().st_size
    out = well(run("map", "info", built))
    for words in (r"keyframes +4", r"hashvpr_lite " + info["fingerprint"][:12], r"first: 4 key"):
        assert re.search(words, out), out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "i.json", "m.vprmap"]


def test_a_map_from_a_bag_has_poses(run, bag, tmp_path):
    out = well(
        run("map", "build", tmp_path / "m.vprmap", "--bag", bag, "--image-topic", IMAGE_TOPIC,
            "--pose-topic", ODOMETRY_TOPIC, "--camera", "front")
    )  # fmt: skip
    assert "2 keyframes from 4 images" in out  # 0 and 0.6 m
    with PlaceMap.open(tmp_path / "m.vprmap", read_only=True) as place_map:
        found = place_map.keyframes(place_map.ids())
        assert [round(k.pose.position_m[0], 6) for k in found] == [0.0, 0.6]
        assert [k.camera for k in found] == ["front"] * 2
        assert place_map.verify() == []
    out = well(
        run("map", "build", tmp_path / "all.vprmap", "--bag", bag, "--image-topic", IMAGE_TOPIC,
            "--every")
    )  # fmt: skip
    assert "4 keyframes from 4 images" in out


def test_appending_makes_another_session(run, images, built, tmp_path):
    refused(run("map", "build", built, "--images", images), built, "exists", "--append")
    assert PlaceMap.read_info(built).keyframes == 4
    out = well(run("map", "build", built, "--images", images, "--append", "--session", "second"))
    assert "4 keyframes from 4 images; 8 in the map" in out
    assert [s.name for s in PlaceMap.read_info(built).sessions] == ["first", "second"]
    new = tmp_path / "new" / "er" / "n.vprmap"
    assert "4 in the map" in well(run("map", "build", new, "--images", images, "--append"))


def test_no_half_map_is_left(run, images, tmp_path):
    bad = images / "0000002.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    before = sorted(tmp_path.iterdir())
    refused(run("map", "build", tmp_path / "m.vprmap", "--images", images), bad, "remove the file")
    assert sorted(tmp_path.iterdir()) == before


def test_images_of_a_bag_that_cannot_be_read_are_told(run, tmp_path):
    store = typestore()
    kind = "sensor_msgs/msg/Image"
    time = store.types["builtin_interfaces/msg/Time"]
    header = store.types["std_msgs/msg/Header"]
    for name, good in (("some", 2), ("none", 0)):
        with Writer(tmp_path / name, version=8) as writer:
            topic = writer.add_connection("/c", kind, typestore=store)
            for i in range(8):
                message = store.types[kind](
                    header=header(stamp=time(sec=i + 1, nanosec=0), frame_id="camera"),
                    height=48,
                    width=64,
                    encoding="rgb8" if i < good else "32FC1",
                    is_bigendian=0,
                    step=3 * 64,
                    data=NOISE.reshape(-1),
                )
                writer.write(topic, (i + 1) * 10**9, store.serialize_cdr(message, kind))
    words = ["--image-topic", "/c", "--every"]
    done = run("map", "build", tmp_path / "m.vprmap", "--bag", tmp_path / "some", *words)
    assert "2 keyframes from 2 images, 6 images left out; 2 in the map" in well(done)
    assert done.err.count("left out: image at ") == 5 and "32FC1" in done.err
    refused(
        run("map", "build", tmp_path / "n.vprmap", "--bag", tmp_path / "none", *words),
        tmp_path / "none", "/c", "32FC1",
    )  # fmt: skip
    assert not (tmp_path / "n.vprmap").exists()


def test_wrong_sources(run, bag, images, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("int main() {}\n")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "m.vprmap"
    before = sorted(tmp_path.iterdir())
    for words, told in (
        (["--images", tmp_path / "no"], ["no such folder"]),
        (["--images", tmp_path / "empty"], ["holds no images"]),
        (["--images", text], ["is a file, not a folder"]),
        (["--images", images, "--engine", text], [text, ".onnx"]),
        (["--images", images, "--engine", tmp_path / "no.onnx"], ["no such engine file"]),
        (["--bag", tmp_path / "no", "--image-topic", "/c"], ["no such bag"]),
        (["--bag", images, "--image-topic", "/c"], [images, "metadata.yaml"]),
        (["--bag", text, "--image-topic", "/c"], [text, "is no bag"]),
        (["--bag", bag, "--image-topic", "/no"], ["/no", IMAGE_TOPIC, ODOMETRY_TOPIC]),
        (["--bag", bag, "--image-topic", ODOMETRY_TOPIC], ["nav_msgs/msg/Odometry"]),
        (["--bag", bag, "--image-topic", IMAGE_TOPIC, "--pose-topic", "/no"], ["/no"]),
        (["--bag", bag, "--image-topic", IMAGE_TOPIC, "--pose-topic", IMAGE_TOPIC], ["Odometry"]),
    ):
        refused(run("map", "build", out, *words), *told)
    assert sorted(tmp_path.iterdir()) == before
    refused(run("map", "build", text / "m.vprmap", "--images", images), text, "m.vprmap")
    refused(run("map", "build", images, "--images", images), images, "exists")
    refused(run("map", "build", images, "--images", images, "--append"), images, "is not a file")
    refused(run("map", "build", text, "--images", images, "--append"), text, "not a map")
    assert text.read_text() == "int main() {}\n"


def test_a_map_of_another_model(run, built, images, tiny_model):
    model = tiny_model()
    for words in (
        ["map", "build", built, "--images", images, "--append", "--engine", model],
        ["query", built, images / "0000000.jpg", "--engine", model],
    ):
        refused(run(*words), built, "model")
    assert PlaceMap.read_info(built).keyframes == 4


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_map(run, command, tmp_path):
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").write_bytes(b"")
    for name, told in (("no", "no such map"), ("text", "not a map"), ("empty", "empty")):
        refused(run("map", command, tmp_path / name), tmp_path / name, told)
    refused(run("map", command, tmp_path), tmp_path, "is not a file")


# map verify


def test_a_sound_map(run, built):
    before = built.read_bytes()
    assert "sound, 4 keyframes" in well(run("map", "verify", built))
    assert built.read_bytes() == before


def test_a_damaged_map(run, built):
    whole = built.read_bytes()
    with PlaceMap.open(built, read_only=True) as place_map:
        thumbnail = place_map.thumbnail(2)
    at = whole.find(thumbnail[-60:]) + 30
    built.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    done = run("map", "verify", built)
    refused(done, built, "damaged (1 problem", "restore it from a copy")
    assert "keyframe 2" in done.out
    built.write_bytes(whole[: len(whole) // 2])
    refused(run("map", "verify", built), built)
