"""Random cameras: what makes one place look different from elsewhere or at another time.

Viewpoint: yaw as a change of perspective, zoom, shift, a little pitch and roll, occlusion. Camera
and light: gain, gamma, contrast, colour cast, grey, blur, noise, vignette, the black circle of a
fisheye lens, black borders.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_FIELD_OF_VIEW = 70.0  # degrees, of the camera that took an image: an assumption


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
    if rng.random() < 0.85:
        image = _viewpoint(image, rng)
    if rng.random() < 0.35:
        image = _occlude(image, rng)
    looked = _light(image.astype(np.float32) / 255, rng)
    looked = _frame(looked, u, v, rng)
    noise = rng.normal(0, rng.uniform(0, 8) / 255, looked.shape)
    return (np.clip(looked + noise, 0, 1) * 255).astype(np.uint8)


def _viewpoint(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image from a camera that is turned, tilted, moved and nearer to the scene.

    The scene is taken for a plane. Two viewpoints overlap by 60 % or more of their width.
    """
    height, width = image.shape[:2]
    zoom = rng.uniform(0.6, 1.0)
    shift_u = rng.uniform(-1, 1) * min(0.2, (1 - zoom) / 2 + 0.06) * width
    shift_v = rng.uniform(-1, 1) * min(0.08, (1 - zoom) / 2 + 0.02) * height
    yaw, pitch, roll = np.deg2rad([rng.uniform(-22, 22), *rng.uniform(-5, 5, 2)])
    focal = 0.5 * width / np.tan(np.deg2rad(_FIELD_OF_VIEW / 2))
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    turn = np.eye(3)
    for axis in ((0.0, yaw, 0.0), (pitch, 0.0, 0.0), (0.0, 0.0, roll)):
        turn = turn @ cv2.Rodrigues(np.array(axis))[0]
    tilted = camera @ turn @ np.linalg.inv(camera)
    # Back to the middle of the image, so that the yaw only changes the perspective.
    middle = tilted @ np.array([width / 2, height / 2, 1])
    moved_u, moved_v = middle[0] / middle[2] + shift_u, middle[1] / middle[2] + shift_v
    to_middle = np.array([[1, 0, -moved_u], [0, 1, -moved_v], [0, 0, 1]])
    enlarged = np.array([[1 / zoom, 0, width / 2], [0, 1 / zoom, height / 2], [0, 0, 1]])
    return cv2.warpPerspective(
        image,
        enlarged @ to_middle @ tilted,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _occlude(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Up to two boxes before the scene, of one colour or of another part of the image."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(rng.integers(0, 3)):
        tall, wide = int(height * rng.uniform(0.15, 0.5)), int(width * rng.uniform(0.08, 0.25))
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        box = (slice(top, top + tall), slice(left, left + wide))
        if rng.random() < 0.5:
            image[box] = rng.integers(0, 255, 3)
        else:
            image[box] = np.roll(image, width // 2, 1)[box]
    return image


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
