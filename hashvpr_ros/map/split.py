"""Some sessions of a map, or a stretch of time, as a map of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.edit import MapReader, new_map, seconds_text, write_rows


def split_map(
    path: str | Path,
    out: str | Path,
    *,
    sessions: Sequence[str] = (),
    from_ns: int | None = None,
    to_ns: int | None = None,
    overwrite: bool = False,
    salvage: bool = False,
) -> tuple[int, int]:
    """Write a part of a map; ids survive, the map itself stays as it is.

    Args:
        sessions: names; none: all.
        from_ns, to_ns: stamps from the first on, before the second, so that parts that meet at a
            stamp share no keyframe. None: no bound.
        salvage: use the valid keyframes of a damaged map.

    Returns:
        how many keyframes the part holds, and how many the map.

    Raises:
        MapError: no such session, nothing in that time, the map cannot be read or `out` not be
            written. There is no new `out` then.
    """
    with MapReader(path, salvage=salvage) as source:
        columns = source.columns
        numbers = {name: number for number, name in columns.session_names.items()}
        for name in sessions:
            if name not in numbers:
                raise MapError(
                    f"{source.path}: has no session {name!r}, but "
                    f"{', '.join(map(repr, numbers)) or 'none'}; give one of these"
                )
        wanted = np.ones(len(columns), bool)
        if sessions:
            wanted &= np.isin(columns.sessions, [numbers[name] for name in sessions])
        stamps = columns.stamps_ns[wanted]
        if not len(stamps):
            raise MapError(f"{source.path}: holds no keyframes; give another map")
        if from_ns is not None:
            wanted &= columns.stamps_ns >= from_ns
        if to_ns is not None:
            wanted &= columns.stamps_ns < to_ns
        if not wanted.any():
            raise MapError(
                f"{source.path}: holds no keyframe of that time, but from "
                f"{seconds_text(stamps.min())} s to {seconds_text(stamps.max())} s; give other "
                "bounds"
            )
        with new_map(out, [source], overwrite=overwrite) as store:
            return write_rows(store, source.rows(columns.ids[wanted])), len(columns)
