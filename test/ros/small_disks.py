"""File systems of their own for tests, which root alone may make."""

import os
import subprocess
from contextlib import contextmanager

import pytest


def _mount(*arguments):
    if os.geteuid() != 0:
        pytest.skip("cannot mount here (needs root)")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(folder):
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def tmpfs(folder, size="1m"):
    """A small disk at a new folder."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def read_only(source, folder):
    """A folder again, under a name where it is read-only."""
    folder.mkdir()
    _mount("--bind", source, folder)
    try:
        _mount("-o", "remount,ro,bind", folder)
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def breaking_disk(folder):
    """An ext4 of 16 MB, and a function that lets its kernel give it up.

    It is read-only then, also for files that are open, as a disk with errors is.
    """
    image = folder.with_suffix(".img")
    with image.open("wb") as f:
        f.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"cannot make an ext4 here: {e}")

    def break_it():
        os.sync()  # what the kernel has not written yet is lost, as with a power cut
        subprocess.run(["mount", "-o", "remount,abort", str(folder)], check=True)

    with loop_mounted(image, folder):
        yield folder, break_it


@contextmanager
def loop_mounted(image, folder):
    """A file system that is in a file, at a new folder."""
    folder.mkdir(exist_ok=True)
    _mount("-o", "loop", image, folder)
    try:
        yield folder
    finally:
        _unmount(folder)
