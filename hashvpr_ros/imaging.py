"""Image buffers to RGB arrays: the one decoder of the node, the bag reader and the offline tools.

Results equal those of ROS 2's `cv_bridge` converting to `rgb8`, which refuses what this module
adds: 8UC1/8UC3/8UC4 (taken as mono8, bgr8, bgra8, as OpenCV orders channels), uyvy/yuyv (the newer
names of yuv422 and yuv422_yuy2), and the planar YUV that video hardware gives. Unlike `cv_bridge`
(whose reshape is lost) 16-bit big-endian buffers are decoded as well. 16UC1, 32FC1 and their like
hold depth or raw readings: what brightness a reading stands for is for their publisher to say, so
they are refused.

Whatever bytes come in, these functions return uint8 [H, W, 3] or raise ImageError.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros import image_files
from hashvpr_ros.errors import ImageError, reason_of
from hashvpr_ros.image_files import MAX_BYTES, MAX_PIXELS

__all__ = [
    "DARK_HINT",
    "ENCODINGS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "HintOnce",
    "decode_compressed",
    "to_rgb",
]

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
    "yvyu": (2, 1, cv2.COLOR_YUV2RGB_YVYU),
}
# Luma in rows of `step` bytes, then chroma: how the chroma lies, and OpenCV's conversion.
_PLANAR: dict[str, tuple[str, int]] = {
    "nv12": ("420 interleaved", cv2.COLOR_YUV2RGB_NV12),
    "nv21": ("420 interleaved", cv2.COLOR_YUV2RGB_NV21),
    "i420": ("420 planes", cv2.COLOR_YUV2RGB_I420),
    "yuv420": ("420 planes", cv2.COLOR_YUV2RGB_I420),
    "yv12": ("420 planes", cv2.COLOR_YUV2RGB_YV12),
    # OpenCV has none of these: they are made into packed 4:2:2.
    "nv16": ("422 interleaved", cv2.COLOR_YUV2RGB_YUY2),
    "nv61": ("422 interleaved", cv2.COLOR_YUV2RGB_YVYU),
    "nv24": ("444 interleaved", cv2.COLOR_YUV2RGB_YUY2),
    "nv42": ("444 interleaved", cv2.COLOR_YUV2RGB_YVYU),
}
# Rows of the buffer for two rows of pixels.
_PLANE_ROWS = {"420 interleaved": 3, "420 planes": 3, "422 interleaved": 4, "444 interleaved": 6}

ENCODINGS = (*_LAYOUTS, *_PLANAR)

# Cameras of 12 bits in 16 reach 6 % of the range; depth in millimetres up to 3 m does, too.
_DARK = 0.05
DARK_HINT = (
    "16-bit image with a mean below 5 % of its range, so nearly black; if it is depth, give a "
    "colour image, and if the camera has 12 or 14 bits, have its driver scale them to 16"
)


class HintOnce:
    """Says a hint on a source of images (a topic, a folder) once: its other images are like it.

    Args:
        say: takes the source and the hint.
    """

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def of(self, source: str) -> Callable[[str], None] | None:
        """What `to_rgb` and `decode_compressed` take as `on_hint`; None once it was said."""
        return None if source in self._said else functools.partial(self._hint, source)

    def _hint(self, source: str, hint: str) -> None:
        self._said.add(source)
        self._say(source, hint)


_P = ParamSpec("_P")


def _image_errors_only(
    function: Callable[_P, NDArray[Any]],
) -> Callable[_P, NDArray[np.uint8]]:
    """Whatever happens to the bytes within: an image as promised, or an ImageError."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> NDArray[np.uint8]:
        try:
            image = np.ascontiguousarray(function(*args, **kwargs))
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("image needs more memory than there is; scale it down") from None
        except cv2.error as e:
            raise ImageError(
                f"damaged image: OpenCV cannot decode it ({reason_of(e.err or e)})"
            ) from e
        except Exception as e:
            what = f"{type(e).__name__}: {reason_of(e)}"
            raise ImageError(f"damaged image: it cannot be decoded ({what})") from e
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(
                f"image decodes to {image.dtype} {list(image.shape)}, which are no colours of 8 "
                "bits; give a colour or mono image"
            )
        return image

    return wrapped


