"""Image buffers to RGB arrays: the one decoder of the node, the bag reader and the offline tools.

Results equal those of ROS 2's `cv_bridge` converting to `rgb8`, which refuses what this module
adds: 8UC1/8UC3/8UC4 (taken as mono8, bgr8, bgra8, as OpenCV orders channels), uyvy/yuyv (the newer
names of yuv422 and yuv422_yuy2), nv21 and nv24. Unlike `cv_bridge` (whose reshape is lost) 16-bit
big-endian buffers are decoded as well. 16UC1, 32FC1 and their like hold depth or raw readings:
what brightness a reading stands for is for their publisher to say, so they are refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ImageError

# 64 Mpx: above any robot's camera, below what a hostile header could make a process allocate.
MAX_PIXELS = 1 << 26

# encoding: (channels, bytes per channel, OpenCV conversion or None). Bayer names differ on
# purpose: ROS names the pattern from the first pixel, OpenCV from the second of the second row.
_LAYOUTS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, 1, cv2.COLOR_BGR2RGB),
    "8UC4": (4, 1, cv2.COLOR_BGRA2RGB),
    "rgb16": (3, 2, None),
    "bgr16": (3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": (4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": (1, 2, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": (1, 2, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": (1, 2, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": (1, 2, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
    "nv24": (1, 1, cv2.COLOR_YUV2RGB_YUY2),
}
# Rows of the buffer for each row of pixels: full-size luma, then interleaved chroma.
_PLANES = {"nv21": (3, 2), "nv24": (3, 1)}

ENCODINGS = tuple(_LAYOUTS)


def to_rgb(
    data: Any, encoding: str, height: int, width: int, step: int, is_bigendian: bool = False
) -> NDArray[np.uint8]:
    """Decode the buffer of a sensor_msgs/Image.

    Args:
        data: any buffer of bytes; exactly `step` bytes for each row (semi-planar YUV: for each row
            of every plane).
        encoding: a name of `ENCODINGS`.
        step: bytes from one row to the next, padding included.
        is_bigendian: byte order of 16-bit channels.

    Returns:
        uint8 [height, width, 3], RGB, contiguous; it may share memory with `data`.

    Raises:
        ImageError: an encoding that is unknown or has no colours, no pixels, too many pixels, a
            step shorter than a row, or a buffer of another size than height and step say.
    """
    if encoding not in _LAYOUTS:
        raise ImageError(_unknown(encoding))
    if height <= 0 or width <= 0:
        raise ImageError(f"image of {width}x{height} has no pixels; check the camera's driver")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"image of {width}x{height} has more than {MAX_PIXELS >> 20} Mpx; check the camera's "
            "driver, or scale it down before it is published"
        )
    channels, depth, code = _LAYOUTS[encoding]
    row_bytes = width * channels * depth
    if step < row_bytes:
        raise ImageError(
            f"step {step} is shorter than a row of {width} pixels of {encoding} ({row_bytes} "
            "bytes); check the camera's driver"
        )
    rows = height
    if encoding in _PLANES:
        factor, divisor = _PLANES[encoding]
        if width % 2 or height % divisor:
            raise ImageError(f"{encoding} needs an even size, not {width}x{height}")
        rows = height * factor // divisor
    buffer = _bytes_of(data)
    if len(buffer) != rows * step:
        raise ImageError(
            f"buffer of {len(buffer)} bytes, but {rows} rows of step {step} make {rows * step}; "
            "it was truncated, or the step is wrong"
        )
    if encoding == "nv24":
        return _convert(_nv24_to_yuy2(buffer, height, width, step), code, encoding)
    dtype = np.dtype(np.uint8 if depth == 1 else (">u2" if is_bigendian else "<u2"))
    image = np.ndarray(
        (rows, width, channels), dtype, buffer.data, 0, (step, channels * depth, depth)
    )
    if depth == 2 and is_bigendian:
        image = image.astype(np.uint16)
    return _convert(image[:, :, 0] if channels == 1 else image, code, encoding)


def _convert(image: NDArray[Any], code: int | None, encoding: str) -> NDArray[np.uint8]:
    try:
        if code is not None:
            image = cv2.cvtColor(np.ascontiguousarray(image), code)
        if image.dtype != np.uint8:
            # As cv_bridge: the full range of 16 bits to that of 8 bits, rounded.
            image = cv2.convertScaleAbs(np.ascontiguousarray(image), alpha=255.0 / 65535.0)
    except cv2.error as e:
        raise ImageError(
            f"{encoding} image of shape {list(image.shape)} cannot be converted: {e.err}"
        ) from None
    return np.ascontiguousarray(image)


def _nv24_to_yuy2(
    buffer: NDArray[np.uint8], height: int, width: int, step: int
) -> NDArray[np.uint8]:
    """OpenCV has no NV24: every second chroma sample is left out to make YUY2 of it."""
    luma = buffer[: height * step].reshape(height, step)[:, :width]
    # Two chroma bytes a pixel: a chroma row takes two steps.
    chroma = buffer[height * step :].reshape(height, 2 * step)[:, : 2 * width]
    image = np.empty((height, width, 2), np.uint8)
    image[:, :, 0] = luma
    image[:, 0::2, 1] = chroma[:, 0::4]
    image[:, 1::2, 1] = chroma[:, 1::4]
    return image


def _bytes_of(data: Any) -> NDArray[np.uint8]:
    """The buffer as uint8 [n], without a copy where it has one."""
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError):
        pass
    try:
        return np.frombuffer(bytes(data), np.uint8) if len(data) else np.empty(0, np.uint8)
    except (TypeError, ValueError):
        kind = type(data).__name__
        raise ImageError(f"image data of type {kind} is no buffer of bytes") from None


def _unknown(encoding: str) -> str:
    shown = repr(encoding[:40])
    if re.fullmatch(r"(8S|16U|16S|32S|32F|64F)(C\d+)?", encoding) or encoding == "8UC2":
        return (
            f"encoding {shown} holds depth or raw readings and no colours; give a colour or mono "
            "image (mono16 where 16-bit readings are brightness)"
        )
    for known in _LAYOUTS:
        if encoding.strip().lower() == known.lower():
            return f"unknown encoding {shown}; the standard name is {known!r}"
    return f"unknown encoding {shown}; known are {', '.join(_LAYOUTS)}"


def decode_compressed(data: Any, format: str = "") -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, TIFF or BMP.

    Args:
        data: any buffer of bytes.
        format: of the sensor_msgs/CompressedImage that it came in, if it came in one.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        ImageError: empty, truncated, damaged, too large, of another kind, or a depth image.
    """
    if "compressedDepth" in format:
        raise ImageError("compressedDepth images have no colours; give a colour image's topic")
    buffer = _bytes_of(data)
    head = buffer[:16].tobytes()
    if not head:
        raise ImageError("compressed image without data; check the publisher")
    raw = buffer.tobytes()
    reader = next((r for magic, r in _READERS.items() if head.startswith(magic)), None)
    if reader is None:
        raise ImageError("compressed image that is no JPEG, PNG, WebP, TIFF or BMP")
    try:
        width, height = reader(raw)
    except (struct.error, IndexError):
        raise ImageError(f"truncated {reader.__doc__} image: it ends within its header") from None
    if width <= 0 or height <= 0:
        raise ImageError(f"{reader.__doc__} image of {width}x{height} has no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{reader.__doc__} image of {width}x{height} has more than {MAX_PIXELS >> 20} Mpx"
        )
    source = format.split(";")[0].strip()
    raw_bayer = source.startswith("bayer_") and source.endswith("8") and source in _LAYOUTS
    # image_transport compresses a Bayer image as it is; its mosaic comes back as a grey image.
    flags = cv2.IMREAD_UNCHANGED if raw_bayer else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(buffer, flags)
    except cv2.error as e:
        raise ImageError(f"damaged {reader.__doc__} image: {e.err}") from None
    if image is None:
        raise ImageError(f"damaged {reader.__doc__} image: OpenCV cannot decode it")
    if raw_bayer and image.ndim == 2 and image.dtype == np.uint8:
        return to_rgb(image, source, image.shape[0], image.shape[1], image.shape[1])
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2RGB))


