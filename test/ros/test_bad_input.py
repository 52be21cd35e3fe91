"""Images that are none, stamps that make no sense: counted, said, and survived."""

import struct
import time

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from vpr_process import START_NS, Camera, image_message, picture, stamp_ns_of, wait_until

from hashvpr_ros.srv import InspectMap

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "publish__diagnostics_period_s": 0.1,
}
SHOWN = picture(1)
JPEG = cv2.imencode(".jpg", SHOWN)[1].tobytes()
PNG = cv2.imencode(".png", SHOWN)[1].tobytes()
FLOATS = cv2.imencode(".tiff", np.ones((8, 8), np.float64))[1].tobytes()
_PROGRESSIVE = cv2.imencode(".jpg", SHOWN, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
_SCAN = _PROGRESSIVE.index(b"\xff\xda")
SCANS = _PROGRESSIVE[:_SCAN] + _PROGRESSIVE[_SCAN:-2] * 200 + b"\xff\xd9"
HUGE_PNG = PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:]


def raw(**fields):
    return Image(**{"height": 4, "width": 4, "encoding": "rgb8", "step": 12, **fields})


BAD = {
    "an unknown encoding": (raw(encoding="who knows", data=bytes(48)), "unknown encoding"),
    "a depth image": (raw(encoding="32FC1", step=16, data=bytes(64)), "depth or raw"),
    "no size": (raw(height=0, width=0), "no pixels"),
    "no width": (raw(width=0, data=bytes(48)), "no pixels"),
    "a step below a row": (raw(step=11, data=bytes(44)), "step 11"),
    "a buffer too short": (raw(data=bytes(47)), "47 bytes"),
    "a buffer too long": (raw(data=bytes(49)), "49 bytes"),
    "no buffer": (raw(), "0 bytes"),
    "a huge size": (raw(height=2**32 - 1, width=2**32 - 1, step=2**32 - 1), "Mpx"),
    "a huge step": (raw(step=2**32 - 1, data=bytes(48)), "48 bytes"),
}
BAD_COMPRESSED = {
    "a truncated JPEG": (CompressedImage(format="jpeg", data=JPEG[:-20]), "truncated JPEG"),
    "the head of a JPEG": (CompressedImage(format="jpeg", data=JPEG[:10]), "truncated JPEG"),
    "no JPEG": (CompressedImage(format="jpeg", data=b"hello" * 100), "no JPEG"),
    "nothing": (CompressedImage(format="jpeg"), "without data"),
    "a truncated PNG": (CompressedImage(format="png", data=PNG[:-20]), "truncated PNG"),
    "a huge size": (CompressedImage(format="png", data=HUGE_PNG), "Mpx"),
    "a depth image": (CompressedImage(format="16UC1; compressedDepth", data=PNG), "no colours"),
    "depth as PNG": (CompressedImage(format="16UC1; png compressed ", data=PNG), "no colours"),
    "numbers of 64 bits": (CompressedImage(format="bayer_rggb8; tiff", data=FLOATS), "64-bit"),
    "no GIF, please": (CompressedImage(format="gif", data=b"GIF89a" + bytes(99)), "a GIF"),
    "many scans": (CompressedImage(format="jpeg", data=SCANS), "segments"),
}


@pytest.fixture(scope="module")
def node(start_module):
    node = start_module(**EVERYTHING).activate()
    node.camera = Camera(node).connect()
    node.second = 0
    return node


@pytest.fixture(scope="module")
def compressed(start_module):
    node = start_module(**EVERYTHING, input__compressed=True).activate()
    node.camera = Camera(node, "image/compressed", CompressedImage).connect()
    node.second = 0
    return node


def bad_count(diagnostics, node, least=0):
    said = diagnostics(node, lambda d: int(d["camera image"]["bad"]) >= least, "it is counted")
    return int(said["camera image"]["bad"]), said


def stamped(message, node):
    node.second += 1
    message.header.stamp.sec = 10**9 + node.second
    return message


def good(node):
    if node.camera.publisher.msg_type is Image:
        return stamped(image_message(picture(2), 0), node)
    return stamped(CompressedImage(format="jpeg", data=JPEG), node)


