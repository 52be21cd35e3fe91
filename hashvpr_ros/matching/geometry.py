"""Whether two images can be views of one scene: corners, and the epipolar geometry they obey.

ORB features (Rublee et al., ICCV 2011) of the image and of a keyframe's thumbnail, matched both by
Lowe's ratio, and an essential matrix by OpenCV's USAC with MAGSAC++ (Barath et al., CVPR 2020).
Thumbnails are small, so that this is a weak witness; it sees what the descriptors do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ImageError
from hashvpr_ros.imaging import decode_compressed
from hashvpr_ros.types import Geometry

_SIDE_PX = 320  # both images are brought to it: corners of one scale are compared
_LEAST_SIDE_PX = 64  # ORB looks at no corner nearer to the edge than 31 px
_FEATURES = 500
_RATIO = 0.8
_LEAST_MATCHES = 8  # five make an essential matrix; fewer than these say nothing
_THRESHOLD_PX = 1.5  # of an inlier, from its epipolar line
_CONFIDENCE = 0.999


class GeometricCheck:
    """Compares images with thumbnails."""

    def __init__(self) -> None:
        self._orb = cv2.ORB.create(_FEATURES)
        self._matcher = cv2.BFMatcher(cv2.NORM_HAMMING)

    def compare(
        self,
        image: NDArray[np.uint8] | None,
        thumbnail: bytes | None,
        field_of_view_rad: float,
    ) -> Geometry | None:
        """How an image lies to a keyframe.

        Args:
            image: RGB, uint8 [H, W, 3], of any size; None: there is none.
            thumbnail: JPEG of the keyframe; None: it has none.
            field_of_view_rad: horizontal, of both cameras; lenses are taken for pinholes.

        Returns:
            None where nothing can be compared: one is missing, or the thumbnail is damaged.
        """
        if image is None or thumbnail is None:
            return None
        try:
            stored = decode_compressed(thumbnail)
        except ImageError:
            return None
        there, there_k, there_d = self._features(stored, field_of_view_rad)
        here, here_k, here_d = self._features(image, field_of_view_rad)
        matches = self._match(there_d, here_d)
        if len(matches) < _LEAST_MATCHES:
            return Geometry(0)
        # On the plane one unit ahead, where one camera matrix serves both images.
        a = (there[[m.queryIdx for m in matches]] - there_k[1:]) / there_k[0]
        b = (here[[m.trainIdx for m in matches]] - here_k[1:]) / here_k[0]
        essential, mask = cv2.findEssentialMat(
            a, b, np.eye(3), method=cv2.USAC_MAGSAC, prob=_CONFIDENCE,
            threshold=_THRESHOLD_PX / max(there_k[0], here_k[0]),
        )  # fmt: skip
        if essential is None or essential.shape != (3, 3) or mask is None:
            return Geometry(0)
        inliers = int(mask.sum())
        if inliers < _LEAST_MATCHES:
            return Geometry(inliers)
        _, turn, step, _ = cv2.recoverPose(essential, a, b, np.eye(3), mask=mask.copy())
        ahead, stands = turn[2], -turn.T @ step[:, 0]  # of the query, in the keyframe's camera
        return Geometry(
            inliers,
            math.atan2(-ahead[0], ahead[2]),
            math.atan2(-stands[0], stands[2]),
        )

    def _features(
        self, image: NDArray[np.uint8], field_of_view_rad: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8] | None]:
        """Corners [n, 2], focal length and centre in pixels, descriptors uint8 [n, 32]."""
        height, width = image.shape[:2]
        scale = _SIDE_PX / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
        grey = cv2.cvtColor(cv2.resize(image, size, interpolation=how), cv2.COLOR_RGB2GRAY)
        corners: Sequence[cv2.KeyPoint] = ()
        descriptors = None
        if min(size) >= _LEAST_SIDE_PX:  # of less OpenCV cannot make its pyramid
            corners, descriptors = self._orb.detectAndCompute(grey, None)
        focal_px = 0.5 * size[0] / math.tan(0.5 * field_of_view_rad)
        camera = np.array([focal_px, 0.5 * size[0], 0.5 * size[1]])
        points = np.array([c.pt for c in corners], np.float64).reshape(-1, 2)
        return points, camera, descriptors

    def _match(self, a: NDArray[np.uint8] | None, b: NDArray[np.uint8] | None) -> list[cv2.DMatch]:
        """Corners of one image with those of another, each in one match at most."""
        if a is None or b is None:
            return []
        # Of a plain query's few corners each is the nearest to many of a rich thumbnail, and one
        # point that all of them match is an epipole, which bears out any of them.
        best: dict[int, cv2.DMatch] = {}
        for pair in self._matcher.knnMatch(a, b, k=2):
            if len(pair) < 2 or pair[0].distance >= _RATIO * pair[1].distance:
                continue
            match = pair[0]
            if match.trainIdx not in best or match.distance < best[match.trainIdx].distance:
                best[match.trainIdx] = match
        return list(best.values())
