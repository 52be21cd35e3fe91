"""Plays images and odometry of a bag to a running node and records what it answers.

python -m hashvpr_ros.ros.play_bag BAG --record OUT [--node /vpr_node] [--rate 2.0]

A process of its own, beside the node's: messages really cross DDS. Takes the node through
configure and activate, waits for its subscriptions, plays, waits for the answers, and takes it
back. Writes the answers as a bag, and OUT.json with the wall-clock times at which each image was
published and answered.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tqdm import tqdm

from hashvpr_ros.bag_reader import BagReader
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.msg import DecisionLedger, LoopClosure, PlaceHypotheses

_TYPES = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "nav_msgs/msg/Odometry": Odometry,
}
_PATIENCE_S = 5.0  # for the last answers
_START_S = 60.0  # for the node and each of its transitions


class PlayerError(Exception):
    """The node does not do as it should; the text says what and what helps."""


_ANSWERS = {
    "hypotheses": PlaceHypotheses,
    "loop_closures": LoopClosure,
    "ledger": DecisionLedger,  # empty without publish.ledger
}


class Player(Node):
    """Publishes the messages of a bag and keeps what comes back."""

    def __init__(self, target: str) -> None:
        super().__init__("hashvpr_player")
        self.target = target
        self.published: dict[int, int] = {}  # stamp -> wall clock, ns
        self.answered: dict[int, int] = {}
        self.explained: set[int] = set()  # by a ledger, which follows the answer
        self.raw: list[tuple[str, str, int, bytes]] = []  # topic, type, wall clock, CDR
        self.news = threading.Event()
        reliable = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        for topic, kind in _ANSWERS.items():
            self.create_subscription(
                kind,
                f"{target}/{topic}",
                self._keeper(f"{target}/{topic}", kind),
                reliable,
                raw=True,
            )
        self._change = self.create_client(ChangeState, f"{target}/change_state")

    def _keeper(self, topic: str, kind: Any) -> Callable[[bytes], None]:
        name = f"hashvpr_ros/msg/{kind.__name__}"

        def keep(raw: bytes) -> None:
            now = time.time_ns()
            self.raw.append((topic, name, now, bytes(raw)))
            if kind is PlaceHypotheses:
                # Only the header, its first field, is needed while images are played.
                self.answered[_header_stamp_ns(raw)] = now
                self.news.set()
            elif kind is DecisionLedger:
                self.explained.add(_header_stamp_ns(raw))

        return keep

    def change(self, transition: int, name: str) -> None:
        """Ask the node for a transition.

        Raises:
            PlayerError: there is no such node, or it refuses.
        """
        if not self._change.wait_for_service(timeout_sec=_START_S):
            raise PlayerError(f"no lifecycle node {self.target} answers; is it running?")
        request = ChangeState.Request()
        request.transition.id = transition
        done = threading.Event()
        future = self._change.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(_START_S):
            raise PlayerError(f"{self.target} did not {name} within {_START_S:.0f} s")
        if not future.result().success:
            raise PlayerError(f"{self.target} refuses to {name}; its log says why")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a condition that answers or the graph may fulfil."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.news.clear()
            self.news.wait(0.05)
        return True


def _header_stamp_ns(raw: bytes) -> int:
    # A CDR stream of a message that begins with a Header can be read as a Header.
    stamp = deserialize_message(raw, Header).stamp
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def play(player: Player, reader: BagReader, rate: float) -> None:
    """Publish all images and odometry of the bag at `rate` times their own speed.

    Raises:
        PlayerError: the node does not subscribe to them.
    """
    kinds = {
        name: next(iter(topic.types))
        for name, topic in reader.topics.items()
        if len(topic.types) == 1 and topic.types <= _TYPES.keys()
    }
    publishers = {
        name: player.create_publisher(_TYPES[kind], name, 20) for name, kind in kinds.items()
    }
    images = {name for name, kind in kinds.items() if kind != "nav_msgs/msg/Odometry"}
    heard = [publishers[t] for t in images]
    if not player.wait_for(lambda: any(p.get_subscription_count() for p in heard), 20.0):
        raise PlayerError(
            f"{player.target} subscribes to none of {', '.join(sorted(images))}; set "
            "input.image_topics"
        )
    if not player.wait_for(lambda: _answers_heard(player), 20.0):
        raise PlayerError(f"{player.target} publishes no {', '.join(_ANSWERS)}")
    total = sum(reader.topics[name].listed for name in kinds)
    damaged: list[str] = []
    first_ns: int | None = None
    started = time.monotonic()
    with tqdm(total=total, desc="playing", unit="msg", disable=None, leave=False) as bar:
        for message in reader.messages(kinds, damaged.append):
            bar.update(1)
            try:
                raw = reader.content(message)
                stamp_ns = _header_stamp_ns(raw)
            except Exception as e:  # whatever the bytes happen to call for
                damaged.append(f"a message on {message.topic} is damaged ({e})")
                continue
            first_ns = message.time_ns if first_ns is None else first_ns
            wait_s = (message.time_ns - first_ns) / 1e9 / rate - (time.monotonic() - started)
            if wait_s > 0:
                time.sleep(wait_s)
            if message.topic in images:
                player.published[stamp_ns] = time.time_ns()
            publishers[message.topic].publish(raw)
    for line in damaged[:5]:
        print(f"play_bag: not played: {line}", file=sys.stderr)
    player.wait_for(lambda: _is_done(player), _PATIENCE_S)


def _is_done(player: Player) -> bool:
    played = player.published.keys()
    return played <= player.answered.keys() and (
        not player.explained or played <= player.explained
    )


def _answers_heard(player: Player) -> bool:
    return all(player.count_publishers(f"{player.target}/{topic}") for topic in _ANSWERS)


def record(player: Player, out: Path, messages: Path) -> None:
    """Write what was answered as a bag, and the wall-clock times beside it."""
    from rosbags.typesys import get_types_from_msg

    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in sorted(messages.glob("*.msg")):
        types |= get_types_from_msg(path.read_text(), f"hashvpr_ros/msg/{path.stem}")
    store.register(types)
    with Writer(out, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {}
        for topic, kind, now_ns, raw in player.raw:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], now_ns, raw)
    times = {
        "published_ns": {str(k): v for k, v in player.published.items()},
        "answered_ns": {str(k): v for k, v in player.answered.items()},
    }
    out.with_suffix(".json").write_text(json.dumps(times))


def main() -> None:
    """Parse the arguments, play, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--record", type=Path, required=True, help="bag to write; must not exist")
    parser.add_argument("--messages", type=Path, required=True, help="folder of our .msg files")
    parser.add_argument("--node", default="/vpr_node")
    parser.add_argument("--rate", type=float, default=1.0, help="times the bag's own speed")
    arguments = parser.parse_args()
    rclpy.init()
    player = Player(arguments.node)
    executor = SingleThreadedExecutor()
    executor.add_node(player)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    spinner = threading.Thread(target=spin, daemon=True)
    spinner.start()
    code = 0
    try:
        player.change(Transition.TRANSITION_CONFIGURE, "configure")
        player.change(Transition.TRANSITION_ACTIVATE, "activate")
        with closing(BagReader(arguments.bag)) as reader:
            play(player, reader, arguments.rate)
        player.change(Transition.TRANSITION_DEACTIVATE, "deactivate")
        player.change(Transition.TRANSITION_CLEANUP, "clean up")
        record(player, arguments.record, arguments.messages)
    except (PlayerError, DatasetError) as e:
        print(f"play_bag: {e}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    finally:
        executor.shutdown()
        spinner.join(timeout=5)
        player.destroy_node()
        rclpy.try_shutdown()
    sys.exit(code)


if __name__ == "__main__":
    main()