def send_bad(diagnostics, node, message, reason):
    before, _ = bad_count(diagnostics, node)
    node.camera.publisher.publish(stamped(message, node))
    after, said = bad_count(diagnostics, node, before + 1)
    assert after == before + 1
    camera = said["camera image"]
    assert camera["level"] == 1 and camera["message"].startswith("bad image: ")
    assert reason in camera["message"]
    assert said["node"]["level"] == 0 and said["node"]["failures"] == "0"
    assert node.camera.answers(stamp_ns_of(message)) == []
    assert node.camera.send(good(node)).keyframe_id > 0


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_counted_and_the_next_is_answered(node, diagnostics, name):
    send_bad(diagnostics, node, *BAD[name])


@pytest.mark.parametrize("name", BAD_COMPRESSED)
def test_a_bad_compressed_image_is_counted_and_the_next_is_answered(compressed, diagnostics, name):
    send_bad(diagnostics, compressed, *BAD_COMPRESSED[name])


@pytest.mark.parametrize("kind", ["node", "compressed"])
def test_the_log_has_few_lines_for_many_bad_images(request, diagnostics, kind):
    node = request.getfixturevalue(kind)
    camera = node.camera
    lines = len(node.text().splitlines())
    before, _ = bad_count(diagnostics, node)
    # Damaged within its pixels: OpenCV's decoders complain on the process's standard error.
    damaged = JPEG[:-200] + bytes(100) + JPEG[-100:]
    for i in range(200):
        message = raw(encoding="who knows", data=bytes(48))
        if kind == "compressed":
            data = (JPEG[:-20], damaged, PNG[:-40] + bytes(20) + PNG[-20:])[i % 3]
            message = CompressedImage(format="jpeg", data=data)
        camera.publisher.publish(stamped(message, node))
        time.sleep(0.002)  # not awaited: what is replaced before it is looked at counts as well
    assert camera.send(good(node)).keyframe_id > 0
    assert bad_count(diagnostics, node)[0] > before
    assert len(node.text().splitlines()) < lines + 20


def test_stamps_that_go_back_begin_one_new_session(node):
    first = node.camera.show(1, 1000.0)
    sessions = node.call(InspectMap, "inspect_map").sessions
    # Images of the second lap come faster than they are worked on.
    for second in range(20):
        node.camera.publisher.publish(
            image_message(picture(second, 240, 320), START_NS + (500 + second) * 10**9)
        )
    last = node.camera.show(3, 600.0)
    assert last.session != first.session
    assert len(node.call(InspectMap, "inspect_map").sessions) == len(sessions) + 1
    assert node.logged("was a bag restarted?") == 1
    # The own session's recent past is left out, the lap before is not.
    assert node.camera.show(1, 601.0).hypotheses[0].session == first.session
    late = node.camera.show(4, 600.5)  # late, and no new lap
    assert late.session == last.session


def test_a_bag_that_starts_again_while_the_node_is_inactive(node):
    before = node.camera.show(5, 700.0).session
    assert node.change("deactivate") and node.change("activate")
    assert node.camera.show(6, 701.0).session == before
    assert node.change("deactivate") and node.change("activate")
    assert node.camera.show(7, 100.0).session != before


def test_a_bag_with_two_cameras_begins_one_new_session(start):
    node = start(**EVERYTHING, input__image_topics=["left", "right"]).activate()
    left, right = (Camera(node, topic).connect() for topic in ("left", "right"))
    sessions = []
    for lap in range(2):
        for second in range(3):
            shift = 1e-3 * lap
            sessions.append(left.show(second, 100.0 + second + shift).session)
            sessions.append(right.show(second, 100.1 + second + shift).session)
    assert len(set(sessions[:6])) == len(set(sessions[6:])) == 1
    assert sessions[0] != sessions[-1]


def test_images_without_a_stamp(node):
    message = image_message(picture(9), 0, "lens")
    before = time.time_ns()
    answers = []
    for _ in range(2):
        count = len(node.camera.heard)
        node.camera.publisher.publish(message)
        wait_until(lambda count=count: len(node.camera.heard) > count, "it is answered")
        answers.append(node.camera.heard[-1])
    assert all(a.header == message.header for a in answers)
    stored = node.call(InspectMap, "inspect_map", keyframe_id=answers[0].keyframe_id).keyframe
    assert before <= stored.stamp.sec * 10**9 + stored.stamp.nanosec <= time.time_ns()
    assert node.logged("have no stamp") == 1


def test_nearly_black_images_of_16_bits_are_said_once(node):
    before = node.logged("nearly black")
    for _ in range(3):
        dark = raw(encoding="mono16", step=8, data=bytes((200, 3) * 16))
        assert node.camera.send(stamped(dark, node)).keyframe_id > 0
    assert node.logged("nearly black") == before + 1
