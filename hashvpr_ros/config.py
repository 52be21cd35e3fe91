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
        "",
        "Model file: .onnx, or .engine/.plan. Empty: the default model of the package.",
    )
    providers: list[str] = setting(
        [],
        "ONNX Runtime execution providers in order of preference. Providers that are not "
        "installed are skipped. Empty: CUDA if it is installed, else the CPU.",
    )
    threads: int = setting(0, "CPU threads of the runtime. 0: one per core.", low=0, high=256)
    tensorrt: str = setting(
        "auto",
        "Whether TensorRT builds an engine from an .onnx; the first build takes minutes. auto: "
        "if tensorrt, pycuda and a GPU are available and `providers` is empty, else ONNX "
        "Runtime; require: an error if TensorRT is not available; off: never.",
        choices=("auto", "off", "require"),
    )
    precision: str = setting(
        "fp16",
        "Precision of an engine that TensorRT builds. TensorRT 11 and later use the precision "
        "of the file.",
        choices=("fp16", "fp32"),
    )
    workspace_mb: int = setting(
        1024,
        "GPU memory for scratch space, for each layer, during and after a TensorRT build.",
        unit="MB",
        low=1,
        high=65536,
    )
    cache_dir: str = setting(
        "",
        "Folder for the engines that TensorRT built. Empty: hashvpr_ros/engines in "
        "XDG_CACHE_HOME (~/.cache if unset).",
    )


@dataclass(frozen=True)
class MapConfig:
    """Where places are kept."""

    path: str = setting(
        "~/.ros/hashvpr.vprmap",
        "Map file. It is created if it does not exist (not in mode localization). Empty: the "
        "map is kept in memory and lost when the node ends.",
    )
    allowed_dirs: list[str] = setting(
        [],
        "Folders, with their subfolders, in which services may read and write maps. `path` must "
        "be in one of them when it is set while the node runs. Empty: the folder of `path`, and "
        "~/.ros.",
        change=START,
    )
    session: str = setting(
        "",
        "Name of the recorded session. Empty: a new UUID.",
    )
    commit_period_s: float = setting(
        1.0,
        "Maximum time until a keyframe is written to the file. A crash loses at most the "
        "keyframes of this time.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    keep_good_copy: bool = setting(
        True,
        "Keep a backup beside the map (NAME.good) for `hashvpr map restore`. It is verified and "
        "as large as the map. The node updates it when it closes the map, and after a crash "
        "when it loads the map.",
    )
    on_damage: str = setting(
        "refuse",
        "What the node does with a damaged map. refuse: it reports the damage and the remedy, "
        "and does not start; drop: it uses the undamaged keyframes and reports how many are "
        "left out. The damaged file is always kept.",
        choices=("refuse", "drop"),
    )
    file_mode: str = setting(
        "0600",
        "Permissions of new maps and backups, in octal. Thumbnails show where the robot was, so "
        "by default only the owner can read them.",
        choices=("0600", "0640", "0644", "0660", "0664"),
    )
    thumbnail_px: int = setting(
        160,
        "Longer side of the JPEG thumbnail stored with each keyframe. ~/recognize re-ranks by "
        "thumbnails of at least 64 px. 0: no thumbnails.",
        unit="px",
        low=0,
        high=640,
    )
    index: str = setting(
        "exact",
        "Index for binary descriptors. exact: compares all of them; hnsw and ivf: approximate "
        "FAISS indexes for maps of several million keyframes, built when the map is loaded; "
        "gpu: exact, with a GPU build of faiss (untested).",
        choices=("exact", "hnsw", "ivf", "gpu"),
    )
    max_index_mb: int = setting(
        0,
        "Memory limit of the search index. When it is reached, the most redundant keyframes are "
        "removed from the index. The file keeps them. 0: no limit.",
        unit="MB",
        low=0,
        high=65536,
    )


