"""What helps where a map is damaged: the last good copy of it, where there is one."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from hashvpr_ros.map.connection import connect_unchanging


def good_copy_of(path: str | Path) -> Path:
    """Where the last good copy of a map is kept: beside it."""
    return Path(f"{path}.good")


def remedy(path: str | Path, otherwise: str = "restore it from a copy") -> str:
    """The end of a sentence that says that a map is damaged.

    Args:
        otherwise: what helps where there is no good copy.
    """
    good = good_copy_of(os.path.realpath(path))
    if not good.is_file():
        return otherwise
    date = datetime.fromtimestamp(good.stat().st_mtime)
    held = "an unknown number of"
    with (
        suppress(sqlite3.Error, UnicodeDecodeError),
        closing(connect_unchanging(good)) as db,
    ):
        held = str(db.execute("SELECT count(*) FROM keyframes").fetchone()[0])
    return (
        f"`hashvpr map restore {shlex.quote(str(path))}` brings back the last good copy, of "
        f"{date:%Y-%m-%d %H:%M} with {held} keyframes"
    )
