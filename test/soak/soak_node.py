"""A real node over DDS: hostile requests, damaged messages, kills, and cycles of the lifecycle."""

from __future__ import annotations

import array
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from soak_fuzz import EDITS, Edit, damaged, fuzz
from soak_images import FORMATS, samples

sys.path.append(str(Path(__file__).resolve().parents[1] / "ros"))

from geometry_msgs.msg import Point, Quaternion
from geometry_msgs.msg import Pose as PoseMessage
from nav_msgs.msg import Odometry
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from vpr_process import Camera, VprProcess, image_message, picture

from hashvpr_ros.errors import MapError
from hashvpr_ros.imaging import ENCODINGS
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import ClosureVerdict, PlaceDescriptor
from hashvpr_ros.srv import (
    ClearMap,
    InspectMap,
    LoadMap,
    Recognize,
    SaveMap,
    SetMode,
    UpdatePoses,
)

Start = Callable[..., VprProcess]
EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}
ANSWER_S = 15.0  # a map is verified meanwhile, on a busy machine
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
_INT32 = st.one_of(st.integers(-3, 40), st.sampled_from((-(2**31), 2**31 - 1)))
_FLOATS = st.floats(width=64)


def _alive(node: VprProcess, second: int) -> None:
    """The node is active, and answers an image."""
    assert node.is_running(), node.text()[-3000:]
    assert node.state() == "active"
    node.camera.show(second % 30, 10.0**6 + second)
    assert "Traceback" not in node.text(), node.text()[-3000:]


def services(
    count: int, seed: int, folder: Path, start: Start, seconds: float = float("inf")
) -> Counter[str]:
    """Requests of every service with fields of every kind; each is answered in time.

    Raises:
        AssertionError: the node ends, does not answer, or logs a traceback.
    """
    place = folder / "services"
    place.mkdir()
    (place / "text").write_text("no map")
    os.mkfifo(place / "fifo")
    node = start(map__path=str(place / "m.vprmap"), **EVERYTHING).activate()
    node.camera = Camera(node).connect()
    for i in range(10):
        node.camera.show(i, i)
    # What is written stays in the folder of the test, whatever the node allows.
    names = ("m.vprmap", "copy.vprmap", "text", "fifo", "no/such", "a" * 300, ".", "copy.vprmap/x")
    written = st.one_of(
        st.sampled_from([str(place / n) for n in names]),
        st.sampled_from(
            ("", "/", "relative", "../relative", str(place / ".." / "services" / "d"))
        ),
        _TEXT.map(lambda text: text.lstrip("/~")),
        _TEXT.map(lambda text: str(place / text.replace("/", "").replace("..", ""))),
    )
    read = st.one_of(
        written,
        st.sampled_from(("/dev/null", "/dev/zero", "/proc/self/mem", "/proc/1/fd/0")),
        _TEXT,
    )
    pose = st.builds(
        lambda v: PoseMessage(
            position=Point(x=v[0], y=v[1], z=v[2]),
            orientation=Quaternion(x=v[3], y=v[4], z=v[5], w=v[6]),
        ),
        st.lists(_FLOATS, min_size=7, max_size=7),
    )
    image = st.builds(
        lambda e, h, w, s, d: Image(
            encoding=e, height=h, width=w, step=s, data=array.array("B", d)
        ),
        st.one_of(st.sampled_from(ENCODINGS), _TEXT),
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 100),
        st.binary(max_size=400),
    )
    file = st.builds(
        lambda n, e, f: CompressedImage(format=f, data=array.array("B", damaged(samples()[n], e))),
        st.sampled_from(sorted(samples())),
        EDITS,
        st.sampled_from(FORMATS),
    )
    request = st.one_of(
        st.builds(lambda p, o: (SaveMap, {"path": p, "overwrite": o}), written, st.booleans()),
        st.builds(lambda p: (LoadMap, {"path": p}), read),
        st.builds(lambda c: (ClearMap, {"confirm": c}), st.integers(0, 9).map(lambda n: n == 0)),
        st.builds(
            lambda i, v: (InspectMap, {"keyframe_id": i, "verify": v}), _INT32, st.booleans()
        ),
        st.builds(
            lambda m: (SetMode, {"mode": m}),
            st.one_of(st.sampled_from(("mapping", "slam", "localization", "SLAM")), _TEXT),
        ),
        st.builds(
            lambda m, f, i, p: (
                UpdatePoses,
                {"map_id": m, "frame_id": f, "keyframe_ids": i, "poses": p},
            ),
            st.one_of(st.just(""), _TEXT),
            _TEXT,
            st.lists(_INT32, max_size=4),
            st.lists(pose, max_size=4),
        ),
        st.builds(
            lambda i, c, n, m: (
                Recognize,
                {"image": i, "compressed": c, "camera": n, "max_hypotheses": m},
            ),
            image,
            file,
            _TEXT,
            st.integers(0, 65535),
        ),
    )
    calls = {SaveMap: "save_map", LoadMap: "load_map", ClearMap: "clear_map"}
    calls |= {InspectMap: "inspect_map", SetMode: "set_mode", UpdatePoses: "update_poses"}
    calls |= {Recognize: "recognize"}
    number = 0

    def check(request: tuple[Any, dict[str, Any]]) -> str:
        nonlocal number
        kind, fields = request
        started = time.monotonic()
        answer = node.call(kind, calls[kind], **fields)
        assert time.monotonic() - started < ANSWER_S, f"{calls[kind]} is slow"
        assert (answer.result == 0) or answer.message, f"{calls[kind]} gives no reason"
        # A path is named as it was given.
        given = any("\n" in value for value in fields.values() if isinstance(value, str))
        assert given or "\n" not in answer.message, answer.message
        number += 1
        if number % 50 == 0:
            _alive(node, number)
        return f"{calls[kind]} {'done' if answer.result == 0 else 'refused'}"

    outcomes = fuzz(check, count, seed, seconds, request=request)
    node.call(SetMode, "set_mode", mode="slam")
    _alive(node, number + 1)
    return outcomes


