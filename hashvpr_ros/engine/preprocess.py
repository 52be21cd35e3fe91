"""The one resize: every image reaches an engine through here, live, offline and in training."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.errors import ImageError
from hashvpr_ros.types import Descriptor


def check_rgb(image: NDArray[np.uint8]) -> None:
    """Raise ImageError unless the image is uint8 [H, W, 3] with pixels."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        what = (
            f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image)
        )
        raise ImageError(f"an image must be RGB, uint8 [H, W, 3], not {what}")
    if image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image must be RGB with at least one pixel, not {list(image.shape)}")


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to the engine's input, without keeping the aspect.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        uint8 [height, width, 3], contiguous; the image itself where it fits already.

    Raises:
        ImageError: another type or shape.
    """
    check_rgb(image)
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return np.ascontiguousarray(image)
    # Averaging when shrinking keeps fine texture from aliasing into noise; it does not enlarge.
    shrinks = h >= height and w >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(image, (width, height), interpolation=method))


def describe_image(engine: DescriptorEngine, image: NDArray[np.uint8]) -> Descriptor:
    """The descriptor of one image of any size, RGB, uint8 [H, W, 3].

    Raises:
        ImageError: not such an image. EngineError: the engine failed.
    """
    batch = resize(image, engine.info.height, engine.info.width)[np.newaxis]
    return describe_batch(engine, batch)[0]


def describe_batch(engine: DescriptorEngine, images: NDArray[np.uint8]) -> list[Descriptor]:
    """The descriptors of images of the engine's size, with local ones where it gives them.

    Args:
        images: uint8 [N, H, W, 3], RGB.

    Raises:
        EngineError: another shape or dtype, or the engine failed.
    """
    if engine.info.local_shape is not None:
        return engine.descriptors(images)
    codes, features = engine.describe(images)
    return [Descriptor(c, f) for c, f in zip(codes, features, strict=True)]
