"""JPEG, PNG, WebP, TIFF and BMP to pixels, whoever made the bytes.

Each kind is read in two steps. First its structure is checked here: its size and the work that it
asks for are bounded, and damage that can be found is found. Then a library decodes what is left.
So a decoder works on little that it could complain about on the process's standard error, where
libjpeg and libpng write a line for every damaged image.

JPEGs are decoded by simplejpeg (libjpeg-turbo), whose pixels equal OpenCV's. Unlike OpenCV it
reports libjpeg's warnings, which are the only word that an image lacks data: libjpeg fills what
is missing with grey.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from hashvpr_ros.errors import ImageError, reason_of

# A frame of 8K video (7680 x 4320) fits. More than any robot's camera has, and less than what a
# hostile header could make a process allocate or compute.
MAX_PIXELS = 1 << 25
MAX_BYTES = 64_000_000  # of a compressed image

_KINDS = "JPEG, PNG, WebP, TIFF or BMP"
_OTHERS: dict[bytes, str] = {
    b"GIF8": "a GIF",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?": "a Radiance HDR image",
    b"II+\x00": "a BigTIFF",
    b"MM\x00+": "a BigTIFF",
    **{b"P%d" % i: "a PNM image (PBM, PGM, PPM)" for i in range(1, 8)},
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"<svg": "an SVG drawing",
    b"%PDF": "a PDF",
    b"\x00\x00\x00\x01": "a frame of H.264 or H.265 video",
    b"version https://git-lfs": "the pointer of a Git LFS file",
    b"<!": "a web page",
    b"<html": "a web page",
}


class Pixels(NamedTuple):
    """A decoded image: uint8 [H, W, 3] RGB or, where it was asked for, grey [H, W] as stored."""

    image: NDArray[Any]
    bits: int  # per channel, in the file


class _Checked(NamedTuple):
    """An image whose structure is sound so far, and what remains to be decoded."""

    data: bytes
    width: int
    height: int
    # Time to decode a pixel, where 1 is a pixel of a plain JPEG.
    cost: float = 1.0
    grey: bool = False
    bits: int = 8
    # JPEG only
    by_opencv: bool = False
    channels: int = 3
    was_cut: bool = False


def decode(raw: bytes, grey_as_stored: bool = False) -> Pixels:
    """Decode a JPEG, PNG, WebP, TIFF or BMP.

    Args:
        grey_as_stored: give grey images of 8 or 16 bits as they are, uint8 or uint16 [H, W].

    Raises:
        ImageError: of another kind, empty, truncated, damaged, or too large.
        Exception: whatever OpenCV raises; `imaging` makes an ImageError of it.
    """
    if not raw:
        raise ImageError("compressed image without data; check the publisher")
    if len(raw) > MAX_BYTES:
        raise ImageError(
            f"compressed image of {len(raw) / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f} MB; "
            "scale it down"
        )
    check = next((c for magic, c in _CHECKS.items() if raw.startswith(magic)), None)
    if check is None:
        raise _of_another_kind(raw)
    kind = check.__doc__
    try:
        checked = check(raw)
    except (struct.error, IndexError):
        raise ImageError(f"truncated {kind} image: it ends within its header") from None
    width, height = checked.width, checked.height
    if width <= 0 or height <= 0:
        raise ImageError(f"{kind} image of {width}x{height} has no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{kind} image of {width}x{height} has more than {MAX_PIXELS / 1e6:.0f} Mpx; scale it "
            "down"
        )
    if width * height * checked.cost > MAX_PIXELS:
        raise ImageError(
            f"{kind} image of {width}x{height} takes too long to decode, because it has many "
            "scans, bits or channels; scale it down, or save it as a plain JPEG"
        )
    grey = grey_as_stored and checked.grey
    if kind == "JPEG":
        image = _decode_jpeg(checked, grey)
    else:
        image = _decode_by_opencv(checked.data, kind, grey)
    if image.shape[:2] not in ((height, width), (width, height)):  # turned by its orientation
        raise ImageError(f"damaged {kind} image: its size is not the one in its header")
    return Pixels(image, checked.bits)


def _of_another_kind(raw: bytes) -> ImageError:
    name = next((name for magic, name in _OTHERS.items() if raw.startswith(magic)), None)
    if raw[4:8] == b"ftyp":
        name = "an AVIF or HEIF image, or a video"
    if name is None:
        return ImageError(f"compressed image that is no {_KINDS}; check the publisher or the file")
    return ImageError(f"compressed image that is {name}, no {_KINDS}; convert it to one of these")


def _decode_by_opencv(data: bytes, kind: str | None, grey: bool) -> NDArray[Any]:
    flags = cv2.IMREAD_UNCHANGED if grey else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ImageError(f"damaged {kind} image: OpenCV cannot decode it")
    return image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _silence_opencv() -> None:
    """OpenCV writes a line for each image that it refuses; here it is an ImageError.

    Versions as old as 4.6 still write one about a damaged BMP or TIFF.
    """
    logging = getattr(cv2.utils, "logging", None)  # OpenCV 5
    set_level = getattr(logging, "setLogLevel", None) or getattr(cv2, "setLogLevel", None)
    if set_level is not None:
        set_level(0)


_silence_opencv()

# JPEG

# The next marker that begins a segment. Fill bytes, stuffed zeros, restart markers and TEM, which
# stand among the pixels or mean nothing, are skipped.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_MOST_SEGMENTS = 1000
_MOST_SCANS = 64  # libjpeg writes 10, other encoders some 20
_SCANS_A_PIXEL = 4  # as many scans of a progressive JPEG take the time of a plain one
# Some webcams leave a few bytes between the last pixel and the end marker.
_EXTRA = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_MOST_EXTRA_BYTES = 16


def _jpeg(raw: bytes) -> _Checked:
    """JPEG"""
    size: tuple[int, int] | None = None
    progressive = has_exif = all_in_one = False
    components = scans = 0
    end = -1
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(raw, at)
        if found is None:
            break
        marker, at = raw[found.start() + 1], found.end()
        if marker == 0xD9:
            end = at
            break
        if marker == 0xD8:
            raise ImageError("damaged JPEG image: a second one begins within it")
        (length,) = struct.unpack_from(">H", raw, at)
        if marker in _FRAMES:
            if size is not None:
                raise ImageError("damaged JPEG image: it has two frame headers")
            precision, height, width, components = struct.unpack_from(">BHHB", raw, at + 2)
            size = (width, height)
            if _FRAMES[marker] or precision != 8:
                what = _FRAMES[marker] or f"{precision}-bit"
                raise ImageError(f"{what} JPEG image; save it as a plain JPEG of 8 bits")
            progressive = marker == 0xC2
        elif marker == 0xDA:
            if size is None:
                raise ImageError("damaged JPEG image: its pixels come before its header")
            scans += 1
            all_in_one = scans == 1 and raw[at + 2] == components
        elif marker == 0xE1:
            has_exif |= raw.startswith(b"Exif\0", at + 2)
        at += max(length, 2)
    else:
        raise ImageError(f"JPEG image of more than {_MOST_SEGMENTS} segments; save it again")
    if size is None or scans == 0:
        raise ImageError("truncated JPEG image: it ends before its pixels")
    if scans > _MOST_SCANS:
        raise ImageError(f"JPEG image of {scans} scans; save it as a plain JPEG")
    if end < 0:
        # Some cameras leave the end marker out. Of an image in one scan libjpeg says whether all
        # pixels are there. Of several scans, those that lack could not be told.
        if progressive or not all_in_one:
            raise ImageError("truncated JPEG image: it has no end marker")
        data = raw.rstrip(b"\0")  # a buffer of fixed size ends in zeros
        if len(raw) - len(data) == 1:  # and so may the last pixel
            data = raw
        data += b"\xff\xd9"
    else:
        data = raw[:end]  # phones append a second image
    cost = max(1.0, scans / _SCANS_A_PIXEL) if progressive else float(scans)
    return _Checked(
        data, *size, cost, components == 1, 8, has_exif or components == 4, components, end < 0
    )


# Frame headers, and why those that are not read are not.
_FRAMES = {
    **{0xC0 + i: "lossless or hierarchical" for i in range(16) if i not in (4, 8, 12)},
    0xC9: "arithmetically coded",
    0xCA: "arithmetically coded",
    0xC0: "",
    0xC1: "",
    0xC2: "",
}


def _decode_jpeg(checked: _Checked, grey: bool) -> NDArray[np.uint8]:
    colours = "CMYK" if checked.channels == 4 else "GRAY" if grey else "RGB"
    try:
        image = simplejpeg.decode_jpeg(checked.data, colours)
    except ValueError as e:
        reason = reason_of(e)
        extra = _EXTRA.match(reason)
        # OpenCV, which some are left to, would write a line about each.
        if extra is None or int(extra[1]) > _MOST_EXTRA_BYTES or checked.by_opencv:
            if checked.was_cut:
                reason = "it has no end marker, and its pixels are not complete"
            what = "truncated" if checked.was_cut else "damaged"
            raise ImageError(f"{what} JPEG image: {reason}") from None
        image = simplejpeg.decode_jpeg(checked.data, colours, strict=False)
    if grey:
        return image[:, :, 0]
    # OpenCV turns an image as its Exif data says, and converts CMYK. It is slower, as the image is
    # decoded twice, but libjpeg has nothing to write about any more.
    return _decode_by_opencv(checked.data, "JPEG", False) if checked.by_opencv else image


# PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 50_000  # libpng writes chunks of 8 kB
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Interlaced: first column and row, and steps, of each pass.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_WHOLE = ((0, 0, 1, 1),)


def _png(raw: bytes) -> _Checked:
    """PNG"""
    length, kind, width, height, bits, colour, packing, filtering, interlaced = struct.unpack_from(
        ">I4sIIBBBBB", raw, len(_PNG)
    )
    if (length, kind) != (13, b"IHDR") or bits not in _PNG_BITS.get(colour, ()):
        raise ImageError("damaged PNG image: its header makes no sense")
    if packing or filtering or interlaced > 1:
        raise ImageError("damaged PNG image: its header makes no sense")
    channels = _PNG_CHANNELS[colour]
    # Inflating takes time for each byte.
    cost = max(1.0, channels * bits / 16) * (1.5 if interlaced else 1.0)
    checked = _Checked(b"", width, height, cost, colour == 0 and bits >= 8, bits)
    if not 0 < width * height * cost <= MAX_PIXELS:
        return checked  # to be refused
    kept, pixels = _png_chunks(raw)
    if colour == 3:
        palette = kept.get(b"PLTE", b"")[: 3 << bits]
        kept[b"PLTE"] = palette.ljust(3 << bits, b"\0")  # so that every pixel has a colour
    else:
        kept.pop(b"PLTE", None)
    sizes = []  # rows and bytes a row, of each pass
    for x, y, dx, dy in _ADAM7 if interlaced else _WHOLE:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            sizes.append((rows, 1 + -(-columns * bits * channels // 8)))
    lines = _inflate(pixels, sum(rows * size for rows, size in sizes))
    at = 0
    for rows, size in sizes:
        if np.frombuffer(lines, np.uint8, rows * size, at)[::size].max() > 4:  # filters
            raise ImageError("damaged PNG image: its pixels make no sense")
        at += rows * size
    chunks = {**kept, b"IDAT": zlib.compress(lines, 0), b"IEND": b""}
    return checked._replace(data=_PNG + b"".join(_chunk(k, body) for k, body in chunks.items()))


def _png_chunks(raw: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """The chunks that pixels need, and the compressed pixels.

    Compressed text, colour profiles and animations are left out, so that no decoder meets them.
    """
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    at = len(_PNG)
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">I4s", raw, at)
        if at + 12 + length > len(raw):
            raise ImageError("truncated PNG image: it has no end chunk")
        if kind == b"IEND":
            return kept, pixels
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"eXIf"):
            body = raw[at + 8 : at + 8 + length]
            (wanted,) = struct.unpack_from(">I", raw, at + 8 + length)
            if zlib.crc32(body, zlib.crc32(kind)) != wanted:
                raise ImageError("damaged PNG image: a checksum does not match")
            if kind == b"IDAT":
                pixels.append(body)
            else:
                kept.setdefault(kind, body)
        at += 12 + length
    raise ImageError(f"PNG image of more than {_MOST_CHUNKS} chunks; save it again")


def _inflate(parts: list[bytes], size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        lines = inflater.decompress(b"".join(parts), size + 1)
    except zlib.error:
        raise ImageError("damaged PNG image: its pixels cannot be inflated") from None
    if len(lines) < size:
        raise ImageError("truncated PNG image: its pixels are not complete")
    return lines[:size]


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


# WebP


def _webp(raw: bytes) -> _Checked:
    """WebP"""
    (size,) = struct.unpack_from("<I", raw, 4)
    if raw[8:12] != b"WEBP":
        raise ImageError(f"compressed image that is no {_KINDS}; check the publisher or the file")
    if size + 8 > len(raw):
        raise ImageError("truncated WebP image: it is shorter than its header says")
    kind = raw[12:16]
    if kind == b"VP8X":
        packed = int.from_bytes(raw[24:30].ljust(6, b"\0"), "little")
        width, height = (packed & 0xFFFFFF) + 1, (packed >> 24) + 1
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", raw, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", raw, 26))
    return _Checked(raw, width, height, 4.0)


# TIFF

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_TIFF_PACKINGS = (1, 2, 3, 4, 5, 8, 32773, 32946)  # none, fax, LZW, deflate, PackBits
_MOST_TAGS = 1000
_MOST_STRIPS = 1 << 17


def _tiff(raw: bytes) -> _Checked:
    """TIFF"""
    order = "<" if raw[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", raw, 4)
    (count,) = struct.unpack_from(order + "H", raw, at)
    if count > _MOST_TAGS:
        raise ImageError("damaged TIFF image: it has too many tags")
    tags: dict[int, tuple[int, ...]] = {}
    for i in range(count):
        tag, kind, n = struct.unpack_from(order + "HHI", raw, at + 2 + 12 * i)
        if tag not in _TIFF_TAGS:
            continue
        if kind not in _TIFF_TYPES or not 0 < n <= _MOST_STRIPS:
            raise ImageError(f"damaged TIFF image: its tag {tag} makes no sense")
        form = f"{order}{n}{_TIFF_TYPES[kind]}"
        start = at + 10 + 12 * i
        if struct.calcsize(form) > 4:
            (start,) = struct.unpack_from(order + "I", raw, start)
        tags[tag] = struct.unpack_from(form, raw, start)
    (width,), (height,) = tags.get(256, (0,))[:1], tags.get(257, (0,))[:1]
    channels, bits = tags.get(277, (1,))[0], max(tags.get(258, (1,)))
    if any(form != 1 for form in tags.get(339, ())) or bits not in (1, 2, 4, 8, 16):
        raise ImageError(
            f"TIFF image of {bits}-bit values that are no brightness; give a colour or mono image "
            "of 8 or 16 bits"
        )
    if tags.get(259, (1,))[0] not in _TIFF_PACKINGS:
        raise ImageError("TIFF image compressed in a way that is not read; save it as PNG")
    if not 1 <= channels <= 4:
        raise ImageError(f"TIFF image of {channels} channels; give a colour or mono image")
    if any(side > 1 << 14 for tag in (322, 323) for side in tags.get(tag, ())):
        raise ImageError("TIFF image of tiles that are too large; save it as PNG")
    starts, lengths = tags.get(273, tags.get(324)), tags.get(279, tags.get(325))
    if starts is None or lengths is None or len(starts) != len(lengths) or 262 not in tags:
        raise ImageError("damaged TIFF image: it does not say what and where its pixels are")
    if any(start + length > len(raw) for start, length in zip(starts, lengths, strict=True)):
        raise ImageError("truncated TIFF image: its pixels are not complete")
    cost = max(1.0, channels * bits / 16)
    return _Checked(raw, width, height, cost, channels == 1 and bits >= 8, bits)


# Size, bits, packing, colours, where the strips or tiles are, channels, size of tiles, kind of
# numbers.
_TIFF_TAGS = {256, 257, 258, 259, 262, 273, 277, 279, 322, 323, 324, 325, 339}

# BMP


def _bmp(raw: bytes) -> _Checked:
    """BMP"""
    _, _, start, header = struct.unpack_from("<IIII", raw, 2)
    if header == 12:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", raw, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", raw, 18)
    height = abs(height)
    if packing in (0, 3):
        size = start + (width * bits + 31) // 32 * 4 * height
    else:
        (size,) = struct.unpack_from("<I", raw, 2)
    if size > len(raw):
        raise ImageError("truncated BMP image: it is shorter than its header says")
    return _Checked(raw, width, height)


_CHECKS: dict[bytes, Callable[[bytes], _Checked]] = {
    b"\xff\xd8": _jpeg,
    _PNG: _png,
    b"RIFF": _webp,
    b"II*\x00": _tiff,
    b"MM\x00*": _tiff,
    b"BM": _bmp,
}
