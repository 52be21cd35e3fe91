"""Files for people, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hashvpr_ros.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a temporary file to be written, which becomes `path` where the block ends well.

    Raises:
        ConfigError: it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{path}: cannot be written: {e.strerror}; give another path") from e
