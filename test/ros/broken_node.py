"""`vpr_node` with a double of faults that nobody foresees: functions that raise, or never end.

A file says which, one a line: `HOOK KIND TIMES`. Its path is in the variable BROKEN_NODE.
"""

import os
import sys
import threading
import time
from pathlib import Path

from hashvpr_ros.ros import node

FILE = Path(os.environ["BROKEN_NODE"])


class Fault(BaseException):
    """No Exception, as what ends a thread may be none."""


def fail(kind: str) -> None:
    if kind == "hang":
        FILE.with_suffix(".hangs").touch()
        time.sleep(600.0)
    raise {
        "ValueError": ValueError("invalid literal"),
        "MemoryError": MemoryError(),
        "SystemExit": SystemExit(1),
        "Fault": Fault("nobody foresaw it"),
        "OSError": OSError(5, "Input/output error"),
    }[kind]


lock = threading.Lock()


def due(hook: str) -> str:
    """Of which kind the fault of a hook is now; "" for none."""
    with lock:
        try:
            lines = [line.split() for line in FILE.read_text().splitlines()]
        except FileNotFoundError:
            return ""
        for line in lines:
            if line[0] == hook and int(line[2]) > 0:
                line[2] = str(int(line[2]) - 1)
                temporary = FILE.with_suffix(".new")
                temporary.write_text("".join(" ".join(parts) + "\n" for parts in lines))
                temporary.replace(FILE)
                return line[1]
        return ""


def break_(owner: object, name: str, hook: str) -> None:
    inner = getattr(owner, name)

    def broken(*args: object, **options: object) -> object:
        if kind := due(hook):
            fail(kind)
        return inner(*args, **options)

    setattr(owner, name, broken)


def main() -> int:
    from hashvpr_ros.map.place_map import PlaceMap
    from hashvpr_ros.mapping.instants import Instants
    from hashvpr_ros.matching.recognizer import Recognizer
    from hashvpr_ros.ros import cameras, conversions, runtime, services, vpr_node
    from hashvpr_ros.ros.parameters import Parameters
    from hashvpr_ros.ros.peers import Peers
    from hashvpr_ros.ros.poses import OdometryPoses
    from hashvpr_ros.ros.publishers import Publishers
    from hashvpr_ros.ros.verdicts import Verdicts

    for owner, name, hook in (
        (conversions, "decode", "decode"),
        (Recognizer, "process_instant", "process"),
        (Recognizer, "recognize", "recognize"),
        (Recognizer, "set_config", "post"),
        (Recognizer, "match_peer", "match_peer"),
        (Publishers, "publish_image", "publish"),
        (Instants, "gather", "gather"),
        (PlaceMap, "flush_if_due", "commit"),
        (PlaceMap, "verify", "verify"),
        (PlaceMap, "flush", "flush"),
        (PlaceMap, "close", "close"),
        (OdometryPoses, "at", "pose"),
        (OdometryPoses, "_on_message", "odometry"),
        (Peers, "_on_descriptor", "descriptor"),
        (Verdicts, "_on_verdict", "verdict"),
        (cameras, "stamp_or_arrival_ns", "camera"),
        (Parameters, "_check", "parameters"),
        (vpr_node.VprNode, "_on_status", "status"),
        (vpr_node, "diagnostics", "diagnostics"),
        (vpr_node, "create_pose_source", "activate"),
        (runtime, "open_engine", "engine"),
        (runtime, "damage_of", "load"),
        (services.Services, "_inspect", "service"),
    ):
        break_(owner, name, hook)
    return node.main()


if __name__ == "__main__":
    sys.exit(main())
