"""The one resize."""

import numpy as np
import pytest

from hashvpr_ros.engine.preprocess import check_rgb, resize
from hashvpr_ros.errors import ImageError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_an_image_that_fits_is_left_as_it_is():
    assert resize(NOISE, 40, 60) is NOISE
    view = NOISE[:, ::-1]
    np.testing.assert_array_equal(resize(view, 40, 60), view)
    assert resize(view, 40, 60).flags.c_contiguous


@pytest.mark.parametrize("size", [(20, 30), (80, 120), (13, 97), (97, 13), (1, 1), (41, 60)])
def test_any_size_to_any_size(size):
    done = resize(NOISE, *size)
    assert done.shape == (*size, 3) and done.dtype == np.uint8 and done.flags.c_contiguous
    np.testing.assert_array_equal(done, resize(NOISE.copy(), *size))


def test_shrinking_averages():
    blocks = NOISE.reshape(20, 2, 30, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize(NOISE, 20, 30), blocks, atol=1)
    # A fine pattern becomes grey, not a coarser pattern.
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize(stripes, 32, 32)) < 100


def test_enlarging_interpolates_and_keeps_the_range():
    edge = np.zeros((4, 4, 3), np.uint8)
    edge[:, 2:] = 200
    row = resize(edge, 16, 16)[8, :, 0].astype(int)
    assert row[0] == 0 and row[-1] == 200 and (np.diff(row) >= 0).all()
    assert len(set(row.tolist())) > 3  # a ramp, not a step


def test_a_plain_colour_stays_and_axes_do_not_swap():
    for size in ((192, 256), (10, 10)):
        plain = np.full((50, 30, 3), (10, 120, 250), np.uint8)
        assert (resize(plain, *size) == (10, 120, 250)).all()
    half = np.zeros((20, 40, 3), np.uint8)
    half[:10] = 255  # the upper half
    done = resize(half, 30, 20)
    assert (done[:14] == 255).all() and (done[16:] == 0).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        [[[0, 0, 0]]],
        None,
    ],
)
def test_what_is_no_rgb_image_is_refused(image):
    for call in (check_rgb, lambda i: resize(i, 4, 4)):
        with pytest.raises(ImageError, match="must be RGB"):
            call(image)