def cdr(
    count: int, seed: int, folder: Path, start: Start, seconds: float = float("inf")
) -> Counter[str]:
    """Damaged serialised messages, published as they are to every topic of two nodes.

    Raises:
        AssertionError: a node ends or does not answer any more.
    """
    parameters = EVERYTHING | {"input__descriptor_topics": ["peer"], "pose__source": "odometry"}
    raw = start(**parameters, pose__odometry_topic="odom").activate()
    files = start(**EVERYTHING, input__compressed=True).activate()
    raw.camera = Camera(raw).connect()
    files.camera = Camera(files, "image/compressed", CompressedImage).connect()
    jpeg = array.array("B", samples()["jpeg"])
    kinds = [
        (raw, "image", image_message(picture(1), 10**18)),
        (raw, "odom", Odometry()),
        (raw, "peer", PlaceDescriptor(camera="c", map_id="m", session="s")),
        (raw, "vpr_node/verdicts", ClosureVerdict(map_id="m", verdict="accepted")),
        (files, "image/compressed", CompressedImage(format="jpeg", data=jpeg)),
    ]
    topics = []
    for node, topic, message in kinds:
        publisher = node.client.publisher(type(message), f"{node.namespace}/{topic}")
        topics.append((node.client.matched(publisher), bytes(serialize_message(message))))
    number = 0

    def check(edits: list[Edit], which: int) -> str:
        nonlocal number
        publisher, whole = topics[which % len(topics)]
        # The first four bytes say how it is serialised.
        head = 0 if which % 17 == 0 else 4
        publisher.publish(whole[:head] + damaged(whole[head:], edits))
        number += 1
        if number % 100 == 0:
            for node in (raw, files):
                assert node.is_running(), node.text()[-3000:]
                assert node.state() == "active"
        return "sent"

    outcomes = fuzz(check, count, seed, seconds, edits=EDITS, which=st.integers(0, 10_000))
    for node in (raw, files):
        # Else nothing has been shown: flipped pixels are answered, the rest is bad.
        assert node.camera.heard or "bad image" in node.text(), "no message came to the node"
    _alive(raw, number)
    good = CompressedImage(format="jpeg", data=jpeg)
    good.header.stamp.sec = 2 * 10**9
    files.camera.send(good)
    assert "Traceback" not in raw.text() + files.text(), (raw.text() + files.text())[-3000:]
    return outcomes


