"""A real `vpr_node` process, and a client that talks to it over DDS.

Every test process has a domain of its own, so that runs side by side do not hear one another.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before rclpy is imported anywhere. 1 to 100: above, ports collide with those of the system.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
# By default images of more than 0.5 MB are lost on the way; see the file.
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = os.environ.get("VPR_TEST_DDS_PROFILE") or str(
    Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"
)
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="vpr_test_log"))

rclpy = pytest.importorskip("rclpy", reason="needs a ROS 2 environment (rclpy)")
pytest.importorskip("hashvpr_ros.msg", reason="needs the package built by colcon (its messages)")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

BROKEN_NODE = Path(__file__).with_name("broken_node.py")
UDP_ONLY = Path(__file__).with_name("udp_only.xml")
# Slow machines take long to start a process; whoever waits returns as soon as the event is there.
PATIENCE_S = 40.0
ROOT = Path(__file__).resolve().parents[2]
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "unconfigured_shutdown": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    "inactive_shutdown": Transition.TRANSITION_INACTIVE_SHUTDOWN,
    "active_shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first truthy value of a condition."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain until {what}")


class Client:
    """A node of the test: calls services, publishes, and keeps what it hears."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(f"test_{uuid.uuid4().hex[:8]}", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        self._clients: dict[tuple[Any, str], Any] = {}

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def call(
        self, kind: Any, name: str, request: Any, alive: Callable[[], bool] = lambda: True
    ) -> Any:
        """The response of a service of a process that is alive."""
        client = self._clients.get((kind, name))
        if client is None:
            client = self._clients[kind, name] = self.node.create_client(kind, name)
        assert self._thread.is_alive(), "the test's own executor has ended; see its thread's error"
        wait_until(lambda: client.service_is_ready() or not alive(), f"there is a service {name}")
        future = client.call_async(request)
        wait_until(lambda: future.done() or not alive(), f"{name} answers")
        assert future.done(), f"the process ended before it answered {name}"
        return future.result()

    def listen(self, kind: Any, topic: str, qos: Any = 50) -> list[Any]:
        """A list that fills with the messages of a topic."""
        heard: list[Any] = []
        subscription = self.node.create_subscription(kind, topic, heard.append, qos)
        heard_of[id(heard)] = subscription
        return heard

    def publisher(self, kind: Any, topic: str, reliable: bool = True, depth: int = 10) -> Any:
        """A publisher; give it to `publish` for the first message to arrive for sure."""
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return self.node.create_publisher(
            kind, topic, QoSProfile(depth=depth, reliability=reliability)
        )

    def destroy(self, publisher: Any) -> None:
        """End a publisher, in the executor's thread: in another one rclpy's wait may raise."""
        done = self._executor.create_task(self.node.destroy_publisher, publisher)
        wait_until(done.done, f"the publisher of {publisher.topic_name} ends")

    def matched(self, publisher: Any) -> Any:
        """The same publisher, once somebody listens."""
        wait_until(publisher.get_subscription_count, f"somebody listens on {publisher.topic_name}")
        return publisher


heard_of: dict[int, Any] = {}


def python_path() -> str:
    """For programs of this source tree: it comes before what is installed."""
    return f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"


def new_namespace() -> str:
    return f"/t{uuid.uuid4().hex[:8]}"


