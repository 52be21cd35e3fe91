"""More images than the engine can take, and transitions in the midst of them."""

import threading

import pytest
from vpr_process import START_NS, Camera, image_message, picture, wait_until

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "publish__diagnostics_period_s": 0.1,
}
COUNTED = ("processed", "dropped", "bad", "failed")


class Flood:
    """Publishes images without a pause, in a thread of its own."""

    def __init__(self, camera, height, width):
        self._camera, self._stop = camera, threading.Event()
        self._images = [picture(seed, height, width) for seed in range(3)]
        self.sent = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.wait(0.002):
            self.sent += 1
            message = image_message(self._images[self.sent % 3], START_NS + self.sent * 10**7)
            self._camera.publisher.publish(message)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def node(start_module):
    node = start_module(**EVERYTHING).activate()
    node.camera = Camera(node).connect()
    return node


def test_only_the_newest_image_waits_and_every_image_is_accounted_for(node, diagnostics):
    with Flood(node.camera, 480, 640) as flood:
        diagnostics(
            node,
            lambda d: int(d["camera image"]["dropped"]) > 20 and flood.sent > 100,
            "images are dropped",
        )
    # Sent last, it waits for none but the one in the engine.
    last = node.camera.show(5, 10**6)
    assert last.header.stamp.sec == START_NS // 10**9 + 10**6

    def settled(d):
        counts = d["camera image"]
        return int(counts["received"]) == sum(int(counts[c]) for c in COUNTED)

    counts = diagnostics(node, settled, "all that was received is accounted for")["camera image"]
    assert counts["bad"] == counts["failed"] == "0"
    wait_until(lambda: len(node.camera.heard) >= int(counts["processed"]), "all answers come")
    assert len(node.camera.heard) == int(counts["processed"])
    stamps = [(h.header.stamp.sec, h.header.stamp.nanosec) for h in node.camera.heard]
    assert stamps == sorted(stamps)


def test_transitions_in_the_midst_of_images(node):
    """Subscriptions and publishers go while the executor waits for them, a hundred times."""
    with Flood(node.camera, 60, 80):
        for i in range(100):
            assert node.change("deactivate")
            if i % 4 == 0:
                assert node.change("cleanup")
                assert node.change("configure")
            assert node.change("activate")
    assert node.camera.connect().show(1, 2 * 10**6).header.frame_id == "lens"
    assert "ERROR" not in node.text() and "Traceback" not in node.text(), node.text()
    assert node.stop() == 0
