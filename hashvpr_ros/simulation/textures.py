"""Procedural facades, ground and sky: what makes one stretch of the course look like no other."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Texture = NDArray[np.uint8]  # [H, W, 3], RGB


def facade(length_m: float, height_m: float, px_per_m: float, rng: np.random.Generator) -> Texture:
    """A row of buildings, unrolled: uint8 [height, length, 3], its top row the roof's."""
    width, height = round(length_m * px_per_m), round(height_m * px_per_m)
    image = np.zeros((height, width, 3), np.uint8)
    left = 0
    while left < width:
        right = min(width, left + round(rng.uniform(3.5, 8.0) * px_per_m))
        if width - right < 2 * px_per_m:
            right = width
        _building(image[:, left:right], px_per_m, rng)
        left = right
    grain = rng.normal(0, 9, (height, width, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, low: int = 40, high: int = 230) -> tuple[int, int, int]:
    r, g, b = rng.integers(low, high, 3).tolist()
    return r, g, b


def _building(image: Texture, px_per_m: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    base = np.array(_colour(rng, 70, 210))
    image[:] = base
    _courses(image, base, px_per_m, rng)
    kind = rng.integers(4)
    if kind < 3:
        _windows(image, px_per_m, rng)
    if kind != 2:
        w = round(rng.uniform(0.8, 1.6) * px_per_m)
        x = int(rng.integers(0, max(1, width - w)))
        door = _colour(rng, 20, 170)
        cv2.rectangle(image, (x, round(height - 2.1 * px_per_m)), (x + w, height), door, -1)
        cv2.rectangle(image, (x, round(height - 2.1 * px_per_m)), (x + w, height), (25, 25, 25), 2)
    for _ in range(int(rng.integers(0, 3))):
        _poster(image, px_per_m, rng)
    if rng.random() < 0.4:
        _bush(image, px_per_m, rng)


def _courses(image: Texture, base: NDArray, px_per_m: float, rng: np.random.Generator) -> None:
    """Bricks, boards or plaster."""
    height, width = image.shape[:2]
    dark = tuple(int(v) for v in base * rng.uniform(0.6, 0.85))
    kind = rng.integers(3)
    step = max(3, round(rng.uniform(0.12, 0.4) * px_per_m))
    if kind == 0:
        for row, y in enumerate(range(0, height, step)):
            cv2.line(image, (0, y), (width, y), dark, 1)
            for x in range((row % 2) * step, width, 2 * step):
                cv2.line(image, (x, y), (x, min(height, y + step)), dark, 1)
    elif kind == 1:
        for x in range(0, width, step):
            cv2.line(image, (x, 0), (x, height), dark, 1)
    else:
        patches = cv2.resize(
            rng.normal(0, 1, (4, max(2, width // 30))),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        image[:] = np.clip(image + 16 * patches[..., None], 0, 255)


def _windows(image: Texture, px_per_m: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    w, h = (round(v * px_per_m) for v in rng.uniform((0.6, 0.7), (1.6, 1.5)))
    gap = round(rng.uniform(0.4, 1.5) * px_per_m)
    glass, frame = _colour(rng, 20, 150), _colour(rng, 120, 255)
    top = round(rng.uniform(0.3, 1.2) * px_per_m)
    for y in range(top, height - h - round(0.8 * px_per_m), h + gap):
        for x in range(gap // 2, width - w, w + gap):
            shade = tuple(int(v * rng.uniform(0.6, 1.2)) % 256 for v in glass)
            cv2.rectangle(image, (x, y), (x + w, y + h), shade, -1)
            cv2.rectangle(image, (x, y), (x + w, y + h), frame, 2)
            if rng.random() < 0.7:
                cv2.line(image, (x + w // 2, y), (x + w // 2, y + h), frame, 1)


def _poster(image: Texture, px_per_m: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    w, h = (round(v * px_per_m) for v in rng.uniform((0.6, 0.5), (2.2, 1.4)))
    x = int(rng.integers(0, max(1, width - w)))
    y = int(rng.integers(round(0.3 * height), max(round(0.3 * height) + 1, height - h)))
    cv2.rectangle(image, (x, y), (x + w, y + h), _colour(rng, 0, 255), -1)
    for _ in range(int(rng.integers(2, 6))):
        centre = (x + int(rng.integers(0, w)), y + int(rng.integers(0, h)))
        size = max(2, int(rng.integers(1, max(2, h // 3))))
        if rng.random() < 0.5:
            cv2.circle(image, centre, size, _colour(rng, 0, 255), -1)
        else:
            text = "".join(rng.choice(list("ABCDEHKLMNOPRSTUVXZ0123456789"), 4))
            scale = px_per_m / 60
            cv2.putText(
                image,
                text,
                centre,
                cv2.FONT_HERSHEY_SIMPLEX,
                scale,
                _colour(rng, 0, 255),
                2,
                cv2.LINE_AA,
            )


def _bush(image: Texture, px_per_m: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    x0 = int(rng.integers(0, width))
    for _ in range(60):
        x = x0 + int(rng.normal(0, 0.6 * px_per_m))
        y = height - int(abs(rng.normal(0, 0.6 * px_per_m)))
        green = (int(rng.integers(10, 70)), int(rng.integers(60, 150)), int(rng.integers(10, 60)))
        cv2.circle(image, (x, y), max(1, int(rng.integers(2, 6) * px_per_m / 40)), green, -1)


def ground(side_px: int, rng: np.random.Generator) -> Texture:
    """Asphalt with patches and stains, square."""
    coarse = cv2.resize(
        rng.normal(0, 1, (60, 60)), (side_px, side_px), interpolation=cv2.INTER_CUBIC
    )
    fine = rng.normal(0, 1, (side_px, side_px))
    grey = 95 + 14 * coarse + 7 * fine
    image = np.repeat(grey[..., None], 3, 2)
    image = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
    for _ in range(side_px // 6):
        centre = tuple(rng.integers(0, side_px, 2).tolist())
        size = tuple(int(v) for v in rng.integers(2, max(3, side_px // 90), 2))
        shade = int(rng.integers(50, 150))
        cv2.ellipse(image, centre, size, float(rng.uniform(0, 180)), 0, 360, (shade,) * 3, -1)
    return image


def sky(width_px: int, height_px: int, rng: np.random.Generator) -> Texture:
    """A panorama of clouds that closes on itself."""
    noise = np.zeros((height_px, width_px))
    for octave in range(1, 5):
        cells = rng.normal(0, 1, (2**octave, 2 ** (octave + 1)))
        cells = np.hstack([cells, cells[:, :1]])
        layer = cv2.resize(
            cells, (width_px + width_px // 8, height_px), interpolation=cv2.INTER_CUBIC
        )
        noise += layer[:, :width_px] / 2**octave
    cloud = np.clip(noise * 0.5 + 0.4, 0, 1)[..., None]
    fade = np.linspace(0, 1, height_px)[:, None, None]
    blue = np.array([95, 145, 215]) * (1 - fade) + np.array([190, 210, 230]) * fade
    return np.clip(blue * (1 - cloud) + 238 * cloud, 0, 255).astype(np.uint8)
