"""Local descriptors of two images compared: how many agree on one displacement.

SelaVPR (Lu et al., ICLR 2024, section 3.3) re-ranks candidates by the number of mutual nearest
neighbours among local descriptors. Here only those count that agree on where the camera moved: the
cells of two images of one place are displaced alike, those of other places at random. No sampling
is involved, so that every machine counts the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import describe_batch, resize
from hashvpr_ros.errors import ImageError
from hashvpr_ros.imaging import decode_compressed
from hashvpr_ros.map.place_map import PlaceMap

# Candidates that are compared, and what the logarithm of the count weighs beside the cosine. Any
# weight from 0.1 to 0.4 does nearly as well on five real sets (docs/log/local_reranking.md).
COMPARED, WEIGHT = 5, 0.2
_KEPT = 256  # keyframes, of 9 kB each
# Longer side of a thumbnail. At 64 pixels R@1 still rises; shifted views gain nothing any more.
_LEAST_PX = 64


class KeyframeLocals:
    """Local descriptors of keyframes, computed from their thumbnails when they are asked for.

    A map then holds none: they would take more space than all else of a keyframe. The last ones
    are kept in memory.

    Args:
        engine: of the map's model. Used by the thread that asks.
        place_map: the keyframes' map.
    """

    def __init__(self, engine: DescriptorEngine, place_map: PlaceMap) -> None:
        self._engine, self._map = engine, place_map
        self._kept: OrderedDict[int, NDArray[np.int8]] = OrderedDict()

    def of(self, ids: Sequence[int]) -> NDArray[np.int8] | None:
        """Those of some keyframes, int8 [k, rows, columns, V].

        Returns:
            None where the model gives none, or a keyframe has no thumbnail that can be decoded,
            or one of less than 64 pixels.

        Raises:
            MapError: the map is damaged there. EngineError: the engine failed.
        """
        info = self._engine.info
        if info.local_shape is None:
            return None
        missing = [i for i in ids if i not in self._kept]
        images = np.empty((len(missing), info.height, info.width, 3), np.uint8)
        for image, id_ in zip(images, missing, strict=True):
            jpeg = self._map.thumbnail(id_)
            try:
                thumbnail = None if jpeg is None else decode_compressed(jpeg)
            except ImageError:
                return None
            if thumbnail is None or max(thumbnail.shape) < _LEAST_PX:
                return None
            image[:] = resize(thumbnail, info.height, info.width)
        if missing:
            for id_, descriptor in zip(missing, describe_batch(self._engine, images), strict=True):
                assert descriptor.local is not None
                self._kept[id_] = descriptor.local
        found = np.stack([self._kept[i] for i in ids])
        for id_ in ids:
            self._kept.move_to_end(id_)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found


def scores(
    similarities: NDArray[np.float32], query: NDArray[np.int8], candidates: NDArray[np.int8]
) -> NDArray[np.float64]:
    """By which candidates are re-ranked: the cosine, raised by the matches of local descriptors.

    Args:
        similarities: cosines of the float features, float32 [k].
        query, candidates: int8 [rows, columns, V] and [k, rows, columns, V].
    """
    return similarities + WEIGHT * np.log1p(consistent_matches(query, candidates))


def consistent_matches(query: NDArray[np.int8], candidates: NDArray[np.int8]) -> NDArray[np.int64]:
    """How many cells of an image and of each candidate match, and are displaced alike.

    Displacements that differ by one cell are taken together, since cells are coarse.

    Args:
        query: int8 [rows, columns, V].
        candidates: int8 [k, rows, columns, V].

    Returns:
        int64 [k].
    """
    rows, columns, width = query.shape
    count, cells = len(candidates), rows * columns
    if not count:
        return np.zeros(0, np.int64)
    ours = query.reshape(cells, width).astype(np.float32)
    theirs = candidates.reshape(count * cells, width).astype(np.float32)
    similarities = (theirs @ ours.T).reshape(count, cells, cells)
    best_theirs = similarities.argmax(1)  # of each cell of the query, [k, cells]
    best_ours = similarities.argmax(2)
    mutual = np.take_along_axis(best_ours, best_theirs, 1) == np.arange(cells)
    which, cell = np.nonzero(mutual)
    matched = best_theirs[which, cell]
    # A margin of one on each side for the sum over neighbours.
    down = matched // columns - cell // columns + rows
    right = matched % columns - cell % columns + columns
    shape = count, 2 * rows + 1, 2 * columns + 1
    histogram = np.bincount(
        (which * shape[1] + down) * shape[2] + right, minlength=int(np.prod(shape))
    ).reshape(shape)
    sums = histogram[:, :-2] + histogram[:, 1:-1] + histogram[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
    return np.asarray(sums.reshape(count, -1).max(1))