# OpenCV decodes a truncated JPEG to an image that is grey where data lacks, and warns at most on
# the process's stderr, so the end marker is looked for here. The readers return (width, height);
# their docstring is the name of the kind.


def _jpeg(raw: bytes) -> tuple[int, int]:
    """JPEG"""
    size = (0, 0)
    at = 2
    while True:
        while raw[at] != 0xFF:  # damaged between segments
            at += 1
        while raw[at] == 0xFF:
            at += 1
        marker = raw[at]
        at += 1
        if marker == 0xD9:
            raise ImageError("truncated JPEG image: it ends before its pixels")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", raw, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", raw, at + 3)
            size = (width, height)
        at += max(length, 2)
        if marker == 0xDA:
            break
    # Within the pixels 0xFF is always followed by 0 or a restart marker.
    if raw.find(b"\xff\xd9", at) < 0:
        raise ImageError("truncated JPEG image: it has no end marker")
    return size


def _png(raw: bytes) -> tuple[int, int]:
    """PNG"""
    width, height = struct.unpack_from(">II", raw, 16)
    at = 8
    while True:
        length, kind = struct.unpack_from(">I4s", raw, at)
        at += 12 + length
        if at > len(raw):
            raise ImageError("truncated PNG image: it has no end chunk")
        if kind == b"IEND":
            return width, height


def _webp(raw: bytes) -> tuple[int, int]:
    """WebP"""
    (size,) = struct.unpack_from("<I", raw, 4)
    if raw[8:12] != b"WEBP":
        raise ImageError("compressed image that is no JPEG, PNG, WebP, TIFF or BMP")
    if size + 8 > len(raw):
        raise ImageError("truncated WebP image: it is shorter than its header says")
    kind = raw[12:16]
    if kind == b"VP8X":
        packed = int.from_bytes(raw[24:30], "little")
        return (packed & 0xFFFFFF) + 1, (packed >> 24) + 1
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", raw, 21)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", raw, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(raw: bytes) -> tuple[int, int]:
    """TIFF"""
    order = "<" if raw[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", raw, 4)
    (count,) = struct.unpack_from(order + "H", raw, at)
    size = {256: 0, 257: 0}
    for i in range(count):
        tag, kind = struct.unpack_from(order + "HH", raw, at + 2 + 12 * i)
        if tag in size:
            form = order + ("H" if kind == 3 else "I")
            (size[tag],) = struct.unpack_from(form, raw, at + 10 + 12 * i)
    return size[256], size[257]


def _bmp(raw: bytes) -> tuple[int, int]:
    """BMP"""
    (size,) = struct.unpack_from("<I", raw, 2)
    width, height = struct.unpack_from("<ii", raw, 18)
    if size > len(raw):
        raise ImageError("truncated BMP image: it is shorter than its header says")
    return width, abs(height)


_READERS: dict[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"II*\x00": _tiff,
    b"MM\x00*": _tiff,
    b"BM": _bmp,
}
