"""Another model's descriptors for a map that exists, from the thumbnails that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.engine.preprocess import describe_batch, resize
from hashvpr_ros.errors import ImageError, MapError
from hashvpr_ros.imaging import decode_compressed
from hashvpr_ros.map.edit import MapReader, Progress, new_map, no_progress, write_rows
from hashvpr_ros.map.rows import NewPlace, Row, make_row

_BATCH = 16  # images; more hardly speeds up any engine, and takes memory


@dataclass
class Reembedded:
    """What became of a map."""

    keyframes: int = 0  # of the result
    without_thumbnail: int = 0  # left out
    unreadable: int = 0  # left out, for their thumbnails cannot be decoded


def reembed_map(
    path: str | Path,
    out: str | Path,
    engine: DescriptorEngine,
    *,
    overwrite: bool = False,
    salvage: bool = False,
    progress: Progress = no_progress,
) -> Reembedded:
    """Write a map of the same keyframes with descriptors of another model.

    Ids, sessions, stamps, poses and thumbnails survive. Thumbnails are small, so that the result
    recognises less well than a map that the model made of the full images.

    Args:
        salvage: use the valid keyframes of a damaged map.
        progress: called for each keyframe that is written.

    Raises:
        MapError: the engine's model made the map, no keyframe has a thumbnail that can be
            decoded, the map cannot be read or `out` not be written. EngineError: the model
            failed. There is no new `out` then.
    """
    info = engine.info
    with MapReader(path, salvage=salvage) as source:
        if (source.fingerprint, source.feature_dim) == (info.fingerprint, info.feature_dim):
            raise MapError(
                f"{source.path}: made by this model ({info.name}) already, from full images; "
                "give another --engine"
            )
        counts = Reembedded()
        model = {
            "fingerprint": info.fingerprint,
            "feature_dim": str(info.feature_dim),
            "model_name": info.name,
        }
        with new_map(out, [source], overwrite=overwrite, model=model) as store:
            rows = _described(source, engine, counts)
            counts.keyframes = write_rows(store, rows, progress)
            if not counts.keyframes:
                raise MapError(
                    f"{source.path}: no keyframe has a thumbnail that can be decoded "
                    f"({counts.without_thumbnail} have none, {counts.unreadable} are damaged); "
                    "build a new map from the images"
                )
    return counts


def _described(source: MapReader, engine: DescriptorEngine, counts: Reembedded) -> Iterator[Row]:
    info = engine.info
    images = _images(source, counts, info.height, info.width)
    while batch := list(islice(images, _BATCH)):
        descriptors = describe_batch(engine, np.stack([image for _, image in batch]))
        for (row, _), descriptor in zip(batch, descriptors, strict=True):
            place = NewPlace(row.camera, row.stamp_ns, row.pose, descriptor, row.thumbnail)
            yield make_row(row.id, row.session, place, info.feature_dim)


def _images(
    source: MapReader, counts: Reembedded, height: int, width: int
) -> Iterator[tuple[Row, NDArray[np.uint8]]]:
    """The keyframes whose thumbnails can be decoded, with images of the engine's size."""
    for row in source.rows():
        if row.thumbnail is None:
            counts.without_thumbnail += 1
            continue
        try:
            yield row, resize(decode_compressed(row.thumbnail), height, width)
        except ImageError:
            counts.unreadable += 1
