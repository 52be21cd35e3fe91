"""`kill -9` at any moment while the map is written: what was promised is there, and it goes on.

The tests run in a process of their own, this file as a program, that talks by UDP alone.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sensor_msgs.msg import Image
from vpr_process import (
    UDP_ONLY,
    Client,
    image_message,
    new_namespace,
    picture,
    python_path,
    starter,
    wait_until,
)

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import PlaceHypotheses

PERIOD_NS = 200_000_000
LANES, LIVES = 4, 5
PICTURES = [picture(seed) for seed in range(20)]


class Lane:
    """One map, and nodes that are killed while they write it, one after the other."""

    def __init__(self, client, number, folder):
        self.client = client
        self.path = folder / f"lane{number}.vprmap"
        self.random = random.Random(number)
        self.answers = []  # (sent, answered, keyframe id) in ns of the clock that all share
        self.promised = 0

    def _hear(self, message):
        sent = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.answers.append((sent, time.monotonic_ns(), message.keyframe_id))

    def live(self, start, life):
        """Map until the kill, then look at what is left."""
        before = len(self.answers)
        # Topics of its own: what the middleware remembers of the killed ones is not asked here.
        namespace = new_namespace()
        topic = f"{namespace}/vpr_node/hypotheses"
        self.client.node.create_subscription(PlaceHypotheses, topic, self._hear, 50)
        stop = threading.Event()

        def publish():
            publisher, since = None, 0.0
            while not stop.wait(0.01):
                # Like a camera that is started again where nothing comes of its images.
                unheard = len(self.answers) == before and time.monotonic() - since > 8.0
                if publisher is None or unheard:
                    publisher = self.client.publisher(Image, f"{namespace}/image", reliable=False)
                    since = time.monotonic()
                image = PICTURES[self.random.randrange(len(PICTURES))]
                # Stamped with the moment of sending.
                publisher.publish(image_message(image, time.monotonic_ns()))

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            node = self._mapping(start, namespace, before)
            stop_at = time.monotonic() + self.random.uniform(0.0, 1.0)
            while time.monotonic() < stop_at:
                time.sleep(0.001)
            assert node.is_running(), node.text()
            node.stop(signal.SIGKILL)
        finally:
            stop.set()
            thread.join()
        self.check(self.answers[before:], life)

    def _mapping(self, start, namespace, before):
        """A node that has answered.

        After a SIGKILL Fast DDS now and then does not bring two processes together any more. That
        is not asked here: then this node is killed too, which the map must survive as well, and
        another one is started.
        """
        for patience_s in (12.0, 12.0, 40.0):
            node = start(
                namespace,
                map__path=str(self.path),
                map__commit_period_s=PERIOD_NS / 1e9,
                mode="mapping",
                autostart=True,
                keyframes__min_period_s=0.0,
                keyframes__min_novelty_bits=0,
            )
            with suppress(AssertionError):
                wait_until(
                    lambda node=node: len(self.answers) > before or not node.is_running(),
                    "it maps",
                    patience_s,
                )
                return node
            node.stop(signal.SIGKILL)
        raise AssertionError(f"no node answered; the last one says:\n{node.text()}")

    def check(self, answers, life):
        """What was reported a commit period before the last sign of life is in the map."""
        path = self.path
        if life % 2:  # left as it is: the next node finds the write-ahead log
            path = self.path.with_name(f"copy{life} of {self.path.name}")
            for suffix in ("", "-wal"):
                if (part := self.path.with_name(self.path.name + suffix)).exists():
                    shutil.copy(part, f"{path}{suffix}")
        with PlaceMap.open(path, create=False) as place_map:
            assert place_map.verify() == []
            held = set(place_map.ids().tolist())
        # An image that was answered was sent before the node looked for a batch that is due, and
        # a keyframe was added before it was reported: so long has it waited at least.
        last_sent = max(sent for sent, _, _ in answers)
        due = {i for _, answered, i in answers if i and answered + PERIOD_NS <= last_sent}
        assert due <= held, sorted(due - held)
        self.promised += len(due)
        # Batches are written in order, so that none is missing before one that is there.
        reported = {i for _, _, i in answers if i}
        lost = reported - held
        assert not lost or min(lost) > max(reported & held, default=0)


def a_map_survives(start, client, folder):
    """Several maps at a time, for most of it is waiting."""
    lanes = [Lane(client, number, folder) for number in range(LANES)]

    def run(lane):
        for life in range(4 * LIVES):
            if life >= LIVES and lane.promised > LIVES:
                break  # where little is done in a second, it takes more lives
            lane.live(start, life)

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(run, lanes))
    assert sum(lane.promised for lane in lanes) > LANES * LIVES, "too little to be a test"
    for lane in lanes:
        node = start(new_namespace(), map__path=str(lane.path), autostart=True)
        wait_until(lambda node=node: node.logged("active: waiting"), "it starts again")
        assert node.stop() == 0
        with PlaceMap.open(lane.path, create=False) as place_map:
            assert place_map.verify() == []
            assert len(place_map.info().sessions) > 1


def killed_at_its_start_the_next_one_starts(start, client, folder):
    """Also where it dies while it makes the map."""
    for moment_s in (0.1, 0.4, 0.55, 0.7):
        path = folder / f"{moment_s}.vprmap"
        node = start(map__path=str(path), autostart=True)
        time.sleep(moment_s)  # no event is awaited: any moment will do
        node.stop(signal.SIGKILL)
        node = start(map__path=str(path), autostart=True)
        wait_until(lambda node=node: node.logged("active: waiting"), "it starts")
        assert node.stop() == 0
        assert PlaceMap.read_info(path).keyframes == 0


CASES = {case.__name__: case for case in (a_map_survives, killed_at_its_start_the_next_one_starts)}


@pytest.mark.parametrize("case", CASES)
def test_kill_9(case, tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, case, tmp_path],
        env={**os.environ, "VPR_TEST_DDS_PROFILE": str(UDP_ONLY), "PYTHONPATH": python_path()},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def main():
    case, folder = sys.argv[1], Path(sys.argv[2])
    client = Client()
    for start in starter(client, folder):
        CASES[case](start, client, folder)
    client.close()


if __name__ == "__main__":
    main()