@dataclass(frozen=True)
class MatchingConfig:
    """How candidates are found, ordered and accepted."""

    top_k: int = setting(
        100,
        "Candidates that are retrieved by Hamming distance and re-ranked by the float "
        "descriptors.",
        low=1,
        high=1000,
        change=LIVE,
    )
    max_hypotheses: int = setting(
        5, "Maximum number of hypotheses published per image.", low=1, high=100, change=LIVE
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
        "With poses: keyframes of the same session that were recorded within this travelled "
        "distance are not candidates (mode slam).",
        unit="m",
        low=0.0,
        high=100000.0,
        change=LIVE,
    )
    exclude_recent_keyframes: int = setting(
        0,
        "This number of the newest keyframes of the same session are not candidates (mode slam).",
        low=0,
        high=100000,
        change=LIVE,
    )
    max_drift: float = setting(
        0.1,
        "With poses: maximum odometry drift, as a fraction of the distance travelled. Keyframes "
        "of the same session that are farther away are not candidates. 0: odometry excludes "
        "nothing.",
        low=0.0,
        high=1.0,
        change=LIVE,
    )
    target_precision: float = setting(
        0.99,
        "A match is accepted as a loop closure if its probability of being correct is at least "
        "this.",
        low=0.5,
        high=1.0,
        change=LIVE,
    )
    temporal: str = setting(
        "both",
        "Temporal evidence for a match. none: each image is judged by itself; sequence: the "
        "share of preceding views that match the same part of the map; filter: a Bayes filter "
        "over the places, with odometry as motion model if available; both: with odometry, "
        "filter and sequence; without odometry, the last views as one sequence.",
        choices=("none", "sequence", "filter", "both"),
        change=LIVE,
    )
    sequence_length: int = setting(
        15,
        "Number of preceding views of the same camera that are used for sequence matching.",
        low=1,
        high=100,
        change=CONFIGURE,
    )
    min_sequence_support: float = setting(
        0.8,
        "Minimum share of preceding views that match the same part of the map. It applies if "
        "odometry can exclude matches, and with temporal: sequence. 0: a single image is "
        "enough.",
        low=0.0,
        high=1.0,
        change=LIVE,
    )


@dataclass(frozen=True)
class KeyframeConfig:
    """Which images become keyframes."""

    min_distance_m: float = setting(
        0.5,
        "With poses: add a keyframe after this distance, or after `min_angle_rad`.",
        unit="m",
        low=0.0,
        high=1000.0,
        change=LIVE,
    )
    min_angle_rad: float = setting(
        0.35,
        "With poses: add a keyframe after this rotation, or after `min_distance_m`.",
        unit="rad",
        low=0.0,
        high=math.pi,
        change=LIVE,
    )
    min_period_s: float = setting(
        0.5,
        "Without poses: minimum time between two keyframes.",
        unit="s",
        low=0.0,
        high=3600.0,
        change=LIVE,
    )
    min_novelty_bits: int = setting(
        40,
        "Without poses: add a keyframe when the Hamming distance to the descriptor of the last "
        "keyframe is at least this.",
        unit="bits",
        low=0,
        high=512,
        change=LIVE,
    )
    max_period_s: float = setting(
        10.0,
        "Without poses: add a keyframe after this time in any case. 0: no limit.",
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
        "Headings of the cameras relative to the robot, positive to the left, in the order of "
        "the topics: 0 for a camera that looks forward, 3.14 for one that looks back. Empty: "
        "from tf if `heading_frame` is set, else unknown.",
        unit="rad",
        low=-6.3,
        high=6.3,
        items=float,
    )
    heading_frame: str = setting(
        "",
        "Frame of the robot with x forward, such as base_link. The headings are then read from "
        "tf (needs tf2_ros) with the frame_id of the images. A frame_id that ends in _optical "
        "or _optical_frame looks along z, others along x.",
    )
    sync_s: float = setting(
        0.05,
        "With several cameras: images whose stamps differ by at most this form one synchronised "
        "frame set, which is judged as a whole. An image waits at most this long for the other "
        "cameras. 0: each image by itself.",
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
        "Topics of the PlaceDescriptors of other robots (publish.descriptors). They are matched "
        "against this robot's map; the results are published on ~/peer_hypotheses and "
        "~/peer_closures.",
    )
    stale_after_s: float = setting(
        5.0,
        "Log and diagnostics warn if no usable image, odometry message or transform arrives for "
        "this time. After ten times as long it is an error.",
        unit="s",
        low=0.1,
        high=3600.0,
        change=LIVE,
    )
    expected_rate_hz: float = setting(
        0.0,
        "Expected image rate of each camera. Log and diagnostics warn if a camera has less than "
        "half of it. 0: unknown, no warning.",
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
        "Source of the poses: none, odometry (a topic) or tf (needs tf2_ros).",
        choices=("none", "odometry", "tf"),
    )
    odometry_topic: str = setting("odom", "nav_msgs/Odometry topic, for source odometry.")
    fixed_frame: str = setting(
        "odom",
        "Reference frame of the poses, for source tf.",
    )
    base_frame: str = setting(
        "base_link",
        "Frame of the robot, for source tf.",
    )
    max_age_s: float = setting(
        0.2,
        "Maximum difference between the stamps of an image and of its pose. Without a pose in "
        "this time the image has none.",
        unit="s",
        low=0.0,
        high=60.0,
        change=LIVE,
    )
    wait_s: float = setting(
        0.05,
        "Maximum time that an image waits for odometry with the same or a later stamp. This "
        "makes runs repeatable. An image does not wait when no odometry arrives.",
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
        "Publish the binary and the float descriptor of every image on ~/descriptors.",
        change=LIVE,
    )
    ledger: bool = setting(
        False,
        "Publish the decision log on ~/ledger: all candidates of each image, and why each was "
        "chosen or not. `hashvpr explain` reads it.",
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
        "Configure and activate at start-up. Use it without a lifecycle manager.",
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
