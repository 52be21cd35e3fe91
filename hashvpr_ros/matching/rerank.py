"""Two-stage matching: Hamming candidates, ordered by their float features.

SelaVPR++ (Lu et al., TPAMI 2026), section on retrieval: binary codes find the k nearest, and the
similarity of global float features orders them. Where an image is judged by itself, local
descriptors order the best of them once more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching import local
from hashvpr_ros.types import Candidate, Descriptor


def rerank(
    place_map: PlaceMap,
    ids: NDArray[np.int32],
    distances: NDArray[np.int32],
    feature: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Order candidates by the cosine of their float features.

    Args:
        ids, distances: int32 [k], from `PlaceMap.search`.
        feature: of the query, L2-normalised, float32 [D].

    Returns:
        order: indices into `ids`, best first; ties by distance, then id, so that it is determined.
        similarities: float32 [k], in the order of `ids`.
    """
    ascending = np.argsort(ids)
    similarities = np.empty(len(ids), np.float32)
    similarities[ascending] = place_map.features(ids[ascending]) @ feature
    return np.lexsort((ids, distances, -similarities)), similarities


def rerank_locally(
    keyframes: local.KeyframeLocals,
    ids: NDArray[np.int32],
    similarities: NDArray[np.float32],
    descriptor: Descriptor,
) -> NDArray[np.intp]:
    """Order the best candidates once more by their local descriptors.

    Args:
        keyframes: local descriptors of the map.
        ids, similarities: of the candidates, best first, int32 [k] and float32 [k].
        descriptor: of the query.

    Returns:
        indices into `ids`, best first; as they are where the model gives no local descriptors, or
        a keyframe among the best has no thumbnail.

    Raises:
        MapError: the map is damaged. EngineError: the engine failed.
    """
    order = np.arange(len(ids))
    best = ids[: local.COMPARED]
    if descriptor.local is None or not len(best):
        return order
    held = keyframes.of(best.tolist())
    if held is None:
        return order
    scores = local.scores(similarities[: len(best)], descriptor.local, held)
    order[: len(best)] = np.argsort(-scores, kind="stable")
    return order


def candidates(
    ids: NDArray[np.int32],
    distances: NDArray[np.int32],
    order: NDArray[np.intp],
    similarities: NDArray[np.float32],
) -> tuple[Candidate, ...]:
    """What search and re-ranking found, best first."""
    columns = zip(
        ids[order].tolist(),
        distances[order].tolist(),
        similarities[order].tolist(),
        order.tolist(),
        range(len(order)),
        strict=True,
    )
    return tuple(Candidate(*row) for row in columns)
