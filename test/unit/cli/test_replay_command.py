"""`hashvpr replay`: the same decisions each time, truth and report, and what is refused."""

import hashlib

import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.simulation.course import DAY, Course

EXCLUDE = ("--set", "matching.exclude_recent_s=10.0", "--set", "keyframes.min_distance_m=1.0")


@pytest.fixture(scope="session")
def laps(tmp_path_factory):
    """A bag of two short laps: 2 x 22 images."""
    course = Course(45.0, seed=3, size=(120, 160))
    frames = (
        Frame(shot.rgb, shot.stamp_ns, planar_pose(shot.x_m, shot.y_m, shot.yaw_rad))
        for shot in course.drive([(DAY, 0.0, 0.0), (DAY, 0.2, 0.0)], rate_hz=1.0)
    )
    bag = tmp_path_factory.mktemp("laps") / "bag"
    write_bag(bag, frames)
    return bag


def test_the_same_decisions_each_time_and_the_report(run, laps, tmp_path):
    first = tmp_path / "first"
    arguments = ("replay", laps, "--pose-topic", ODOMETRY_TOPIC, *EXCLUDE)
    out = well(
        run(*arguments, "--out", first, "--truth", ODOMETRY_TOPIC, "--json", tmp_path / "a.json")
    )
    result = strict_json(tmp_path / "a.json")
    lines = (first / "decisions.jsonl").read_bytes()
    assert result["digest"] == hashlib.sha256(lines).hexdigest() and result["digest"] in out
    assert result["images"] == sum(result["reasons"].values()) == 44
    assert 15 < result["revisits"] < 30 and result["recall_at_1"] > 80
    stages = {"preprocess", "engine", "search", "rerank", "temporal", "store"}
    assert set(result["latency_ms"]) == stages
    page = (first / "report.html").read_text()
    assert "<svg" in page and "data:image/jpeg" in page and "http" not in page.split("<svg")[0]
    again = ("--out", tmp_path / "b", "--against", first / "decisions.jsonl")
    assert "no difference" in well(run(*arguments, *again))
    other = well(run(*arguments, *again, "--set", "matching.top_k=3"))
    assert "first difference: image " in other


def test_a_map_is_begun_with_and_left_as_it_is(run, laps, tmp_path):
    made = tmp_path / "made.vprmap"
    well(run("map", "build", made, "--bag", laps, "--image-topic", IMAGE_TOPIC))
    before = made.read_bytes()
    out = tmp_path / "out"
    result = tmp_path / "r.json"
    # A TUM file whose poses are those of the bag's own odometry.
    truth = tmp_path / "truth.txt"
    course = Course(45.0, seed=3, size=(120, 160))
    truth.write_text(
        "# stamp x y z qx qy qz qw\n"
        + "".join(
            f"{shot.stamp_ns / 1e9:.9f} {shot.x_m} {shot.y_m} 0 0 0 {q[2]} {q[3]}\n"
            for shot in course.drive([(DAY, 0.0, 0.0), (DAY, 0.2, 0.0)], rate_hz=1.0)
            for q in [planar_pose(shot.x_m, shot.y_m, shot.yaw_rad).orientation]
        )
    )
    well(
        run("replay", laps, "--map", made, "--set", "mode=localization", "--out", out,
            "--truth", truth, "--json", result)
    )  # fmt: skip
    assert made.read_bytes() == before
    numbers = strict_json(result)
    assert numbers["images"] == 44 == numbers["revisits"]  # the map holds each image
    assert numbers["recall_at_1"] > 95
    assert PlaceMap.read_info(out / "map.vprmap").keyframes > 0
    # A run after it takes the place of this one's map, and of no other.
    copied, decided = (out / "map.vprmap").read_bytes(), (out / "decisions.jsonl").read_bytes()
    refused(run("replay", laps, "--map", tmp_path / "none.vprmap", "--out", out), "none.vprmap")
    refused(run("replay", laps, "--map", out / "map.vprmap", "--out", out), "--out")
    assert (out / "map.vprmap").read_bytes() == copied
    assert (out / "decisions.jsonl").read_bytes() == decided
    well(run("replay", laps, "--map", made, "--set", "mode=localization", "--out", out))


def truth_of(laps, path, *, shift_s=0.0, until=44):
    """A TUM file of the poses of the first images."""
    course = Course(45.0, seed=3, size=(120, 160))
    shots = list(course.drive([(DAY, 0.0, 0.0), (DAY, 0.2, 0.0)], rate_hz=1.0))[:until]
    path.write_text(
        "".join(
            f"{s.stamp_ns / 1e9 + shift_s:.9f} {s.x_m} {s.y_m} 0 0 0 {q[2]} {q[3]}\n"
            for s in shots
            for q in [planar_pose(s.x_m, s.y_m, s.yaw_rad).orientation]
        )
    )
    return path


