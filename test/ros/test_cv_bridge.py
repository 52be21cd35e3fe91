"""cv_bridge and our own decoder give the same pixels, where the real cv_bridge is installed."""

import numpy as np
import pytest
from sensor_msgs.msg import Image

from hashvpr_ros import imaging
from hashvpr_ros.ros import conversions

SIZE = {"height": 6, "width": 8}


@pytest.fixture(scope="module")
def bridge():
    found = conversions._load_cv_bridge()
    if found is None:
        pytest.skip("the real cv_bridge (of ROS 2, not PyPI's) is not installed")
    return found


def message(encoding, padding=0):
    """An image of random bytes in this encoding."""
    channels, depth, _ = imaging._LAYOUTS.get(encoding, (1, 1, None))
    step = SIZE["width"] * channels * depth + padding
    rows = SIZE["height"]
    if encoding in imaging._PLANAR:
        rows = rows * imaging._PLANE_ROWS[imaging._PLANAR[encoding][0]] // 2
    data = np.random.default_rng(len(encoding)).integers(0, 256, rows * step, np.uint8)
    return Image(**SIZE, encoding=encoding, step=step, data=data.tobytes())


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("encoding", sorted(conversions._BY_BRIDGE))
def test_both_decode_to_the_same(bridge, encoding, padding):
    if encoding not in imaging.ENCODINGS:
        pytest.fail(f"{encoding} is left to cv_bridge, but imaging does not know it")
    image = message(encoding, padding)
    ours = imaging.to_rgb(image.data, encoding, image.height, image.width, image.step)
    theirs = bridge.imgmsg_to_cv2(image, "rgb8")
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize("encoding", sorted(conversions._BY_BRIDGE))
def test_imaging_knows_whatever_may_be_left_to_cv_bridge(encoding):
    assert encoding in imaging.ENCODINGS


@pytest.mark.parametrize("encoding", imaging.ENCODINGS)
def test_decode_gives_what_imaging_gives(encoding):
    """With cv_bridge or without: an image has the same pixels on every machine."""
    image = message(encoding)
    ours = imaging.to_rgb(image.data, encoding, image.height, image.width, image.step)
    assert np.array_equal(conversions.decode(image), ours)


def test_the_decoder_is_named():
    assert (conversions.decoder_name() == "cv_bridge") == (conversions._bridge is not None)
