"""The command line in this process, and what it is tried on."""

import sys

import pytest
from cli_helpers import Done, well

from hashvpr_ros.cli import main as entry
from hashvpr_ros.datasets.bag_writer import planar_pose, write_bag
from hashvpr_ros.datasets.base import Frame
from hashvpr_ros.datasets.folder import FolderFrames


@pytest.fixture
def run(monkeypatch, capfd):
    """The same entry point in this process, which has imported everything already."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hashvpr", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            entry.main()
        out, err = capfd.readouterr()
        return Done(e.value.code or 0, out, err)

    return call


@pytest.fixture
def images(few):
    return few(4) / "ref"


@pytest.fixture
def built(run, images, tmp_path):
    """A map of four places."""
    path = tmp_path / "m.vprmap"
    well(run("map", "build", path, "--images", images, "--session", "first"))
    return path


@pytest.fixture
def bag(data, tmp_path):
    """Four images and poses, 0.3 m apart."""
    frames = FolderFrames(data / "corridor" / "ref")
    frames.paths = frames.paths[:4]
    write_bag(
        tmp_path / "drive",
        [Frame(f.rgb, f.stamp_ns, planar_pose(0.3 * i, 0, 0)) for i, f in enumerate(frames)],
    )
    return tmp_path / "drive"
