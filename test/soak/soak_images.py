"""Damaged images of every kind, and buffers whose size, step or encoding is wrong."""

from __future__ import annotations

import functools
import struct
import time
import zlib
from collections import Counter

import cv2
import numpy as np
from hypothesis import strategies as st
from soak_fuzz import EDITS, Edit, damaged, fuzz, stderr_of

from hashvpr_ros.errors import ImageError
from hashvpr_ros.imaging import ENCODINGS, decode_compressed, to_rgb

FORMATS = (
    "",
    "jpeg",
    "png",
    "bgr8; jpeg compressed bgr8",
    "mono16; png compressed ",
    "16UC1; png compressed ",
    "bayer_rggb8; tiff",
    "bayer_grbg16; png compressed bayer_grbg16",
    "bayer_gbrg8; jpeg compressed bayer_gbrg8",
    "32FC1; compressedDepth png",
)
SLOWEST_S = 2.0  # of CPU; machines differ


@functools.cache
def samples() -> dict[str, bytes]:
    """Small sound images, by a name."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 1.5)
    deep = image.astype(np.uint16) * 257
    clear = np.dstack([image, noise[..., 0]])
    kinds = {
        "jpeg": (".jpg", image, ()),
        "noisy jpeg": (".jpg", noise, (cv2.IMWRITE_JPEG_QUALITY, 100)),
        "grey jpeg": (".jpg", image[..., 0], ()),
        "progressive jpeg": (".jpg", image, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        "jpeg with restarts": (".jpg", image, (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
        "png": (".png", image, ()),
        "grey png": (".png", image[..., 0], ()),
        "clear png": (".png", clear, ()),
        "deep png": (".png", deep, ()),
        "deep grey png": (".png", deep[..., 0], ()),
        "bilevel png": (".png", image[..., 0], (cv2.IMWRITE_PNG_BILEVEL, 1)),
        "webp": (".webp", image, ()),
        "lossless webp": (".webp", clear, (cv2.IMWRITE_WEBP_QUALITY, 101)),
        "bmp": (".bmp", image, ()),
        "grey bmp": (".bmp", image[..., 0], ()),
        "tiff": (".tiff", image, ()),
        "plain tiff": (".tiff", image, (cv2.IMWRITE_TIFF_COMPRESSION, 1)),
        "deep tiff": (".tiff", deep, ()),
        "float tiff": (".tiff", image.astype(np.float64), ()),
        "int8 tiff": (".tiff", image[..., 0].astype(np.int8), ()),
    }
    found = {}
    for name, (suffix, pixels, options) in kinds.items():
        found[name] = cv2.imencode(suffix, pixels, options)[1].tobytes()
    jpeg = found["jpeg"]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\x01\0\0\0\6\0\0\0\0\0\0\0"
    found["turned jpeg"] = (
        jpeg[:2] + struct.pack(">BBH", 255, 225, len(exif) + 2) + exif + jpeg[2:]
    )
    found["jpeg without an end"] = jpeg[:-2]
    return found


def with_checksums(png: bytes) -> bytes:
    """A damaged PNG whose checksums say that it is not."""
    found, at = png[:8], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        if at + 12 + length > len(png):
            break
        found += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return found


def judge(decode: functools.partial) -> str:
    """Whether an image was decoded or refused; raises where it was neither."""
    started = time.process_time()
    try:
        rgb = decode()
    except ImageError as e:
        assert 0 < len(str(e)) < 700 and "\n" not in str(e), str(e)
        outcome = "refused"
    else:
        assert isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8, rgb
        assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size, rgb.shape
        assert rgb.flags.c_contiguous
        outcome = "decoded"
    assert time.process_time() - started < SLOWEST_S, f"{outcome} too slowly"
    return outcome


def check_file(name: str, edits: list[Edit], format: str, checksums: bool) -> str:
    data = damaged(samples()[name], edits)
    if checksums and name.endswith("png"):
        data = with_checksums(data)
    return judge(functools.partial(decode_compressed, data, format, lambda hint: None))


def check_buffer(encoding: str, drawn: bytes, strange: bool) -> str:
    """A buffer of the right size, or one of some other size; the numbers come from `drawn`."""
    height, width, padding, extra, fill, *more = struct.unpack("<BBBbBIII", drawn)
    height, width, padding = height % 41, width % 41, padding % 9
    step = 4 * 2 * width + padding
    if strange:
        height, width, step = more[0], more[1] % 3000, more[2] >> more[2] % 32
    for rows in sorted({height, height * 3 // 2, height * 2, height * 3}):
        length = max(0, min(step * rows, 1 << 18) + (extra if extra > 120 else 0))
        decode = functools.partial(
            to_rgb, bytes([fill]) * length, encoding, height, width, step, bool(fill % 2), len
        )
        outcome = judge(decode)
        if outcome == "decoded":
            break
    return outcome


def images(count: int, seed: int, seconds: float = float("inf")) -> Counter[str]:
    """Images of every kind: two thirds damaged files, one third buffers.

    Raises:
        AssertionError: one is neither refused in a sentence nor decoded to RGB of 8 bits, one
            takes too long, or a library writes on standard error.
    """
    samples()
    with stderr_of() as said:
        outcomes = fuzz(
            check_file,
            count * 2 // 3,
            seed,
            seconds * 0.7,
            name=st.sampled_from(sorted(samples())),
            edits=EDITS,
            format=st.sampled_from(FORMATS),
            checksums=st.booleans(),
        )
        buffers = fuzz(
            check_buffer,
            count - count * 2 // 3,
            seed,
            seconds * 0.3,
            encoding=st.one_of(st.sampled_from(ENCODINGS), st.text(max_size=8)),
            drawn=st.binary(min_size=17, max_size=17),
            strange=st.booleans(),
        )
        text = said()
    assert not text, text[:2000]
    slowest = max(outcomes.pop("slowest"), buffers.pop("slowest"))
    return Counter({**(outcomes + buffers), "slowest": slowest})
