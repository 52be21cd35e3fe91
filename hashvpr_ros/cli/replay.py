"""`hashvpr replay`: the node's decisions on a bag, offline."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    DEFAULT_ANGLE_DEG,
    DEFAULT_RADIUS_M,
    FiniteRange,
    allow_partial_option,
    end_with_losses,
    json_option,
    machine,
    near_options,
    only_image_topic,
    progress_bar,
    refuse_options,
    say_losses,
    table,
    write_json,
)
from hashvpr_ros.cli.outputs import PATH, check_folder, write_json_text
from hashvpr_ros.cli.run_report import make_run, show_run
from hashvpr_ros.cli.settings import change_of, read_parameter_file, set_option
from hashvpr_ros.errors import ConfigError, MapError
from hashvpr_ros.setting import settings

if TYPE_CHECKING:
    from hashvpr_ros.cli.node_run import NodeRun
    from hashvpr_ros.config import Config
    from hashvpr_ros.datasets.bag import BagFrames
    from hashvpr_ros.evaluation.run_result import Answer
    from hashvpr_ros.types import Pose


@click.command(name="replay")
@click.argument("bag", type=PATH)
@click.option(
    "--params",
    type=PATH,
    default=None,
    help="ROS 2 parameter file of the node. Default: the node's defaults.",
)
@set_option("matching.top_k=50")
@click.option(
    "--image-topic",
    "image_topics",
    multiple=True,
    help="Image topic of the bag; may be repeated. Default: the only one of the bag.",
)
@click.option("--pose-topic", default=None, help="Odometry topic for the node.")
@click.option(
    "--map",
    "map_path",
    type=PATH,
    default=None,
    help="Map to start with; it is copied and does not change. Default: an empty map.",
)
@click.option(
    "--out",
    type=PATH,
    default=Path("replay_output"),
    show_default=True,
    help="Folder for the map, decisions and report; with publish.ledger for a bag of ledgers.",
)
@click.option(
    "--truth",
    default=None,
    metavar="FILE|TOPIC",
    help="Ground truth, for the report: a TUM trajectory, or a pose topic of the bag. Places of "
    "MAP outside of it keep their positions from MAP.",
)
@near_options("--truth")
@click.option("--ros", is_flag=True, help="Play the bag to a live node over DDS instead.")
@click.option(
    "--rate",
    type=FiniteRange(0.01, 100.0),
    default=1.0,
    show_default=True,
    help="With --ros: playback rate, as a multiple of the bag's speed.",
)
@click.option(
    "--against",
    type=PATH,
    default=None,
    help="OUT/decisions.jsonl of another run: print the first decision that differs.",
)
@allow_partial_option
@json_option
def command(
    bag: Path,
    params: Path | None,
    changes: tuple[str, ...],
    image_topics: tuple[str, ...],
    pose_topic: str | None,
    map_path: Path | None,
    out: Path,
    truth: str | None,
    radius_m: float | None,
    angle_deg: float | None,
    ros: bool,
    rate: float,
    against: Path | None,
    allow_partial: bool,
    json_path: Path | None,
) -> None:
    """Run the node's code on BAG, without ROS and as fast as possible.

    The same bag and parameters always give the same digest of all decisions. The live node has
    the same digest if it drops no image and its odometry arrives in time (pose.wait_s). Images
    that cannot be read, or that a live node does not answer, are left out: the exit code is then
    3.
    """
    from hashvpr_ros.config import from_flat
    from hashvpr_ros.datasets.bag import Losses
    from hashvpr_ros.datasets.truth import read_truth
    from hashvpr_ros.evaluation.decisions import digest, first_difference, read_lines
    from hashvpr_ros.map.files import resolve

    if truth is None:
        refuse_options("belongs to --truth; give it", "--radius", "--angle")
    if not ros:
        refuse_options("belongs to --ros; give it", "--rate")
    flat = read_parameter_file(params) if params else {}
    flat |= dict(change_of(c) for c in changes)
    flat |= _topics(bag, image_topics, pose_topic, "input.image_topics" in flat)
    config = from_flat(flat | {"map.path": str(out / "map.vprmap")})
    frames, cameras = _open(bag, config, allow_partial)
    other = None if against is None else read_lines(against)
    truth_losses = Losses(allow_partial)
    true_poses = None if truth is None else read_truth(bag, truth, truth_losses)
    for line in (*truth_losses.notes, *truth_losses.skipped):
        click.echo(f"ground truth: {line}", err=True)
    decisions = out / "decisions.jsonl"
    check_folder(out, decisions.is_file(), ("map.vprmap", "ledger", "run"))
    if map_path is not None and resolve(map_path) == resolve(config.map.path):
        raise ConfigError(f"--map {map_path} is where --out puts its map; give another --out")
    _prepare_map(map_path, Path(config.map.path))
    write_json_text(decisions, "")  # what is in the folder from here on is of a replay
    if ros:
        run = _play(bag, flat, config, out, rate, len(frames))
    else:
        run = _replay(frames, cameras, config, out / "ledger")
    write_json_text(decisions, "".join(f"{line}\n" for line in run.lines))
    result: dict[str, Any] = {"images": len(run.lines), "digest": digest(run.lines)}
    reasons = Counter(a.reason for a in run.answers)
    result["reasons"] = dict(reasons)
    click.echo(
        table(
            [
                ("images", str(len(run.lines))),
                *((f"  {k.replace('_', ' ')}", str(v)) for k, v in reasons.most_common()),
            ]
        )
    )
    click.echo(f"digest of {decisions}: {result['digest']}")
    if other is not None:
        result["difference"] = difference = first_difference(other, run.lines)
        click.echo(f"first difference: {difference}" if difference else "no difference")
    if true_poses is not None:
        true_poses.require([a.stamp_ns for a in run.answers])
        seen = _Truth(
            true_poses.at,
            DEFAULT_RADIUS_M if radius_m is None else radius_m,
            math.radians(DEFAULT_ANGLE_DEG if angle_deg is None else angle_deg),
        )
        result |= _report(bag, run, frames, config, seen, out)
    write_json(json_path, result | {"machine": machine(), "version": __version__})
    end_with_losses(run.lost, run.lost + len(run.lines))


@dataclass(frozen=True)
class _Truth:
    """True poses, and how near is near."""

    pose_at: Callable[[int], Pose | None]
    radius_m: float
    angle_rad: float


@dataclass(frozen=True)
class _Run:
    lines: list[str]
    answers: list[Answer]
    lost: int  # images that could not be read, or that the live node did not answer
    live: NodeRun | None = None


def _topics(
    bag: Path, image_topics: Sequence[str], pose_topic: str | None, in_file: bool
) -> dict[str, Any]:
    """The settings that say which topics of the bag are used."""
    if not image_topics and not in_file:
        image_topics = (only_image_topic(bag),)
    flat: dict[str, Any] = {}
    if image_topics:
        flat["input.image_topics"] = list(image_topics)
    if pose_topic is not None:
        flat |= {"pose.source": "odometry", "pose.odometry_topic": pose_topic}
    return flat


def _open(bag: Path, config: Config, allow_partial: bool) -> tuple[BagFrames, dict[str, str]]:
    """The frames of the node's topics, and the camera of each topic."""
    from hashvpr_ros.config import camera_names, image_topic
    from hashvpr_ros.datasets.bag import BagFrames

    if config.pose.source == "tf":
        raise ConfigError(
            "pose.source is tf, which a replay does not read; give --pose-topic, or --set "
            "pose.source=none"
        )
    cameras = {
        _absolute(image_topic(topic, config.input.compressed)): name
        for name, topic in camera_names(config).items()
    }
    odometry = config.pose.source == "odometry"
    frames = BagFrames(
        bag,
        list(cameras),
        _absolute(config.pose.odometry_topic) if odometry else "",
        config.pose.max_age_s,
        allow_partial=allow_partial,
    )
    return frames, cameras


