"""Paths on the command line, and what the files that commands write must not replace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.file_io import replacing
from hashvpr_ros.map.files import refuse_kept_name


class AnyPath(click.Path):
    """A path, in which a leading ~ stands for a home folder as in a shell.

    No shell expands it after a `=`, as in `--out=~/run`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = os.fspath(value)
        expanded = os.path.expanduser(text)
        if text[:1] == "~" and expanded == text:
            self.fail(
                f"{text}: there is no such home folder; write ./{text} for a file of that name.",
                param,
                ctx,
            )
        return super().convert(expanded, param, ctx)


PATH = AnyPath()


class OutFile(AnyPath):
    """A path to be written, where there is nothing yet or an older file of the same kind.

    A wrong name or a swapped argument then costs no map, bag, model or image.

    Args:
        kind: in a sentence.
        begins: what files of the kind begin with; none: their names alone tell them.
        suffixes: that the name must have one of; none: any name will do.
        make_folder: whether its folder is made where there is none.
    """

    def __init__(
        self,
        kind: str,
        *begins: bytes,
        suffixes: tuple[str, ...] = (),
        make_folder: bool = False,
    ) -> None:
        super().__init__(dir_okay=False)
        self._kind, self._begins = kind, begins
        self._suffixes, self._make_folder = suffixes, make_folder

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Check it before the work, too, which may take hours."""
        path: Path = super().convert(value, param, ctx)
        if self._suffixes and path.suffix.lower() not in self._suffixes:
            self.fail(f"{path}: the name must end in {' or '.join(self._suffixes)}.", param, ctx)
        if not self._make_folder and not path.parent.is_dir():
            self.fail(f"{path.parent}: no such folder; give another path.", param, ctx)
        self.check(path)
        return path

    def check(self, path: Path) -> None:
        """Refuse to replace a file of another kind.

        Raises:
            ConfigError: there is one, it cannot be read, or a map keeps its own file there.
        """
        refuse_kept_name(path)
        if os.path.isfile(path):
            try:
                with open(path, "rb") as f:
                    begin = f.read(16)
            except OSError as e:
                raise ConfigError(
                    f"{path}: exists and cannot be read: {e.strerror}; give another path"
                ) from e
            other = bool(begin and self._begins) and not begin.startswith(self._begins)
        else:
            other = os.path.exists(path) and not os.path.isdir(path)  # a device
        if other:
            raise ConfigError(
                f"{path}: exists and is no {self._kind}, so it is not replaced; give another path"
            )


JSON_FILE = OutFile("JSON", b"{", b"[", make_folder=True)
HTML_FILE = OutFile("HTML", b"<")
EXPORT_FILE = OutFile("export", b"id,", b"# timestamp", b"PK", make_folder=True)
TIMING_FILE = OutFile("timing cache", suffixes=(".timing", ".cache"))
PLOT_FILE = OutFile("plot", b"\x89PNG", b"<", suffixes=(".png", ".svg"))


def check_folder(out: Path, made: bool, names: Iterable[str]) -> None:
    """Refuse a folder whose files a run would replace, though none made them.

    Args:
        made: whether a run has written into the folder before.
        names: of what is replaced.

    Raises:
        ConfigError: there are such files.
    """
    held = sorted(str(out / name) for name in names if os.path.lexists(out / name))
    if held and not made:
        raise ConfigError(
            f"{held[0]}: would be replaced, and is of no run before; move it or give another --out"
        )


def write_json_text(path: Path, text: str) -> None:
    """Write JSON, or lines of it, atomically.

    Raises:
        ConfigError: the file cannot be written, or is of another kind.
    """
    JSON_FILE.check(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written: {e.strerror}; give another path") from e
    with replacing(path) as temporary:
        temporary.write_text(text)
