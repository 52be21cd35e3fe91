"""The folders in which services may read and write maps: the parameter `map.allowed_dirs`. No ROS.

Anybody on the robot's network can call a service. A service must therefore not be a way to write,
read, or find out about a file elsewhere.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from hashvpr_ros.errors import ConfigError, MapError
from hashvpr_ros.map import files
from hashvpr_ros.map.schema import APPLICATION_ID

# The longest name of a map: what is kept beside it has a longer one (NAME.damaged-DATE).
_LONGEST_NAME = 225
_LONGEST_PATH = 3000
_DEFAULT = "~/.ros"
_SHOWN = 200  # characters of a bad path in a message


class PathError(MapError):
    """A path in a request that must not be used."""


class AllowedDirs:
    """Checks the paths of requests.

    Args:
        given: the parameter `map.allowed_dirs`; empty: the folder of the map, and ~/.ros.
        map_path: the parameter `map.path` at start-up, which is allowed in any case.

    Raises:
        ConfigError: a folder is no absolute path.
    """

    def __init__(self, given: Sequence[str], map_path: str) -> None:
        if given:
            folders = [_expanded(folder) for folder in given]
        else:
            own = [os.path.dirname(os.path.abspath(_expanded(map_path)))] if map_path else []
            folders = [*own, _expanded(_DEFAULT)]
        for folder in folders:
            if not folder.startswith("/") or "\0" in folder:
                raise ConfigError(
                    f"map.allowed_dirs: {_shown(folder)} is not an absolute path of a folder; "
                    "begin it with / or ~/"
                )
        self._folders = list(dict.fromkeys(_normal(folder) for folder in folders))
        self._start_path = map_path

    def problem_with(self, map_path: str) -> str:
        """Why `map.path` must not be set to this while the node runs; "" where it may be."""
        if map_path in ("", self._start_path):
            return ""
        try:
            self._resolve(map_path)
        except PathError as e:
            return f"map.path: {e}"
        return ""

    def to_read(self, path: str) -> Path:
        """The map of a request, without symbolic links; it need not exist.

        Raises:
            PathError: the path is malformed, leads outside the allowed folders, or is the name of
                a map's WAL or of its backup.
        """
        resolved = self._resolve(path)
        try:
            files.refuse_kept_name(resolved)
        except MapError as e:
            raise PathError(str(e)) from None
        return resolved

    def to_write(self, path: str, *, overwrite: bool) -> Path:
        """Where the map of a request may be written, without symbolic links.

        Args:
            overwrite: whether it may replace a map.

        Raises:
            PathError: as `to_read` does, or the folder is not there, or there is something that
                must not be replaced.
            MapError: what is there cannot be read, or is open in this process.
        """
        resolved = self.to_read(path)
        if not resolved.parent.is_dir():
            raise PathError(f"{resolved.parent}: there is no such folder; make it first")
        if (found := files.status(resolved)) is None:
            return resolved
        if not stat.S_ISREG(found.st_mode):
            raise PathError(f"{resolved}: is not a file; give the path of a file")
        if not overwrite:
            raise PathError(f"{resolved}: exists; give another path or set overwrite")
        if not _is_map(resolved):
            raise PathError(
                f"{resolved}: exists and is not a map, so it is not replaced; give another path"
            )
        return resolved

    def _resolve(self, text: str) -> Path:
        shown = _shown(text)
        path = _expanded(text)
        if path.startswith("~"):
            raise PathError(f"{shown}: names the folder of a user; write that folder out")
        if not path.startswith("/"):
            raise PathError(f"{shown}: is not an absolute path; begin it with / or ~/")
        if not path.isprintable():
            raise PathError(f"{shown}: has characters that cannot be printed; give another path")
        if ".." in path.split("/"):
            raise PathError(f"{shown}: leads upwards by '..'; give the path without it")
        path = _normal(path)
        name = os.fsencode(os.path.basename(path))
        too_long = len(name) > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH
        if too_long:
            raise PathError(f"{shown}: is too long; give a name of at most {_LONGEST_NAME} bytes")
        # First by its letters alone: the file system is not asked about what lies outside, so no
        # answer depends on it. Then with symbolic links followed.
        real = [os.path.realpath(folder) for folder in self._folders]
        if _is_within(path, [*self._folders, *real]):
            path = os.path.realpath(path)
            if _is_within(path, real):
                return Path(path)
        raise PathError(
            f"{shown}: is not inside a folder of map.allowed_dirs ({', '.join(self._folders)}); "
            "give a path there"
        )


def _expanded(path: str) -> str:
    """A path with `~/` written out; `~user` stays."""
    if path == "~" or path.startswith("~/"):
        return os.path.expanduser("~") + path[1:]
    return path


def _normal(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _is_within(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(folder.rstrip("/") + "/") for folder in folders) and path != "/"


def _shown(path: str) -> str:
    """A path as it can stand in a sentence: of bounded length, without control characters."""
    short = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}..."
    return short if short.isprintable() and short else repr(short)


def _is_map(path: Path) -> bool:
    """Whether a file begins as a map does.

    Raises:
        MapError: it cannot be read, or is open in this process.
    """
    file = files.LockedFile(path, shared=True)  # not `open`: see there on locks
    try:
        header = os.pread(file.fd, 72, 0)
    except OSError as e:
        raise MapError(f"{path}: cannot be read: {e.strerror}; give another path") from e
    finally:
        file.close()
    begins = b"SQLite format 3\0", struct.pack(">I", APPLICATION_ID)
    return (header[:16], header[68:]) == begins
