"""`hashvpr demo`: a real node recognises a course that is driven twice."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import (
    FiniteRange,
    end_with_losses,
    progress_bar,
    say_losses,
    ticker,
)
from hashvpr_ros.cli.node_run import check_ros, run_node
from hashvpr_ros.cli.outputs import PATH, check_folder
from hashvpr_ros.cli.run_report import make_run, show_run

_LENGTH_M, _SEED, _EXCLUDE_RECENT_S = 120.0, 0, 20.0
_PLAY_HZ = 10.0  # images a second, as most robots give


@click.command(name="demo")
@click.option(
    "--data",
    type=PATH,
    default=None,
    help="Folder in the layout of VPR-Bench: ref/ makes the map, query/ is played live. "
    "Default: a rendered course.",
)
@click.option(
    "--out",
    type=PATH,
    default=Path("demo_output"),
    show_default=True,
    help="Folder for bag, map, answers and report.",
)
@click.option(
    "--hz",
    type=FiniteRange(0.5, 60.0),
    default=_PLAY_HZ,
    show_default=True,
    help="Playback rate, images per second.",
)
def command(data: Path | None, out: Path, hz: float) -> None:
    """Play a bag to a real node over DDS, and write a report.

    Needs ROS 2 and the built messages; `make demo` provides both. Images that cannot be read, or
    that the node does not answer, are lost: the exit code is then 3.
    """
    check_ros()
    replaced = (
        ["course.vprmap", *(path.name for path in out.glob("course-*"))]
        if data is None
        else [f"{data.resolve().name}.vprmap", "query_bag"]
    )
    check_folder(out, (out / "run").is_dir(), replaced)
    (out / "run").mkdir(parents=True, exist_ok=True)  # what is there from here on is of a demo
    run, lost = (_course(out, hz), 0) if data is None else _dataset(data, out, hz)
    summary = show_run(run, out)
    lost += summary["images_lost"]
    end_with_losses(lost, lost + summary["images_answered"])


def _parameters(**changes: Any) -> dict[str, Any]:
    return {"input.image_topics": ["/camera/image"], **changes}


def _course(out: Path, hz: float) -> Any:
    """Two laps of the rendered course: the first is mapped, the second recognised, in one go."""
    from hashvpr_ros.datasets.bag import BagFrames
    from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC
    from hashvpr_ros.evaluation.ground_truth import TruthByPose
    from hashvpr_ros.evaluation.run_result import judge, read_answers

    bag = _rendered_bag(out)
    map_path = _fresh_map(out / "course.vprmap")
    own_hz = 5.0
    run = run_node(
        _parameters(
            **{
                "mode": "slam",
                "map.path": str(map_path),
                "map.session": "demo",
                "pose.source": "odometry",
                "pose.odometry_topic": ODOMETRY_TOPIC,
                "matching.exclude_recent_s": _EXCLUDE_RECENT_S,
            }
        ),
        bag,
        out / "run",
        rate=hz / own_hz,
    )
    frames = BagFrames(bag, IMAGE_TOPIC, ODOMETRY_TOPIC)
    stamps = sorted(run.published_ns)
    truth = TruthByPose(frames.pose_at, stamps, _EXCLUDE_RECENT_S)
    images = {frame.stamp_ns: frame.rgb for frame in frames}
    return make_run(
        f"Two laps of a rendered course of {_LENGTH_M:.0f} m",
        judge(read_answers(run.answers), truth),
        map_path,
        played=len(stamps),
        images=lambda wanted: {s: images[s] for s in wanted},
        positions={s: _xy(frames.pose_at(s)) for s in stamps},
        settings={
            "mode": "slam",
            "course_m": _LENGTH_M,
            "seed": _SEED,
            "hz": hz,
            "exclude_recent_s": _EXCLUDE_RECENT_S,
        },
        live=run,
    )


def _rendered_bag(out: Path) -> Path:
    """The bag of the course; rendered once for the same parameters and code."""
    from hashvpr_ros.datasets.bag_writer import planar_pose, write_bag
    from hashvpr_ros.datasets.base import Frame
    from hashvpr_ros.simulation import course, textures

    sources = [Path(str(m.__file__)).read_bytes() for m in (course, textures)]
    mark = hashlib.sha256(repr((_LENGTH_M, _SEED, sources)).encode()).hexdigest()[:12]
    bag = out / f"course-{mark}"
    if bag.exists():
        return bag
    for old in out.glob("course-*"):
        _remove_bag(old)
    street = course.Course(_LENGTH_M, _SEED)
    laps = [(course.DAY, 0.0, 0.0), (course.EVENING, 0.5, 0.05)]

    def frames(bar: Any) -> Iterator[Frame]:
        for shot in street.drive(laps):
            pose = planar_pose(shot.x_m, shot.y_m, shot.yaw_rad)
            yield Frame(shot.rgb, shot.stamp_ns, pose)
            bar.update(1)

    with progress_bar(street.count(len(laps)), "rendering the course") as bar:
        write_bag(bag, frames(bar))
    return bag


def _dataset(data: Path, out: Path, hz: float) -> tuple[Any, int]:
    """The reference traverse of a dataset as map, its query traverse live.

    Returns:
        the run, and how many references could not be read.
    """
    from hashvpr_ros.cli.common import open_engine
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.datasets.bag import BagFrames
    from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, write_bag
    from hashvpr_ros.datasets.folder import FolderFrames
    from hashvpr_ros.datasets.vpr_bench import VprBench
    from hashvpr_ros.evaluation.closures import stamp_of
    from hashvpr_ros.evaluation.evaluate import SMALL_MAP, SMALL_TOP_K
    from hashvpr_ros.evaluation.ground_truth import TruthByStamp
    from hashvpr_ros.evaluation.run_result import judge, read_answers
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.mapping.builder import build_map
    from hashvpr_ros.matching.recognizer import Recognizer
    from hashvpr_ros.types import Mode

    dataset = VprBench(data)
    references = FolderFrames(data / "ref")
    map_path = _fresh_map(out / f"{data.resolve().name}.vprmap")
    engine = open_engine(None)
    config = from_flat({"keyframes.min_period_s": 0.0, "keyframes.min_novelty_bits": 0})
    with (
        PlaceMap.open(
            map_path,
            engine.info.fingerprint,
            engine.info.feature_dim,
            model_name=engine.info.name,
            session="reference",
        ) as place_map,
        progress_bar(len(references), "mapping") as bar,
    ):
        build_map(
            Recognizer(engine, place_map, config, mode=Mode.MAPPING),
            references,
            progress=ticker(bar),
        )
    say_losses(references)
    engine.close()
    bag = out / "query_bag"
    _remove_bag(bag)
    queries = FolderFrames(data / "query")
    write_bag(bag, queries)
    say_losses(queries)
    top_k = SMALL_TOP_K if len(references) < SMALL_MAP else 100
    run = run_node(
        _parameters(
            **{"mode": "localization", "map.path": str(map_path), "matching.top_k": top_k}
        ),
        bag,
        out / "run",
        rate=hz * queries.period_s,
    )
    images = {frame.stamp_ns: frame.rgb for frame in BagFrames(bag, IMAGE_TOPIC)}
    # Both folders give the image of an index the stamp of that index, left out or not.
    positives = {stamp_of(i): right for i, right in enumerate(dataset.positives())}
    truth = TruthByStamp(
        {stamp: {stamp_of(j) for j in right} for stamp, right in positives.items()},
        {stamp for stamp, right in positives.items() if right},
    )
    made = make_run(
        f"{data.resolve().name}: {len(queries)} live images against a map of {len(references)}",
        judge(read_answers(run.answers), truth),
        map_path,
        played=len(queries),
        images=lambda wanted: {s: images[s] for s in wanted},
        positions={},
        settings={"mode": "localization", "top_k": top_k, "hz": hz, "data": data.resolve().name},
        live=run,
    )
    return made, references.lost


def _remove_bag(folder: Path) -> None:
    """Delete a bag of an earlier run, and nothing that is no bag."""
    if (folder / "metadata.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)


def _fresh_map(path: Path) -> Path:
    from hashvpr_ros.map import files

    files.remove(path)
    return path


def _xy(pose: Any) -> tuple[float, float]:
    x, y, _ = pose.position_m
    return x, y