def _absolute(topic: str) -> str:
    return topic if topic.startswith("/") else f"/{topic}"


def _prepare_map(start: Path | None, path: Path) -> None:
    """A fresh map, or a copy of the one to begin with; what a run before left makes room."""
    from hashvpr_ros.map import files
    from hashvpr_ros.map.place_map import PlaceMap

    if start is None:
        files.remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    with PlaceMap.open(start, read_only=True, create=False, verify=True) as place_map:
        place_map.copy_to(path, overwrite=True)


def _replay(frames: BagFrames, cameras: dict[str, str], config: Config, ledger_path: Path) -> _Run:
    from hashvpr_ros.config import camera_headings
    from hashvpr_ros.datasets.ledger_writer import LedgerWriter
    from hashvpr_ros.engine.factory import open_engine
    from hashvpr_ros.evaluation.decisions import line_of_decision
    from hashvpr_ros.evaluation.replay import replay
    from hashvpr_ros.evaluation.run_result import answer_of
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.matching.recognizer import Recognizer
    from hashvpr_ros.types import Mode

    mode = Mode(config.mode)
    if (ledger_path / "metadata.yaml").is_file():  # of a run before, and nothing that is no bag
        shutil.rmtree(ledger_path)
    engine = open_engine(config.engine)
    lines, answers = [], []
    try:
        with (
            PlaceMap.open(
                config.map.path,
                engine.info.fingerprint,
                engine.info.feature_dim,
                model_name=engine.info.name,
                read_only=mode is Mode.LOCALIZATION,
                create=mode is not Mode.LOCALIZATION,
                session=config.map.session,
                commit_period_s=config.map.commit_period_s,
                index=config.map.index,
                max_index_mb=config.map.max_index_mb,
                verify=True,
                on_damage=config.map.on_damage,
                file_mode=int(config.map.file_mode, 8),
            ) as place_map,
            LedgerWriter(ledger_path) if config.publish.ledger else nullcontext() as ledgers,
            progress_bar(len(frames), "replaying") as bar,
        ):
            recognizer = Recognizer(engine, place_map, config, mode=mode)
            recognizer.set_headings(camera_headings(config))
            sync_s = config.input.sync_s
            for decision in replay(frames, recognizer, place_map, cameras, sync_s):
                if decision.store_error:
                    raise MapError(decision.store_error)
                if ledgers is not None and decision.ledger is not None:
                    ledgers.write(decision, decision.ledger)
                lines.append(line_of_decision(decision))
                answers.append(answer_of(decision))
                bar.update(1)
    finally:
        engine.close()
    say_losses(frames)
    return _Run(lines, answers, frames.lost)