class VprProcess:
    """`vpr_node` as a process in a namespace of its own.

    One that is to be killed shares no memory with the test (see udp_only.xml): `udp_only`.
    `broken`: a file that names what raises or hangs in it, see broken_node.py.
    """

    def __init__(
        self,
        client: Client,
        log: Path,
        parameters: dict[str, Any],
        namespace: str = "",
        udp_only: bool = False,
        broken: Path | None = None,
    ) -> None:
        self.client = client
        self.namespace = namespace or new_namespace()
        self.log = log
        program = ["-m", "hashvpr_ros.ros.node"] if broken is None else [str(BROKEN_NODE)]
        command = [sys.executable, *program, "--ros-args"]
        command += ["-r", f"__ns:={self.namespace}"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={_yaml(value)}"]
        environment = {**os.environ, "PYTHONPATH": python_path(), "BROKEN_NODE": str(broken)}
        if udp_only:
            environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(UDP_ONLY)
        self._may_be_killed = environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == str(UDP_ONLY)
        with log.open("w") as f:
            self.process = subprocess.Popen(
                command, stdout=f, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def name(self) -> str:
        return f"{self.namespace}/vpr_node"

    def topic(self, name: str) -> str:
        return f"{self.name}/{name}"

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """The response of one of the node's services."""
        try:
            return self.client.call(
                kind, self.topic(name), kind.Request(**fields), self.is_running
            )
        except AssertionError as e:
            raise AssertionError(f"{e}; the node says:\n{self.text()}") from None

    def is_running(self) -> bool:
        return self.process.poll() is None

    def state(self) -> str:
        return str(self.call(GetState, "get_state").current_state.label)

    def change(self, transition: str) -> bool:
        """Whether a transition succeeded."""
        request = Transition(id=TRANSITIONS[transition])
        return bool(self.call(ChangeState, "change_state", transition=request).success)

    def set(self, name: str, value: Any, kind: Any = None) -> Any:
        """The result of setting a parameter: `successful` and `reason`.

        `kind` says of what type an empty list is.
        """
        parameter = Parameter(name, kind, value).to_parameter_msg()
        return self.call(SetParameters, "set_parameters", parameters=[parameter]).results[0]

    def get(self, name: str) -> Any:
        message = self.call(GetParameters, "get_parameters", names=[name]).values[0]
        return rclpy.parameter.parameter_value_to_python(message)

    def describe(self, *names: str) -> list[Any]:
        return list(
            self.call(DescribeParameters, "describe_parameters", names=list(names)).descriptors
        )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def logged(self, text: str) -> int:
        return self.text().count(text)

    def activate(self) -> VprProcess:
        """The same node, configured and active."""
        assert self.change("configure") and self.change("activate"), self.text()
        return self

    def stop(self, sig: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        assert sig != signal.SIGKILL or self._may_be_killed, "start it with udp_only=True"
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the node did not end:\n{self.text()}") from None


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    if isinstance(value, (str, Path)):
        return f"'{value}'"
    return str(value)


def starter(client: Client, folder: Path) -> Iterator[Callable[..., VprProcess]]:
    """Yields what starts nodes, and ends them afterwards."""
    started: list[VprProcess] = []
    numbers = itertools.count()  # not the list's length: tests start nodes in threads

    def start(
        namespace: str = "",
        udp_only: bool = False,
        broken: Path | None = None,
        **parameters: Any,
    ) -> VprProcess:
        # `map__path=` for `map.path`
        parameters = {k.replace("__", "."): v for k, v in parameters.items()}
        parameters = {
            "engine.threads": 1,
            "map.path": "",
            # Tests keep maps in folders of their own, all of them in this one.
            "map.allowed_dirs": [str(folder.parent)],
            **parameters,
        }
        number = next(numbers)
        if parameters["map.path"] == "":
            parameters["map.path"] = str(folder / f"{number}.vprmap")
        node = VprProcess(
            client, folder / f"{number}.log", parameters, namespace, udp_only, broken
        )
        started.append(node)
        return node

    yield start
    # Asked, not killed: after a killed process the next is found some seconds late.
    for node in started:
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGINT)
    for node in started:
        try:
            node.process.wait(20.0)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()
            raise


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """An image that differs from those of other seeds, to the model too: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = rng.integers(0, 256, 3)
    for _ in range(12):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        kind, thick = rng.integers(3), int(rng.integers(1, 4))
        a, b = ((int(rng.integers(width)), int(rng.integers(height))) for _ in range(2))
        if kind == 0:
            cv2.rectangle(image, a, b, colour, cv2.FILLED)
        elif kind == 1:
            cv2.circle(image, a, int(rng.integers(3, width // 4)), colour, cv2.FILLED)
        else:
            cv2.line(image, a, b, colour, thick)
    return image


def image_message(image: np.ndarray, stamp_ns: int, frame_id: str = "lens") -> Image:
    """A sensor_msgs/Image of RGB pixels."""
    import array

    message = Image(height=image.shape[0], width=image.shape[1], encoding="rgb8")
    message.step = image.shape[1] * 3
    message.data = array.array("B", image.tobytes())
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


def latched() -> QoSProfile:
    """The QoS of `~/map_status`."""
    return QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def stamp_ns_of(message: Any) -> int:
    """Nanoseconds of a message's header."""
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


START_NS = 10**18


class Camera:
    """Publishes images to an active node and waits for what it makes of them."""

    def __init__(
        self, node: VprProcess, topic: str = "image", kind: Any = Image, reliable: bool = True
    ) -> None:
        from hashvpr_ros.msg import PlaceHypotheses

        self.node = node
        self.heard = node.client.listen(PlaceHypotheses, node.topic("hypotheses"))
        self.publisher = node.client.publisher(kind, f"{node.namespace}/{topic}", reliable)

    def connect(self) -> Camera:
        """Wait until the node listens."""
        self.node.client.matched(self.publisher)
        return self

    def answers(self, stamp_ns: int) -> list[Any]:
        """What was published for the image of a stamp."""
        return [h for h in self.heard if stamp_ns_of(h) == stamp_ns]

    def send(self, message: Any) -> Any:
        """The hypotheses of an image. It is sent again when the middleware lost it."""
        stamp_ns = stamp_ns_of(message)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.publisher.publish(message)
            again = time.monotonic() + 1.0
            while time.monotonic() < again:
                if found := self.answers(stamp_ns):
                    return found[0]
                time.sleep(0.002)
        raise AssertionError(f"no hypotheses for an image; the node says:\n{self.node.text()}")

    def show(self, seed: int, second: float) -> Any:
        """The hypotheses of a picture."""
        return self.send(image_message(picture(seed), START_NS + round(second * 1e9)))