@_image_errors_only
def to_rgb(
    data: Any,
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool = False,
    on_hint: Callable[[str], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode the buffer of a sensor_msgs/Image.

    Args:
        data: any buffer of bytes; exactly `step` bytes for each row (planar YUV: for each row of
            luma, and as much for its chroma).
        encoding: a name of `ENCODINGS`.
        step: bytes from one row to the next, padding included.
        is_bigendian: byte order of 16-bit channels.
        on_hint: called with a sentence where the image decodes, but is probably not as it was
            meant (`DARK_HINT`).

    Returns:
        uint8 [height, width, 3], RGB, contiguous; it may share memory with `data`.

    Raises:
        ImageError: an encoding that is unknown or has no colours, no pixels, too many pixels, a
            step shorter than a row, or a buffer of another size than height and step say.
    """
    if encoding not in ENCODINGS:
        raise ImageError(_unknown(encoding))
    if height <= 0 or width <= 0:
        raise ImageError(f"image of {width}x{height} has no pixels; check the camera's driver")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"image of {width}x{height} has more than {MAX_PIXELS / 1e6:.0f} Mpx; check the "
            "camera's driver, or scale it down before it is published"
        )
    channels, depth, code = _LAYOUTS.get(encoding, (1, 1, None))
    row_bytes = width * channels * depth
    if step < row_bytes:
        raise ImageError(
            f"step {step} is shorter than a row of {width} pixels of {encoding} ({row_bytes} "
            "bytes); check the camera's driver"
        )
    buffer = _bytes_of(data)
    if encoding in _PLANAR:
        return _from_planes(buffer, encoding, height, width, step)
    _check_size(buffer, height, step)
    dtype = np.dtype(np.uint8 if depth == 1 else (">u2" if is_bigendian else "<u2"))
    image: NDArray[Any] = np.ndarray(
        (height, width, channels), dtype, buffer.data, 0, (step, channels * depth, depth)
    )
    if depth == 2:
        image = image.astype(np.uint16, copy=False)
        if on_hint is not None and image.mean() < _DARK * 65535:
            on_hint(DARK_HINT)
    return _convert(image[:, :, 0] if channels == 1 else image, code, encoding)


def _check_size(buffer: NDArray[np.uint8], rows: int, step: int) -> None:
    if len(buffer) != rows * step:
        raise ImageError(
            f"buffer of {len(buffer)} bytes, but {rows} rows of step {step} make {rows * step}; "
            "it was truncated, or the step is wrong"
        )


def _convert(image: NDArray[Any], code: int | None, encoding: str) -> NDArray[Any]:
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
    return image


def _from_planes(
    buffer: NDArray[np.uint8], encoding: str, height: int, width: int, step: int
) -> NDArray[Any]:
    kind, code = _PLANAR[encoding]
    halves = kind.startswith("420")
    if width % 2 or (halves and height % 2):
        raise ImageError(f"{encoding} needs an even size, not {width}x{height}")
    rows = height * _PLANE_ROWS[kind] // 2
    # Some drivers count the bytes of all planes as one row's.
    if step * height == len(buffer) == rows * width:
        step = width
    _check_size(buffer, rows, step)
    luma = buffer[: height * step].reshape(height, step)[:, :width]
    chroma = buffer[height * step :]
    if kind == "420 interleaved":
        chroma = chroma.reshape(height // 2, step)[:, :width]
        return _convert(np.concatenate([luma, chroma]), code, encoding)
    if kind == "420 planes":
        if step % 2:
            raise ImageError(f"{encoding} needs an even step, not {step}")
        # Two planes, one after the other: rows of half a step each.
        chroma = chroma.reshape(height, step // 2)[:, : width // 2]
        image = np.concatenate([luma.ravel(), chroma.ravel()])
        return _convert(image.reshape(rows, width), code, encoding)
    image = np.empty((height, width, 2), np.uint8)
    image[:, :, 0] = luma
    if kind == "422 interleaved":
        image[:, :, 1] = chroma.reshape(height, step)[:, :width]
    else:
        # Two chroma bytes a pixel, so a row takes two steps. Every second sample is left out.
        chroma = chroma.reshape(height, 2 * step)[:, : 2 * width]
        image[:, 0::2, 1] = chroma[:, 0::4]
        image[:, 1::2, 1] = chroma[:, 1::4]
    return _convert(image, code, encoding)


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


_NO_COLOURS = re.compile(r"(8S|16U|16S|32S|32U|32F|64F)(C\d*)?|8UC2", re.IGNORECASE)


def _unknown(encoding: str) -> str:
    shown = repr(encoding[:40])
    if _NO_COLOURS.fullmatch(encoding.strip()):
        return (
            f"encoding {shown} holds depth or raw readings and no colours; give a colour or mono "
            "image (mono16 where 16-bit readings are brightness)"
        )
    for known in ENCODINGS:
        if encoding.strip().lower() == known.lower():
            return f"unknown encoding {shown}; the standard name is {known!r}"
    return (
        f"unknown encoding {shown}; have the driver publish one of {', '.join(ENCODINGS)}, or "
        "convert it before"
    )


@_image_errors_only
def decode_compressed(
    data: Any, format: str = "", on_hint: Callable[[str], None] | None = None
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, TIFF or BMP.

    Args:
        data: any buffer of bytes.
        format: of the sensor_msgs/CompressedImage that it came in, if it came in one.
        on_hint: see `to_rgb`.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        ImageError: empty, truncated, damaged, too large, of another kind, or a depth image.
    """
    # image_transport's plugins: "16UC1; png compressed", "32FC1; compressedDepth rvl". Whatever
    # compresses it, depth is no picture.
    words = re.split(r"[;,\s]+", format[:200])
    if "depth" in format.lower() or any(_NO_COLOURS.fullmatch(word) for word in words):
        raise ImageError(
            f"compressed image of format {format[:40]!r} holds depth or raw readings and no "
            "colours; give a colour image's topic"
        )
    # It compresses a Bayer image as it is: its mosaic comes back as a grey image.
    source = words[0]
    is_bayer = source.startswith("bayer_") and source in _LAYOUTS
    image, bits = image_files.decode(_bytes_of(data).tobytes(), grey_as_stored=is_bayer)
    if on_hint is not None and bits == 16 and image.mean() < _DARK * np.iinfo(image.dtype).max:
        on_hint(DARK_HINT)
    if image.ndim == 3:
        return image
    encoding = source.rstrip("0123456789") + str(8 * image.itemsize)
    height, width = image.shape
    image = np.ascontiguousarray(image)
    return to_rgb(image, encoding, height, width, width * image.itemsize, sys.byteorder == "big")
