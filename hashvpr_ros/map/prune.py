"""A smaller map: without keyframes that show what others show already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hashvpr_ros.map.edit import MapReader, Progress, new_map, no_progress, write_rows
from hashvpr_ros.map.nearness import Nearness
from hashvpr_ros.map.redundancy import find_redundant
from hashvpr_ros.map.store import Store


@dataclass(frozen=True)
class Pruned:
    """What became of a map."""

    before: int  # keyframes
    after: int
    near_own_session: int  # went, for one near them of their session stays
    near_other_session: int  # went, for one near them of another session stays
    redundant: int  # could have gone
    file_bytes: int  # of the result
    size_reached: bool  # False: more would have to go than can


def prune_map(
    path: str | Path,
    out: str | Path,
    *,
    nearness: Nearness | None = None,
    keep: int | None = None,
    max_bytes: int | None = None,
    overwrite: bool = False,
    salvage: bool = False,
    progress: Progress = no_progress,
) -> Pruned:
    """Write a map without its redundant keyframes, see `find_redundant`; ids survive.

    Args:
        nearness: when a keyframe is redundant; None: the default.
        keep: keyframes; no more go when there are so few. None: no such bound.
        max_bytes: of the file; no more go when it is so small. None: no such bound.
        salvage: use the valid keyframes of a damaged map.
        progress: called for each keyframe that is compared.

    Raises:
        MapError: the map cannot be read or `out` not be written. There is no new `out` then.
    """
    with (
        MapReader(path, salvage=salvage) as source,
        new_map(out, [source], overwrite=overwrite) as store,
    ):
        columns = source.columns
        before = len(columns)
        found = find_redundant(columns, nearness or Nearness(), progress)
        order = found.order
        bounded = keep is not None or max_bytes is not None
        count = 0 if bounded else len(order)
        if keep is not None:
            count = max(0, before - keep)
        if max_bytes is not None:
            each = source.bytes_each()
            left = each.sum() - np.concatenate([[0.0], np.cumsum(each[order])])
            fits = np.flatnonzero(left <= max_bytes)
            count = max(count, int(fits[0]) if len(fits) else len(order))
        count = min(count, len(order))
        stays = np.ones(before, bool)
        stays[order[:count]] = False
        write_rows(store, source.rows(columns.ids[stays]))
        if max_bytes is not None:
            count += _shrink(store, max_bytes, columns.ids[order[count:]].tolist())
        went = order[:count]
        own = int((~found.other_session[went]).sum())
        after = before - count
        size = store.used_bytes()
        return Pruned(
            before,
            after,
            own,
            count - own,
            len(order),
            size,
            (keep is None or after <= keep) and (max_bytes is None or size <= max_bytes),
        )


def _shrink(store: Store, max_bytes: int, ids: list[int]) -> int:
    """Delete keyframes of a new map until it is small enough; returns how many.

    How SQLite fills its pages is known only when it has filled them.

    Args:
        ids: that may go, first to go first.
    """
    gone = 0
    while gone < len(ids) and (excess := store.used_bytes() - max_bytes) > 0:
        mean = store.used_bytes() / store.count()
        more = ids[gone : gone + math.ceil(excess / mean)]
        store.remove(more)
        store.db.execute("VACUUM")
        gone += len(more)
    return gone
