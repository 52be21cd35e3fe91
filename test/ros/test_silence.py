"""A topic on which nothing comes: the log and the diagnostics say why, and when it is over."""

import pytest
from sensor_msgs.msg import CompressedImage, Image
from vpr_process import Camera, image_message, new_namespace, picture, wait_until

EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}
OK, WARN = 0, 1


@pytest.fixture(scope="module")
def node(start_module):
    """An active node that wants a reliable publisher on the topic `strict`."""
    namespace = new_namespace()
    return start_module(
        namespace,
        **{f"qos_overrides.{namespace}/strict.subscription.reliability": "reliable"},
        **EVERYTHING,
        input__image_topics=["image", "strict", "other"],
        input__stale_after_s=0.5,
        publish__diagnostics_period_s=0.1,
    ).activate()


def is_silent(camera, why):
    return lambda d: (
        d[f"camera {camera}"]["level"] == WARN and why in d[f"camera {camera}"]["message"]
    )


def test_a_camera_that_dies_and_returns(node, diagnostics):
    topic = f"{node.namespace}/image"
    died = diagnostics(node, is_silent("image", "nobody publishes there"), "silence is said")
    assert topic in died["camera image"]["message"]
    assert died["camera image"]["topic"] == topic
    camera = Camera(node).connect()
    answered = 0
    for life in range(2):
        for second in range(3):
            camera.show(second, 10 * life + second)
        answered += 3
        lives = diagnostics(
            node, lambda d: d["camera image"]["level"] == OK, "the camera lives again"
        )
        assert int(lives["camera image"]["processed"]) >= answered
        if life == 0:
            node.client.destroy(camera.publisher)
            died = diagnostics(node, is_silent("image", "nobody publishes there"), "it is dead")
            assert topic in died["camera image"]["message"]
            camera.publisher = node.client.publisher(Image, topic)
            camera.connect()
    wait_until(lambda: node.logged(f"images come on {topic} again") == 2, "the log says so")
    assert node.logged(f"no image on {topic} for") == 2
    # One that is there and sends nothing is told from one that is not there.
    diagnostics(node, is_silent("image", "they send nothing"), "it is told")
    node.client.destroy(camera.publisher)


def test_another_type_on_the_topic(node, diagnostics):
    publisher = node.client.publisher(CompressedImage, f"{node.namespace}/other")
    said = diagnostics(
        node, is_silent("other", "its type is sensor_msgs/msg/CompressedImage"), "it is said"
    )
    assert "input.compressed" in said["camera other"]["message"]
    node.client.destroy(publisher)


def test_an_incompatible_qos(node, diagnostics):
    publisher = node.client.publisher(Image, f"{node.namespace}/strict", reliable=False)
    said = diagnostics(node, is_silent("strict", "incompatible QoS"), "it is said")
    assert "reliable subscription" in said["camera strict"]["message"].lower()
    text = "has an incompatible QoS (reliability)"
    wait_until(lambda: node.logged(text), "the log says it")
    publisher.publish(image_message(picture(1), 1))
    assert int(said["camera strict"]["received"]) == 0
    node.client.destroy(publisher)


def test_the_log_says_it_now_and_then(node):
    for camera in ("other", "strict"):
        assert 1 <= node.logged(f"no image on {node.namespace}/{camera} for") <= 3
