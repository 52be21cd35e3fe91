"""Random cameras: what makes the same place look different to another camera or at another time.

Gain, gamma, contrast, colour cast, grey, blur, noise, vignette, the black circle of a fisheye
lens, black borders, radial distortion, a small zoom, shift and roll. A descriptor learned
under these puts places apart within one domain, where all images share one camera's look.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def random_camera(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image as a random camera would have taken it.

    Args:
        image: RGB, uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = 2 * u / width - 1, 2 * v / height - 1  # -1 to 1
    looked = _geometry(image, u, v, rng).astype(np.float32) / 255
    looked = _light(looked, rng)
    looked = _frame(looked, u, v, rng)
    noise = rng.normal(0, rng.uniform(0, 8) / 255, looked.shape)
    return (np.clip(looked + noise, 0, 1) * 255).astype(np.uint8)


def _geometry(
    image: NDArray[np.uint8], u: NDArray, v: NDArray, rng: np.random.Generator
) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    roll = np.deg2rad(rng.uniform(-4, 4))
    bend = rng.uniform(-0.25, 0.35) if rng.random() < 0.4 else 0.0
    zoom = rng.uniform(0.8, 1.0)
    shift_u, shift_v = rng.uniform(-1, 1, 2) * (1 - zoom)
    radial = zoom * (1 + bend * (u * u + v * v)) / (1 + max(bend, 0.0))
    aspect = height / width
    to_u = (np.cos(roll) * u - np.sin(roll) * v * aspect) * radial + shift_u
    to_v = (np.sin(roll) * u / aspect + np.cos(roll) * v) * radial + shift_v
    return cv2.remap(
        image,
        ((to_u + 1) * width / 2).astype(np.float32),
        ((to_v + 1) * height / 2).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _light(image: NDArray, rng: np.random.Generator) -> NDArray:
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2.0))
    contrast, gamma = np.exp(rng.uniform(-0.4, 0.3)), np.exp(rng.uniform(-0.6, 0.6))
    gain = np.exp(rng.uniform(-0.35, 0.35)) * np.exp(rng.uniform(-0.15, 0.15, 3))
    image = np.clip((image - 0.5) * contrast + 0.5, 0, 1) ** gamma * gain
    if rng.random() < 0.2:
        image = np.repeat(image.mean(2, keepdims=True), 3, 2)
    return image


def _frame(image: NDArray, u: NDArray, v: NDArray, rng: np.random.Generator) -> NDArray:
    height, width = image.shape[:2]
    if rng.random() < 0.6:
        image = image * (1 - rng.uniform(0, 0.3) * (u * u + v * v))[..., None]
    if rng.random() < 0.4:
        radius = np.hypot(u, v * height / width)
        edge = rng.uniform(0.75, 1.15)
        image = image * np.clip((edge - radius) * 30, 0, 1)[..., None]
    if rng.random() < 0.25:
        left, top, right, bottom = rng.uniform(0, 0.12, 4)
        inside = np.zeros((height, width, 1))
        inside[
            int(top * height) : int((1 - bottom) * height),
            int(left * width) : int((1 - right) * width),
        ] = 1
        image = image * inside
    return image
