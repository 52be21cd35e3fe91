"""Buffers to RGB: each encoding against an independent computation, each kind of bad buffer."""

import array
import struct
from contextlib import suppress

import cv2
import numpy as np
import pytest

from hashvpr_ros.errors import ImageError
from hashvpr_ros.imaging import ENCODINGS, MAX_PIXELS, decode_compressed, to_rgb

H, W = 6, 8
RGB = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
RGB16 = np.random.default_rng(2).integers(0, 65536, (H, W, 3), np.uint16)
ALPHA = np.full((H, W, 1), 77, np.uint8)


def padded(image: np.ndarray, padding: int) -> tuple[bytes, int]:
    """The buffer of an image with junk after each row, and its step."""
    rows = image.reshape(image.shape[0], -1).view(np.uint8)
    junk = np.full((len(rows), padding), 0xAB, np.uint8)
    return np.hstack([rows, junk]).tobytes(), rows.shape[1] + padding


CHANNELS = {
    "rgb": lambda c, a: c,
    "bgr": lambda c, a: c[..., ::-1],
    "rgba": lambda c, a: np.concatenate([c, a], 2),
    "bgra": lambda c, a: np.concatenate([c[..., ::-1], a], 2),
}


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("order", CHANNELS)
def test_colour_of_8_bits(order, padding):
    data, step = padded(np.ascontiguousarray(CHANNELS[order](RGB, ALPHA)), padding)
    np.testing.assert_array_equal(to_rgb(data, order + "8", H, W, step), RGB)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", CHANNELS)
def test_colour_of_16_bits_is_scaled_and_rounded(order, big, padding):
    wanted = np.rint(RGB16 * (255 / 65535)).astype(np.uint8)
    image = CHANNELS[order](RGB16, ALPHA.astype(np.uint16)).astype(">u2" if big else "<u2")
    data, step = padded(np.ascontiguousarray(image), padding)
    np.testing.assert_array_equal(to_rgb(data, order + "16", H, W, step, big), wanted)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("big", [False, True])