def _play(
    bag: Path, flat: dict[str, Any], config: Config, out: Path, rate: float, images: int
) -> _Run:
    from hashvpr_ros.cli.node_run import run_node
    from hashvpr_ros.datasets.bag import Losses, read_own
    from hashvpr_ros.evaluation.decisions import line_of_message
    from hashvpr_ros.evaluation.run_result import read_answers

    live = run_node(flat | {"map.path": config.map.path}, bag, out / "run", rate=rate)
    if live.lost:
        click.echo(f"{len(live.lost)} images were lost on the way, or dropped", err=True)
    if len(live.published_ns) < images:
        click.echo(
            f"{images - len(live.published_ns)} of {images} images have no stamp of their own, so "
            "their answers cannot be told apart; replay them without --ros",
            err=True,
        )
    answers = read_answers(live.answers)
    lines = [
        line_of_message(stamp, m)
        for stamp, m in read_own(live.answers, "PlaceHypotheses", Losses())
    ]
    return _Run(lines, answers, len(live.lost), live)


def _report(
    bag: Path, run: _Run, frames: BagFrames, config: Config, truth_of: _Truth, out: Path
) -> dict[str, Any]:
    from hashvpr_ros.evaluation.ground_truth import TruthByPose
    from hashvpr_ros.evaluation.run_result import judge
    from hashvpr_ros.map.place_map import PlaceMap

    path = Path(config.map.path)
    stamps = [a.stamp_ns for a in run.answers]
    with PlaceMap.open(path, read_only=True, create=False) as place_map:
        keyframes = place_map.keyframes(place_map.ids())
    # What was in the map before is where it says, where the truth does not reach.
    played = set(stamps)
    before = {k.stamp_ns: k.pose for k in keyframes if k.stamp_ns not in played}

    def pose_at(stamp_ns: int) -> Pose | None:
        return truth_of.pose_at(stamp_ns) or before.get(stamp_ns)

    slam = config.mode == "slam"
    in_map = [k.stamp_ns for k in keyframes]
    truth = TruthByPose(
        pose_at,
        [*in_map, *(stamps if slam else ())],
        config.matching.exclude_recent_s if slam else None,
        truth_of.radius_m,
        truth_of.angle_rad,
    )
    poses = {s: pose_at(s) for s in {*stamps, *in_map}}

    def images(wanted: Sequence[int]) -> dict[int, Any]:
        chosen = set(wanted)
        return {f.stamp_ns: f.rgb for f in frames if f.stamp_ns in chosen}

    return show_run(
        make_run(
            f"{bag.name}, {'live' if run.live else 'replayed'}",
            judge(run.answers, truth),
            path,
            played=len(frames),
            images=images,
            positions={s: p.position_m[:2] for s, p in poses.items() if p is not None},
            settings={s.name: s.default for s in settings(config)},
            live=run.live,
        ),
        out,
    )
