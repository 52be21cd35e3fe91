"""`hashvpr evaluate BAG --map-bag BAG`: two drives of a rendered course, and what is refused."""

import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC, planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.simulation.course import DAY, EVENING, Course


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    """A lap by day and one by evening, an image each half metre, and their TUM trajectories."""
    folder = tmp_path_factory.mktemp("drives")
    course = Course(45.0, seed=3, size=(120, 160))
    for name, light, lateral_m in (("day", DAY, 0.0), ("evening", EVENING, 0.3)):
        shots = list(course.drive([(light, lateral_m, 0.0)], speed_mps=1.0, rate_hz=2.0))
        poses = [planar_pose(s.x_m, s.y_m, s.yaw_rad) for s in shots]
        write_bag(
            folder / name,
            (Frame(s.rgb, s.stamp_ns, p) for s, p in zip(shots, poses, strict=True)),
        )
        (folder / f"{name}.txt").write_text(
            "".join(
                f"{s.stamp_ns / 1e9:.9f} {s.x_m} {s.y_m} 0 0 0 {p.orientation[2]:.6f} "
                f"{p.orientation[3]:.6f}\n"
                for s, p in zip(shots, poses, strict=True)
            )
        )
    return folder


def test_every_way_on_two_bags_with_a_report(run, drives, tmp_path):
    path, report = tmp_path / "ways.json", tmp_path / "ways.html"
    out = well(
        run(
            *("evaluate", drives / "evening", "--map-bag", drives / "day"),
            *(
                "--truth",
                ODOMETRY_TOPIC,
                "--spacing",
                0.9,
                "--ablate",
                "--report",
                report,
                "--json",
                path,
            ),
        )
    )
    result = strict_json(path)
    # An image a metre of 45, of the two that there are.
    assert 40 <= result["queries"] <= 46 and 40 <= result["references"] <= 46
    assert f"{result['queries']} queries, {result['references']} references" in out
    ways = result["ways"]
    assert {"hash", "float", "rerank_100", "sequence", "filter", "both"} <= set(ways)
    # Within 4 m are nine of 45 references: chance finds a fifth.
    assert ways["both"]["recall"]["1"] > 80 and ways["float"]["recall"]["1"] > 60
    assert "data:image" in report.read_text()


def test_trajectories_as_files_spacing_and_radius(run, drives, tmp_path):
    path = tmp_path / "r.json"
    arguments = (
        *("evaluate", drives / "evening", "--map-bag", drives / "day", "--json", path),
        *("--truth", drives / "evening.txt", "--map-truth", drives / "day.txt"),
        *("--image-topic", IMAGE_TOPIC),
    )
    well(run(*arguments))
    assert strict_json(path)["recall"]["float"]["1"] > 90
    well(run(*arguments, "--spacing", 3, "--radius", 30))
    wide = strict_json(path)
    assert 14 <= wide["queries"] <= 16 and wide["recall"]["float"]["1"] > 90
    # 0.3 m lie between the drives.
    refused(run(*arguments, "--radius", 0.01), "no query is within 0.01 m", "one origin")


def test_what_is_refused(run, drives, tmp_path):
    evening, day = drives / "evening", drives / "day"
    refused(run("evaluate", evening, "--map-bag", day), "--truth")
    refused(run("evaluate", evening, "--truth", ODOMETRY_TOPIC), "--map-bag")
    refused(
        run("evaluate", evening, "--map-bag", day, "--truth", drives / "evening.txt"),
        "--map-truth",
    )
    refused(run("evaluate", evening, "--map-bag", day, "--truth", "/none"), "/none")
    refused(run("evaluate", tmp_path, "--map-bag", day, "--truth", ODOMETRY_TOPIC), tmp_path)
    told = ("--map-bag", day, "--truth", ODOMETRY_TOPIC)
    refused(run("evaluate", evening, *told, "--image-topic", "/none"), "/none")
    refused(run("evaluate", evening, *told, "--tolerance", 1), "--radius")
    # The trajectory of another day: no image has a pose.
    late = tmp_path / "late.txt"
    late.write_text("99999.0 0 0 0 0 0 0 1\n")
    refused(
        run("evaluate", evening, "--map-bag", day, "--truth", late, "--map-truth", late),
        *(
            "nothing can be judged",
            "the poses are from 99999.000 to 99999.000 s",
            "the same clock",
        ),
    )