def test_mono(big, padding):
    data, step = padded(RGB[..., 0].copy(), padding)
    for encoding in ("mono8", "8UC1"):
        np.testing.assert_array_equal(
            to_rgb(data, encoding, H, W, step, big), RGB[..., :1].repeat(3, 2)
        )
    data, step = padded(RGB16[..., 0].astype(">u2" if big else "<u2"), padding)
    grey = np.rint(RGB16[..., :1] * (255 / 65535)).astype(np.uint8).repeat(3, 2)
    np.testing.assert_array_equal(to_rgb(data, "mono16", H, W, step, big), grey)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_of_an_even_colour(pattern, bits):
    colour = {"r": 200, "g": 90, "b": 30}
    tile = np.array([[colour[c] for c in pattern[:2]], [colour[c] for c in pattern[2:]]], np.uint8)
    mosaic = np.tile(tile, (H // 2, W // 2))
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) * 257
    data, step = padded(mosaic, 2)
    rgb = to_rgb(data, f"bayer_{pattern}{bits}", H, W, step)
    np.testing.assert_array_equal(rgb, np.tile(np.uint8([200, 90, 30]), (H, W, 1)))


def yuv(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    r, g, b = rgb  # ITU-R BT.601, video range
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    return round(y), round(u), round(v)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv21", "nv24"])
def test_yuv_of_an_even_colour(encoding):
    y, u, v = yuv((200, 90, 30))
    if encoding in ("yuv422", "uyvy"):
        image = np.tile(np.uint8([u, y, v, y]), (H, W // 2))
    elif encoding in ("yuv422_yuy2", "yuyv"):
        image = np.tile(np.uint8([y, u, y, v]), (H, W // 2))
    elif encoding == "nv21":
        image = np.vstack([np.full((H, W), y), np.tile([v, u], (H // 2, W // 2))]).astype(np.uint8)
    else:
        image = np.vstack([np.full((H, W), y), np.tile([u, v], (2 * H, W // 2))]).astype(np.uint8)
    data, step = padded(image, 0)
    rgb = to_rgb(data, encoding, H, W, step).astype(int)
    assert np.abs(rgb - [200, 90, 30]).max() <= 3


BUFFERS = [bytes, bytearray, memoryview, lambda b: array.array("B", b), list]


@pytest.mark.parametrize("make", BUFFERS)
def test_any_buffer_is_taken(make):
    np.testing.assert_array_equal(to_rgb(make(RGB.tobytes()), "rgb8", H, W, W * 3), RGB)


def test_the_result_is_contiguous_uint8_for_every_encoding():
    for encoding in ENCODINGS:
        for step in range(W, W * 9):
            for rows in (H, H * 3 // 2, H * 3):
                try:
                    rgb = to_rgb(bytes(rows * step), encoding, H, W, step)
                except ImageError:
                    continue
                assert rgb.shape == (H, W, 3) and rgb.dtype == np.uint8
                assert rgb.flags.c_contiguous


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "rgb9"}, "unknown encoding 'rgb9'"),
        ({"encoding": ""}, "unknown encoding"),
        ({"encoding": "RGB8"}, "standard name is 'rgb8'"),
        ({"encoding": "16UC1"}, "depth or raw"),
        ({"encoding": "32FC1"}, "depth or raw"),
        ({"encoding": "x" * 10**6}, "unknown encoding"),
        ({"height": 0}, "no pixels"),
        ({"width": 0}, "no pixels"),
        ({"height": -1}, "no pixels"),
        ({"step": 0}, "shorter than a row"),
        ({"step": W * 3 - 1}, "shorter than a row"),
        ({"step": W * 3 + 1}, "step is wrong"),
        ({"data": b""}, "truncated"),
        ({"data": RGB.tobytes()[:-1]}, "truncated"),
        ({"data": RGB.tobytes() + b"x"}, "step is wrong"),
        ({"data": None}, "no buffer"),
        ({"data": 3}, "no buffer"),
        ({"height": 2**32 - 1, "step": 2**32 - 1}, "Mpx"),
        ({"height": 2**16, "width": 2**16, "step": 3 * 2**16}, "Mpx"),
    ],
)
def test_bad_images_are_refused_with_the_reason(change, reason):
    arguments = {"data": RGB.tobytes(), "encoding": "rgb8", "height": H, "width": W, "step": W * 3}
    with pytest.raises(ImageError, match=reason) as e:
        to_rgb(**(arguments | change))
    assert len(str(e.value)) < 600


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tiny_and_odd_sizes_decode_or_are_refused(encoding):
    for height, width in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 7), (5, 1)]:
        for rows in {height, height * 3 // 2, height * 3}:
            try:
                rgb = to_rgb(bytes(rows * width * 8), encoding, height, width, width * 8)
            except ImageError:
                continue
            assert rgb.shape == (height, width, 3)


SMOOTH = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)


def encoded(suffix: str, *flags: int) -> bytes:
    return cv2.imencode(suffix, SMOOTH[..., ::-1], list(flags))[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_files(suffix):
    np.testing.assert_array_equal(decode_compressed(encoded(suffix)), SMOOTH)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files(suffix):
    rgb = decode_compressed(array.array("B", encoded(suffix)))
    assert rgb.shape == SMOOTH.shape
    assert np.abs(rgb.astype(int) - SMOOTH).mean() < 8


def test_progressive_jpeg_and_bytes_after_the_end():
    data = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    wanted = decode_compressed(data)
    for rest in (b"\0" * 64, b"trailing"):
        np.testing.assert_array_equal(decode_compressed(data + rest), wanted)


def test_bayer_in_a_compressed_message():
    mosaic = np.tile(np.uint8([[200, 90], [90, 30]]), (24, 32))
    data = cv2.imencode(".png", mosaic)[1].tobytes()
    rgb = decode_compressed(data, "bayer_rggb8; png compressed bayer_rggb8")
    np.testing.assert_array_equal(rgb, np.tile(np.uint8([200, 90, 30]), (48, 64, 1)))


def test_grey_and_alpha():
    grey = cv2.imencode(".png", RGB[..., 0])[1].tobytes()
    np.testing.assert_array_equal(decode_compressed(grey), RGB[..., :1].repeat(3, 2))
    alpha = cv2.imencode(".png", np.concatenate([RGB[..., ::-1], ALPHA], 2))[1].tobytes()
    np.testing.assert_array_equal(decode_compressed(alpha), RGB)


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_truncated_anywhere_is_refused(progressive):
    data = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    for length in range(len(data) - 1):
        with pytest.raises(ImageError):
            decode_compressed(data[:length])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_other_files_truncated_anywhere_are_refused(suffix):
    data = encoded(suffix)
    for length in [*range(64), *range(64, len(data), 97), len(data) - 1]:
        with pytest.raises(ImageError):
            decode_compressed(data[:length])


def test_bombs_are_refused_before_they_are_decoded():
    png = bytearray(encoded(".png"))
    png[16:24] = struct.pack(">II", 60000, 60000)
    jpeg = bytearray(encoded(".jpg"))
    at = jpeg.find(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    for data in (png, jpeg):
        with pytest.raises(ImageError, match="Mpx"):
            decode_compressed(bytes(data))
    assert MAX_PIXELS < 60000 * 60000


def test_what_is_no_image_is_refused():
    rng = np.random.default_rng(0)
    for data in (b"", b"\xff\xd8", b"GIF89a", b"RIFF1234WAVEfmt ", rng.bytes(5000), None, 5):
        with pytest.raises(ImageError):
            decode_compressed(data)
    with pytest.raises(ImageError, match="compressedDepth"):
        decode_compressed(encoded(".png"), "16UC1; compressedDepth png")


def test_flipped_bytes_decode_or_are_refused():
    rng = np.random.default_rng(3)
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff"):
        original = encoded(suffix)
        for _ in range(150):
            data = bytearray(original)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(0, 256)
            with suppress(ImageError):
                assert decode_compressed(bytes(data)).dtype == np.uint8
