"""`hashvpr map` as a newcomer runs it: real maps, and every wrong turn."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import refused, strict_json, well
from rosbags.rosbag2 import Writer

from hashvpr_ros.cli.map import _new_or
from hashvpr_ros.datasets.bag import typestore
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC
from hashvpr_ros.errors import MapError
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.types import Descriptor, Pose

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


# map build, map info


def test_a_map_from_images(run, images, built, tmp_path):
    well(run("map", "info", built, "--json", tmp_path / "i.json"))
    info = strict_json(tmp_path / "i.json")
    assert (info["keyframes"], info["with_pose"], info["with_thumbnail"]) == (4, 0, 4)
    assert info["cameras"] == ["camera"] and info["model_name"] == "hashvpr_lite"
    assert [(s["name"], s["keyframes"]) for s in info["sessions"]] == [("first", 4)]
    assert (info["feature_dim"], len(info["fingerprint"])) == (640, 64)
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


def test_a_home_folder_that_the_shell_left(run, images, built, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("hashvpr_ros.cli.map.open_engine", None)  # found out before the work
    refused(run("map", "build", "~/m.vprmap", "--images", images), built, "exists", "--append")
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    out = well(run("map", "build", "~/m.vprmap", "--images", images, "--append"))
    assert "4 keyframes from 4 images; 8 in the map" in out
    assert f"{tmp_path}/new: 4 keyframes" in well(run("map", "build", "~/new", "--images", images))


def test_an_error_of_the_images_is_not_taken_for_one_of_the_map(tmp_path):
    with pytest.raises(OSError, match="of an image"), _new_or(tmp_path / "m"):
        raise OSError("of an image")
    with pytest.raises(MapError, match=r"m: exists by now"), _new_or(tmp_path / "m") as path:
        path.touch()
        (tmp_path / "m").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_image_that_cannot_be_read_is_left_out(run, images, tmp_path):
    bad = images / "0000002.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    (images / "9.ppm").write_bytes(b"P6")
    done = run("map", "build", tmp_path / "m.vprmap", "--images", images)
    assert done.code == 3
    assert "3 keyframes from 3 images, 1 images left out; 3 in the map" in done.out
    assert f"left out: {bad}: truncated" in done.err and "1 with .ppm" in done.err
    assert "1 of 4 images are not in this result, so the exit code is 3" in done.err


def test_no_half_map_is_left(run, images, tmp_path):
    for bad in images.iterdir():
        bad.write_bytes(bad.read_bytes()[:500])
    before = sorted(tmp_path.iterdir())
    done = run("map", "build", tmp_path / "m.vprmap", "--images", images)
    refused(done, images, "none can be read, as", "remove the file")
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
    assert done.code == 3 and "2 keyframes from 2 images, 6 images left out" in done.out
    assert done.err.count("left out: image at ") == 5 and "32FC1" in done.err
    assert "6 of 8 images are not in this result, so the exit code is 3" in done.err
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


# map restore


def small_map(path, n):
    """A map of n keyframes of made-up descriptors."""
    with PlaceMap.open(path, "ab" * 32, 4, session=f"s{n}") as place_map:
        for i in range(n):
            descriptor = Descriptor(NOISE[i, :, 0][:64].copy(), np.ones(4, np.float32))
            place_map.add(camera="c", stamp_ns=i, pose=None, descriptor=descriptor)
    return path


def test_a_command_that_replaces_a_map_keeps_a_good_copy_to_restore(run, tmp_path):
    first, out = small_map(tmp_path / "a map", 6), small_map(tmp_path / "out", 3)
    well(run("map", "split", first, out, "--session", "s6", "--overwrite"))
    assert PlaceMap.read_info(f"{out}.good").keyframes == 3
    refused(run("map", "restore", out), "is not damaged", "--force")
    out.write_bytes(out.read_bytes()[:5000])
    done = run("map", "verify", out)
    refused(done, "truncated", f"`hashvpr map restore {out}`", "with 3 keyframes")
    said = well(run("map", "restore", out))
    assert f"{out}: 3 keyframes" in said and f"{out}.damaged-" in said
    assert "OK, 3 keyframes" in well(run("map", "verify", out))
    refused(run("map", "restore", first), "is not damaged; leave it\n")  # which needs no copy
    first.write_bytes(b"")
    refused(run("map", "restore", first), "no backup", "prune --salvage")


def test_what_is_replaced_and_damaged_leaves_the_copy_and_is_said(run, tmp_path):
    first, out = small_map(tmp_path / "a", 6), small_map(tmp_path / "out", 3)
    well(run("map", "split", first, out, "--session", "s6", "--overwrite"))
    out.write_bytes(b"")
    done = run("map", "split", first, out, "--session", "s6", "--overwrite")
    assert "6 of 6 keyframes" in well(done) and "no backup is made: " in done.err
    assert PlaceMap.read_info(f"{out}.good").keyframes == 3


# map verify


def test_a_sound_map(run, built):
    before = built.read_bytes()
    assert "OK, 4 keyframes" in well(run("map", "verify", built))
    assert built.read_bytes() == before


def test_a_damaged_map(run, built):
    whole = built.read_bytes()
    with PlaceMap.open(built, read_only=True) as place_map:
        thumbnail = place_map.thumbnail(2)
    at = whole.find(thumbnail[-60:]) + 30
    built.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    done = run("map", "verify", built)
    refused(done, built, "damaged (1 problem)", "restore it from a copy")
    assert "keyframe 2" in done.out
    built.write_bytes(whole[: len(whole) // 2])
    refused(run("map", "verify", built), built)


def test_damage_that_info_stops_at_is_listed(run, tmp_path):
    for number, table in enumerate(
        ("keyframes SET camera = CAST(camera AS BLOB)", "sessions SET name = x'00'")
    ):
        path = small_map(tmp_path / f"m{number}", 3)
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"UPDATE {table} WHERE id = 1")
            db.commit()
        reason = "checksum" if "keyframes" in table else "table sessions: a row does not match"
        refused(run("map", "info", path, "--json", tmp_path / "x"), path, "damaged", reason)
        done = run("map", "verify", path)
        refused(done, path, "damaged (")
        assert reason in done.out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("map", "merge", "{path}", "{sound}", "{out}"),
        ("map", "prune", "{path}", "{out}"),
        ("map", "split", "{path}", "{out}", "--session", "s6"),
        ("map", "export", "{path}", "{out}.csv", "--format", "csv"),
    ],
)
def test_a_damaged_source_is_used_by_salvage_alone(run, tmp_path, command):
    path, sound = small_map(tmp_path / "m", 6), small_map(tmp_path / "sound", 3)
    out = tmp_path / "out"
    command = [word.format(path=path, sound=sound, out=out) for word in command]
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE keyframes SET stamp_ns = stamp_ns + 1 WHERE id = 2")
        db.commit()
    before = path.read_bytes()
    refused(run(*command), path, "damaged (keyframe 2: its content", "--salvage")
    assert not list(tmp_path.glob("out*"))
    done = run(*command, "--salvage")
    well(done)
    assert f"{path}: damaged; left out: 1 of 6 keyframes" in done.err
    assert path.read_bytes() == before
    if command[1] == "export":
        assert len(Path(f"{out}.csv").read_text().splitlines()) == 6
    else:
        with PlaceMap.open(out, read_only=True, create=False, verify=True) as place_map:
            assert len(place_map) == (8 if command[1] == "merge" else 5)


# map merge, prune, split, export, reembed


def sessions_of(path):
    return [(s.name, s.keyframes) for s in PlaceMap.read_info(path).sessions]


def test_merge(run, images, built, tmp_path):
    other, out, told = tmp_path / "n.vprmap", tmp_path / "out.vprmap", tmp_path / "t.json"
    well(run("map", "build", other, "--images", images, "--session", "second"))
    before = built.read_bytes(), other.read_bytes()
    done = well(run("map", "merge", built, other, out, "--json", told))
    assert re.search(rf"{built}: 4 keyframes\n +ids 1 to 4 as they were\n", done)
    assert re.search(rf"{other}: 4 keyframes\n +ids 1 to 4 moved up by 4\n", done)
    assert f"{out}: 8 keyframes" in done
    assert strict_json(told)["keyframes"] == 8
    assert strict_json(told)["maps"][1] == {
        "path": str(other), "map_id": PlaceMap.read_info(other).map_id, "keyframes": 4,
        "taken_once": 0, "ids": [{"first_id": 1, "last_id": 4, "offset": 4}],
    }  # fmt: skip
    assert sessions_of(out) == [("first", 4), ("second", 4)]
    assert "OK, 8" in well(run("map", "verify", out))
    refused(run("map", "merge", built, other, out), out, "exists")
    well(run("map", "merge", built, other, out, "--overwrite"))
    assert "4 of them in an earlier map" in well(
        run("map", "merge", out, other, tmp_path / "again.vprmap")
    )
    assert (built.read_bytes(), other.read_bytes()) == before


def test_what_was_made_is_told_though_the_json_cannot_be_written(run, tmp_path):
    maps = [small_map(tmp_path / name, n) for name, n in (("a", 3), ("b", 5))]
    out, nowhere = tmp_path / "out", tmp_path / "a" / "x.json"
    for words, told in (
        (["merge", *maps], "ids 1 to 5 moved up by 5"),
        (["prune", maps[0]], "of 3 keyframes"),
        (["split", maps[0], "--from-s", "0"], "3 of 3 keyframes"),
        (["export", maps[0], "--format", "csv"], "3 keyframes"),
    ):
        at = len(maps) + 1 if words[0] == "merge" else 2
        done = run("map", *words[:at], out, *words[at:], "--json", nowhere)
        assert done.code == 2 and f"{nowhere}: cannot be written" in done.err
        assert told in done.out and out.exists()
        out.unlink()


def test_merge_of_what_does_not_fit(run, images, built, tiny_model, tmp_path):
    model, other, out = tiny_model(), tmp_path / "n.vprmap", tmp_path / "out.vprmap"
    well(run("map", "build", other, "--images", images, "--engine", model, "--session", "second"))
    refused(run("map", "merge", built, other, out), built, other, "hashvpr_lite", "reembed")
    refused(run("map", "merge", built, out), "two maps or more")
    refused(run("map", "merge"), "Missing argument")
    refused(run("map", "merge", built, tmp_path / "no", out), tmp_path / "no", "no such map")
    well(run("map", "build", tmp_path / "same", "--images", images, "--session", "first"))
    refused(run("map", "merge", built, tmp_path / "same", out), "'first'", "hashvpr map split")
    assert not out.exists()


def test_prune(run, images, built, tmp_path):
    well(run("map", "build", built, "--images", images, "--append", "--session", "second"))
    before, out, told = built.read_bytes(), tmp_path / "out.vprmap", tmp_path / "t.json"
    done = well(run("map", "prune", built, out, "--within-bits", "0", "--json", told))
    assert (
        f"{out}: 4 of 8 keyframes, " in done and "\n  4 went for an older one of another" in done
    )
    assert sessions_of(out) == [("first", 4)] and "OK, 4" in well(run("map", "verify", out))
    found = strict_json(told)
    assert (found["before"], found["after"], found["near_other_session"]) == (8, 4, 4)
    refused(run("map", "prune", built, out, "--keep", "6"), out, "exists")
    for words, keyframes, told in (
        (["--keep", "6"], 6, ""),
        (["--keep", "2", "--within-bits", "0"], 4, "larger than asked for"),
        (["--max-mb", "1"], 8, ""),
        (["--max-mb", "0.001", "--within-bits", "0"], 4, "raise --within-bits"),
    ):
        done = well(run("map", "prune", built, out, "--overwrite", *words))
        assert f"{keyframes} of 8 keyframes" in done and told in done
        assert PlaceMap.read_info(out).keyframes == keyframes
    refused(run("map", "prune", built, out, "--keep", "6", "--max-mb", "1"), "either --keep")
    for words in (
        ["--keep", "0"],
        ["--max-mb", "0"],
        ["--within-bits", "-1"],
        ["--within-m", "x"],
        ["--within-m", "nan"],
        ["--within-rad", "nan"],
        ["--max-mb", "nan"],
        ["--max-mb", "inf"],
    ):
        refused(run("map", "prune", built, out, *words), words[0])
    assert built.read_bytes() == before


def test_split(run, images, built, tmp_path):
    well(run("map", "build", built, "--images", images, "--append", "--session", "second"))
    out = tmp_path / "out.vprmap"
    done = well(run("map", "split", built, out, "--session", "second"))
    assert "4 of 8 keyframes" in done and "calibrated" not in done
    with PlaceMap.open(built, session="second") as place_map:
        place_map.set_calibration(Calibration(1.0, 0.0, 5, 5))
    done = well(run("map", "split", built, out, "--session", "second", "--overwrite"))
    assert "not calibrated any more: `hashvpr calibrate`" in done
    before = built.read_bytes()
    assert sessions_of(out) == [("second", 4)] and "OK, 4" in well(run("map", "verify", out))
    with PlaceMap.open(built, read_only=True) as place_map:
        second, last = (place_map.keyframes([i])[0].stamp_ns for i in (2, 4))
    bounds = [f"{ns // 10**9}.{ns % 10**9:09d}" for ns in (second, last)]
    done = run("map", "split", built, out, "--from-s", bounds[0], "--to-s", bounds[1],
               "--session", "first", "--overwrite")  # fmt: skip
    assert "2 of 8 keyframes" in well(done) and sessions_of(out) == [("first", 2)]
    refused(run("map", "split", built, out, "--session", "no", "--overwrite"), "'no'", "'second'")
    refused(run("map", "split", built, out), "--session NAME")
    for text in ("soon", "nan", "snan", "1e30", "inf", "1e99999999", "9223372037"):
        refused(run("map", "split", built, out, "--from-s", text), "--from-s", text)
    assert sessions_of(out) == [("first", 2)] and built.read_bytes() == before


def test_export(run, built, bag, tmp_path):
    out, posed = tmp_path / "out", tmp_path / "posed.vprmap"
    assert "4 keyframes" in well(run("map", "export", built, out, "--format", "csv"))
    assert len(out.read_text().splitlines()) == 5
    refused(run("map", "export", built, out, "--format", "npz"), out, "exists")
    well(run("map", "export", built, out, "--format", "npz", "--overwrite"))
    with np.load(out) as found:
        assert found["features"].shape == (4, 640) and np.isnan(found["poses"]).all()
    refused(run("map", "export", built, tmp_path / "no", "--format", "tum"), built, "no poses")
    refused(run("map", "export", built, out, "--format", "pcd"), "--format")
    well(run("map", "build", posed, "--bag", bag, "--image-topic", IMAGE_TOPIC, "--pose-topic",
             ODOMETRY_TOPIC))  # fmt: skip
    well(run("map", "export", posed, tmp_path / "t.txt", "--format", "tum"))
    assert len((tmp_path / "t.txt").read_text().splitlines()) == 3


def test_reembed(run, images, built, tiny_model, tmp_path):
    model, out, told = tiny_model(), tmp_path / "out.vprmap", tmp_path / "t.json"
    with PlaceMap.open(built, session="bare") as place_map:
        lite = place_map.keyframes(place_map.ids())
        for thumbnail in (None, b"no jpeg", None):
            place_map.add(
                camera="c", stamp_ns=5, pose=Pose((1.0, 2.0, 3.0)), thumbnail=thumbnail,
                descriptor=Descriptor(np.zeros(64, np.uint8), np.zeros(640, np.float32)),
            )  # fmt: skip
    before = built.read_bytes()
    done = well(run("map", "reembed", built, out, "--engine", model, "--json", told))
    assert "4 of 7 keyframes by tiny" in done and "less accurate" in done
    assert "left out: 2 without a thumbnail" in done and "1 with a thumbnail that cannot" in done
    assert strict_json(told) == {"keyframes": 4, "without_thumbnail": 2, "unreadable": 1}
    assert "OK, 4" in well(run("map", "verify", out))
    assert built.read_bytes() == before
    with PlaceMap.open(out, read_only=True) as place_map:
        assert place_map.feature_dim == 4 and place_map.keyframes(place_map.ids()) == lite
        np.testing.assert_array_equal(place_map.features([1, 4]), np.full((2, 4), 0.5))
        assert (place_map.codes() == 0x80).all() and place_map.thumbnail(1)
    well(run("map", "build", out, "--images", images, "--append", "--engine", model))
    # Back again: the very code of the lite model is that of the full image, but nearly.
    well(run("map", "reembed", out, tmp_path / "back"))
    with PlaceMap.open(tmp_path / "back") as again, PlaceMap.open(built) as first:
        bits = np.unpackbits(again.codes()[:4] ^ first.codes()[:4], axis=1).sum(axis=1)
        assert (bits < 128).all()
    refused(run("map", "reembed", built, out, "--overwrite"), built, "by this model", "--engine")
    well(run("map", "split", built, tmp_path / "bare", "--session", "bare"))
    refused(
        run("map", "reembed", tmp_path / "bare", tmp_path / "no", "--engine", model),
        tmp_path / "bare", "no keyframe has a thumbnail", "2 have none, 1 are damaged",
    )  # fmt: skip
    assert not (tmp_path / "no").exists()