def test_what_no_ground_truth_judges_is_unknown(run, laps, tmp_path):
    arguments = ("replay", laps, "--pose-topic", ODOMETRY_TOPIC, *EXCLUDE)
    arguments += ("--set", "matching.target_precision=0.5")
    found = {}
    for until in (44, 30):
        truth = truth_of(laps, tmp_path / "truth.txt", until=until)
        path = tmp_path / f"{until}.json"
        done = run(*arguments, "--truth", truth, "--out", tmp_path / "out", "--json", path)
        found[until] = strict_json(path) if done.code == 0 else done.err
        assert "right, wrong, without ground truth" in done.out
    whole, part = found[44], found[30]
    assert whole["digest"] == part["digest"] and whole["closures_accepted"] > 3
    assert whole["closures_unknown"] == whole["images_without_ground_truth"] == 0
    assert part["images_without_ground_truth"] == 14 and part["closures_unknown"] > 3
    assert part["closures_wrong"] <= whole["closures_wrong"]
    assert (
        part["closures_accepted"]
        == whole["closures_accepted"]
        == sum(part[f"closures_{k}"] for k in ("right", "wrong", "unknown"))
    )
    assert part["revisits"] < whole["revisits"]


@pytest.mark.parametrize("shift_s", [86400.0, 0.5])
def test_a_ground_truth_of_another_clock_is_said(run, laps, tmp_path, shift_s):
    truth = truth_of(laps, tmp_path / "truth.txt", shift_s=shift_s)
    out = tmp_path / "out"
    done = run("replay", laps, "--truth", truth, "--out", out)
    refused(done, truth, "nothing can be judged", "none of the 44 images", "of the same clock",
            f"{shift_s - 43 if shift_s > 43 else shift_s:,.3f} s apart")  # fmt: skip
    assert (out / "decisions.jsonl").read_text().count("\n") == 44 and "digest of" in done.out


def test_a_parameter_file_is_the_nodes_own(run, laps, tmp_path):
    params = tmp_path / "robot.yaml"
    params.write_text(
        "/robot/vpr_node:\n  ros__parameters:\n    mode: mapping\n    use_sim_time: true\n"
        "    matching:\n      top_k: 7\n    qos_overrides:\n      /image:\n        depth: 1\n"
        "other_node:\n  ros__parameters:\n    mode: nonsense\n"
    )
    result = tmp_path / "r.json"
    well(run("replay", laps, "--params", params, "--out", tmp_path / "out", "--json", result))
    assert strict_json(result)["reasons"] == {"mapping_only": 44}


def test_what_is_refused(run, laps, tmp_path):
    out = ("--out", tmp_path / "out")
    refused(run("replay", tmp_path / "none", *out), "no such bag")
    refused(run("replay", laps, *out, "--image-topic", "/other"), "/other", IMAGE_TOPIC)
    refused(run("replay", laps, *out, "--pose-topic", "/other"), "/other", ODOMETRY_TOPIC)
    for truth in ("/other", "~nobody_of_this_name/x.tum", "/"):
        refused(run("replay", laps, *out, "--truth", truth), truth, ODOMETRY_TOPIC)
    refused(run("replay", laps, *out, "--set", "matching.top_k=0"), "top_k", "at least 1")
    for name, meant in (("matching.topk", "matching.top_k"), ("mod", "mode")):
        done = run("replay", laps, *out, "--set", f"{name}=1")
        refused(done, f"unknown setting {name!r}; did you mean {meant}?")
    refused(run("replay", laps, *out, "--set", "pose.source=tf"), "--pose-topic")
    refused(run("replay", laps, *out, "--map", tmp_path / "none.vprmap"), "none.vprmap")
    refused(run("replay", laps, *out, "--against", laps / "metadata.yaml"), "no file of decisions")
    for text, words in (
        ("a: [", ("cannot be read as YAML",)),
        ("[]", ("has no parameters of vpr_node", "hashvpr config")),
        ("/**:\n  ros__parameters: 3\n", ("has no parameters of vpr_node",)),
        ("/**:\n  ros__parameters:\n    mode: fast\n", ("mode must be one of",)),
    ):
        params = tmp_path / "params.yaml"
        params.write_text(text)
        refused(run("replay", laps, *out, "--params", params), *words)
    assert not (tmp_path / "out" / "map.vprmap").exists()
