"""Copying a map whose own file cannot be written: with what waits in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from hashvpr_ros.map import files
from hashvpr_ros.map.maintenance import placed, write_copy
from hashvpr_ros.map.rows import Row
from hashvpr_ros.map.store import Store


def copy_with(
    source: sqlite3.Connection, waiting: Collection[Row], path: str | Path, *, overwrite: bool
) -> int:
    """Write a complete copy of a map, and what waits to be written into it, atomically.

    Returns:
        how many keyframes it holds.

    Raises:
        MapError: the target exists and is not to be overwritten, is open, cannot be written, or is
            what another map keeps beside it.
    """
    files.refuse_kept_name(files.resolve(path))
    with placed(path, overwrite=overwrite, doing="writing the copy") as temporary:
        count = write_copy(source, temporary)
        if waiting:
            with closing(Store.unfinished(temporary, Path(path))) as copy:
                copy.write(waiting)
                count = copy.count()
    return count
