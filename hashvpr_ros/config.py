"""Every setting of the recognizer and the node, with its unit, range and meaning.

The dataclasses below are the one source: the node declares its parameters from them, a test
holds `config/vpr.yaml`, the launch file and the README's table equal to them, and the offline
tools build the same objects. A parameter's name is `group.field` (`matching.top_k`), or the bare
field at the top level (`mode`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.setting import CONFIGURE, LIVE, START, setting, with_values


@dataclass(frozen=True)
class EngineConfig:
    """Which network runs, and on what."""

    path: str = setting(
        "", "Model file: .onnx, or .engine/.plan. Empty: the lite model of the package."
    )
    providers: list[str] = setting(
        [],
        "ONNX Runtime execution providers in order of preference; those not installed are passed "
        "over. Empty: CUDA where it is installed, else the CPU.",
    )
    threads: int = setting(0, "CPU threads of the runtime. 0: one per core.", low=0, high=256)
    tensorrt: str = setting(
        "auto",
        "Whether an .onnx is built for the GPU by TensorRT, which takes minutes the first time. "
        "auto: where tensorrt, pycuda and a GPU are there and `providers` is empty, else ONNX "
        "Runtime; require: an error where it cannot; off: never.",
        choices=("auto", "off", "require"),
    )
    precision: str = setting(
        "fp16",
        "Precision of an engine built by TensorRT (11 and later take it from the file).",
        choices=("fp16", "fp32"),
    )
    workspace_mb: int = setting(
        1024,
        "GPU memory that a layer's kernels may use for scratch while and after TensorRT builds.",
        unit="MB",
        low=1,
        high=65536,
    )
    cache_dir: str = setting(
        "",
        "Folder of the engines that TensorRT built. Empty: ~/.cache/hashvpr_ros/engines, in "
        "XDG_CACHE_HOME where that is set.",
    )


@dataclass(frozen=True)
class MapConfig:
    """Where places are kept."""

    path: str = setting(
        "~/.ros/hashvpr.vprmap",
        "File of the map, made when it does not exist (not in mode localization). Empty: kept in "
        "memory and lost at the end.",
    )
    allowed_dirs: list[str] = setting(
        [],
        "Folders in which services may read and write maps, with the folders in them; also where "
        "`path` may lead when it is set while the node runs. Empty: the folder of the map, and "
        "~/.ros.",
        change=START,
    )
    session: str = setting("", "Name of the session that is recorded. Empty: a new UUID.")
    commit_period_s: float = setting(
        1.0,
        "Longest time that a keyframe may wait to be written; a crash loses no more.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    keep_good_copy: bool = setting(
        True,
        "Keep a verified copy beside the map (NAME.good), as large as the map, for `hashvpr map "
        "restore`: made when the map is closed, or loaded and not as it was closed.",
    )
    on_damage: str = setting(
        "refuse",
        "What is done with a damaged map. refuse: the node says what is damaged and what to do, "
        "and does not start; drop: it uses what is sound and says how many keyframes are left "
        "out. The damaged file is kept.",
        choices=("refuse", "drop"),
    )
    file_mode: str = setting(
        "0600",
        "Permissions of new maps and of copies, in octal: who else may read them, for thumbnails "
        "show where the robot was.",
        choices=("0600", "0640", "0644", "0660", "0664"),
    )
    thumbnail_px: int = setting(
        160,
        "Longer side of the JPEG kept with each keyframe. 0: none is kept.",
        unit="px",
        low=0,
        high=640,
    )
    index: str = setting(
        "exact",
        "How codes are searched. exact: all are compared; hnsw and ivf: structures of FAISS that "
        "find most of the nearest, for maps beyond some millions, built when the map is loaded; "
        "gpu: exact by a faiss that has a GPU (never run).",
        choices=("exact", "hnsw", "ivf", "gpu"),
    )
    max_index_mb: int = setting(
        0,
        "Most memory of the index, which is all of a map on disk that is kept in memory. Where it "
        "is reached, the keyframes that say least leave the index, not the file. 0: no ceiling.",
        unit="MB",
        low=0,
        high=65536,
    )


@dataclass(frozen=True)
class MatchingConfig:
    """How candidates are found, ordered and accepted."""

    top_k: int = setting(
        100,
        "Candidates taken by Hamming distance and re-ranked by the float features.",
        low=1,
        high=1000,
        change=LIVE,
    )
    max_hypotheses: int = setting(
        5, "Hypotheses published per image.", low=1, high=100, change=LIVE
    )
    exclude_recent_s: float = setting(
        30.0,
        "Keyframes of the same session younger than this are not candidates (mode slam).",
        unit="s",
        low=0.0,
        high=86400.0,
        change=LIVE,
    )
    exclude_recent_m: float = setting(
        0.0,
        "With poses: keyframes of the same session made less than this distance ago are not "
        "candidates (mode slam).",
        unit="m",
        low=0.0,
        high=100000.0,
        change=LIVE,
    )
    exclude_recent_keyframes: int = setting(
        0,
        "So many of the last keyframes of the same session are not candidates (mode slam).",
        low=0,
        high=100000,
        change=LIVE,
    )
    max_drift: float = setting(
        0.1,
        "With poses: the most by which odometry errs, as a share of the way. Keyframes of the "
        "same session that lie further off are no candidates. 0: odometry forbids nothing.",
        low=0.0,
        high=1.0,
        change=LIVE,
    )
    target_precision: float = setting(
        0.99,
        "A match is accepted as a loop closure when it is right with at least this probability.",
        low=0.5,
        high=1.0,
        change=LIVE,
    )
    temporal: str = setting(
        "both",
        "What weighs a match over time. none: each image by itself; sequence: the share of the "
        "preceding views that lead to it; filter: a Bayes filter over the map's places, moved by "
        "odometry where there is any; both: with odometry the filter, which the sequence must "
        "support; without odometry the run of the last views.",
        choices=("none", "sequence", "filter", "both"),
        change=LIVE,
    )
    sequence_length: int = setting(
        15,
        "Preceding views of the same camera that are asked whether they lead to the match.",
        low=1,
        high=100,
        change=CONFIGURE,
    )
    min_sequence_support: float = setting(
        0.8,
        "Share of the preceding views that must lead to a match before it is accepted. It counts "
        "where odometry can rule matches out, and for temporal sequence. 0: one image is enough.",
        low=0.0,
        high=1.0,
        change=LIVE,
    )


@dataclass(frozen=True)
class KeyframeConfig:
    """Which images become keyframes."""

    min_distance_m: float = setting(
        0.5,
        "With poses: a new keyframe after this distance, or after `min_angle_rad`.",
        unit="m",
        low=0.0,
        high=1000.0,
        change=LIVE,
    )
    min_angle_rad: float = setting(
        0.35,
        "With poses: a new keyframe after this turn, or after `min_distance_m`.",
        unit="rad",
        low=0.0,
        high=math.pi,
        change=LIVE,
    )
    min_period_s: float = setting(
        0.5,
        "Without poses: no keyframe sooner than this after the last.",
        unit="s",
        low=0.0,
        high=3600.0,
        change=LIVE,
    )
    min_novelty_bits: int = setting(
        40,
        "Without poses: a new keyframe when the code differs by this much from the last one's.",
        unit="bits",
        low=0,
        high=512,
        change=LIVE,
    )
    max_period_s: float = setting(
        10.0,
        "Without poses: a new keyframe after this time in any case. 0: never for that reason.",
        unit="s",
        low=0.0,
        high=86400.0,
        change=LIVE,
    )


@dataclass(frozen=True)
class InputConfig:
    """Where images come from."""

    image_topics: list[str] = setting(["image"], "Image topics, one per camera.")
    camera_names: list[str] = setting(
        [],
        "Names of the cameras, in the order of the topics. Empty: the topics' names.",
    )
    camera_headings: list[float] = setting(
        [],
        "How the cameras are turned in the robot, to the left from ahead, in the order of the "
        "topics: 0 for one that looks ahead, 3.14 for one that looks back. Empty: from tf where "
        "heading_frame is given, else unknown.",
        unit="rad",
        low=-6.3,
        high=6.3,
        items=float,
    )
    heading_frame: str = setting(
        "",
        "Frame of the robot, x ahead, as base_link: the headings are taken from tf (needs "
        "tf2_ros) by the frame_id of the images, of which those in _optical or _optical_frame "
        "look along z, others along x.",
    )
    sync_s: float = setting(
        0.05,
        "With several cameras: images stamped within this time of each other are of one instant, "
        "which is judged as a whole, and the first of them waits no longer for the others. 0: "
        "each by itself.",
        unit="s",
        low=0.0,
        high=1.0,
        change=LIVE,
    )
    compressed: bool = setting(
        False,
        "Subscribe to sensor_msgs/CompressedImage on <topic>/compressed instead of Image.",
    )
    descriptor_topics: list[str] = setting(
        [],
        "Topics on which other robots publish their PlaceDescriptors (publish.descriptors): they "
        "are matched with this robot's map, published on ~/peer_hypotheses and ~/peer_closures.",
    )
    stale_after_s: float = setting(
        5.0,
        "Log and diagnostics warn when no image, odometry or transform has come for this long, or "
        "none that fits; after ten times as long it is an error.",
        unit="s",
        low=0.1,
        high=3600.0,
        change=LIVE,
    )
    expected_rate_hz: float = setting(
        0.0,
        "Images a second that each camera should give: log and diagnostics warn where it gives "
        "less than half. 0: unknown.",
        unit="Hz",
        low=0.0,
        high=1000.0,
        change=LIVE,
    )


@dataclass(frozen=True)
class PoseConfig:
    """Where the poses of keyframes come from."""

    source: str = setting(
        "none",
        "Where poses come from: none, odometry (a topic) or tf (needs tf2_ros).",
        choices=("none", "odometry", "tf"),
    )
    odometry_topic: str = setting("odom", "nav_msgs/Odometry topic, for source odometry.")
    fixed_frame: str = setting("odom", "Frame in which tf gives poses, for source tf.")
    base_frame: str = setting("base_link", "Frame whose pose tf gives, for source tf.")
    max_age_s: float = setting(
        0.2,
        "An image has a pose only when one was stamped within this time of it.",
        unit="s",
        low=0.0,
        high=60.0,
        change=LIVE,
    )
    wait_s: float = setting(
        0.05,
        "Longest that an image waits for odometry stamped then or later, so that its pose does "
        "not depend on which message came first. Nobody waits while no odometry comes.",
        unit="s",
        low=0.0,
        high=1.0,
        change=LIVE,
    )


@dataclass(frozen=True)
class PublishConfig:
    """What is published besides hypotheses and loop closures."""

    descriptors: bool = setting(
        False,
        "Publish the code and feature of every image on ~/descriptors.",
        change=LIVE,
    )
    ledger: bool = setting(
        False,
        "Publish on ~/ledger how the decision on every image came about: all candidates, and why "
        "each was chosen or not. `hashvpr explain` reads it.",
        change=LIVE,
    )
    diagnostics_period_s: float = setting(
        1.0,
        "Period of /diagnostics.",
        unit="s",
        low=0.1,
        high=60.0,
    )


@dataclass(frozen=True)
class Config:
    """All settings."""

    mode: str = setting(
        "slam",
        "mapping: add keyframes; localization: query only; slam: query, then add.",
        choices=("mapping", "localization", "slam"),
    )
    autostart: bool = setting(
        False,
        "Configure and activate at start-up, for those without a lifecycle manager.",
        change=START,
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    map: MapConfig = field(default_factory=MapConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    input: InputConfig = field(default_factory=InputConfig)
    pose: PoseConfig = field(default_factory=PoseConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)


def from_flat(values: Mapping[str, Any]) -> Config:
    """Build a Config from dotted names; what is not named keeps its default.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or out of range.
    """
    return with_values(Config(), values)


def camera_headings(config: Config) -> dict[str, float]:
    """Headings by camera name, radians; empty where none are given.

    Raises:
        ConfigError: headings that are too few or too many; see `camera_names`, too.
    """
    names, headings = list(camera_names(config)), config.input.camera_headings
    if headings and len(headings) != len(names):
        raise ConfigError(
            f"input.camera_headings has {len(headings)} headings for {len(names)} topics in "
            "input.image_topics; give as many, or none"
        )
    return dict(zip(names, headings, strict=True)) if headings else {}


def camera_names(config: Config) -> dict[str, str]:
    """Topic by camera name, in the order of the topics.

    Raises:
        ConfigError: no topics, or names that are too few, too many, or not distinct.
    """
    topics, names = config.input.image_topics, config.input.camera_names
    if not topics:
        raise ConfigError("input.image_topics is empty; give at least one image topic")
    if names and len(names) != len(topics):
        raise ConfigError(
            f"input.camera_names has {len(names)} names for {len(topics)} topics in "
            "input.image_topics; give as many, or none"
        )
    by_name = dict(zip(names or topics, topics, strict=True))
    if len(by_name) != len(topics) or len(set(topics)) != len(topics):
        raise ConfigError("input.image_topics and input.camera_names must each be distinct")
    return by_name


def image_topic(topic: str, compressed: bool) -> str:
    """The topic to subscribe to: image_transport publishes compressed images beside the raw."""
    if compressed and not topic.endswith("/compressed"):
        return topic.rstrip("/") + "/compressed"
    return topic