def node_kills(
    count: int, seed: int, folder: Path, start: Start, seconds: float = float("inf")
) -> Counter[str]:
    """`kill -9` of whole nodes at any moment from their start on, while images come in.

    Raises:
        AssertionError: the map is damaged, cannot be opened, or lacks what was answered long
            before.
    """
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter(cases=0)
    end = time.monotonic() + seconds
    path = folder / "killed.vprmap"
    parameters = {"map__commit_period_s": 0.2, "mode": "mapping", "autostart": True, **EVERYTHING}
    while outcomes["cases"] < count and time.monotonic() < end:
        node = start(udp_only=True, map__path=str(path), **parameters)
        node.camera = Camera(node)
        heard, stop = node.camera.heard, threading.Event()

        def publish(node: VprProcess = node, stop: threading.Event = stop) -> None:
            number = 0
            while not stop.wait(0.03):
                number += 1
                stamp_ns = time.monotonic_ns()
                node.camera.publisher.publish(image_message(picture(number % 20), stamp_ns))

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            if rng.random() < 0.7:  # else within its start
                until = time.monotonic() + 10.0
                while not heard and time.monotonic() < until:
                    time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 1.0))
            assert node.is_running(), node.text()
            answered = [(time.monotonic_ns(), h.keyframe_id) for h in list(heard)]
            before_ns = time.monotonic_ns() - 700_000_000
            old = [h.keyframe_id for h in list(heard) if _ns(h) < before_ns]
            node.process.kill()
            node.process.wait()
        finally:
            stop.set()
            thread.join()
        outcomes["cases"] += 1
        outcomes["while it mapped" if answered else "within its start"] += 1
        if path.exists():
            try:
                with PlaceMap.open(path, create=False, read_only=True) as found:
                    assert found.verify() == []
                    newest = max(found.ids().tolist(), default=0)
            except MapError as e:
                raise AssertionError(f"after a kill: {e}") from e
            assert newest >= max(old, default=0), f"{newest} of {max(old)} keyframes"
        else:
            assert not old
    return outcomes


def _ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def lifecycle(
    count: int, seed: int, folder: Path, start: Start, seconds: float = float("inf")
) -> Counter[str]:
    """Configure, activate, answer an image, deactivate, clean up, again and again.

    Raises:
        AssertionError: the process grows in memory, threads or open files.
    """
    # Else the allocator gives threads memory of their own, and the sizes vary with which got what.
    os.environ["MALLOC_ARENA_MAX"] = "1"
    node = start(**EVERYTHING, keyframes__max_period_s=0.0)
    os.environ.pop("MALLOC_ARENA_MAX")
    camera = Camera(node)
    sizes: list[tuple[float, int, int]] = []
    end = time.monotonic() + seconds
    while len(sizes) < count and time.monotonic() < end:
        node.activate()
        camera.show(len(sizes) % 20, 100.0 + len(sizes))
        assert node.change("deactivate") and node.change("cleanup")
        sizes.append(size_of(node.process.pid))
    assert node.stop() == 0
    first = sizes[min(max(20, len(sizes) // 5), 50) :]  # threads and caches come with use
    if len(first) < 20:
        return Counter({"cases": len(sizes), "too few to judge": 1})
    middle = len(first) // 2
    for i, (what, most) in enumerate((("MiB", 12), ("threads", 1), ("files", 1))):
        values = [size[i] for size in first]
        early, late = sorted(values[:middle]), sorted(values[middle:])
        growth = late[len(late) // 2] - early[len(early) // 2]
        assert growth <= most, f"{growth} more {what}: {values[:: max(1, len(values) // 20)]}"
    memory = [round(s[0]) for s in sizes]
    return Counter({"cases": len(sizes), "MiB first": memory[0], "MiB last": memory[-1]})


def size_of(pid: int) -> tuple[float, int, int]:
    """MiB in memory, threads and open files of a process."""
    proc = Path(f"/proc/{pid}")
    pages = int((proc / "statm").read_text().split()[1])
    return pages * 4096 / 2**20, len(list((proc / "task").iterdir())), len(os.listdir(proc / "fd"))
