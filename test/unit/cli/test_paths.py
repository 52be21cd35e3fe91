"""Every path of every command: a leading ~ is a home folder, as in a shell."""

import importlib
import os

import click
import pytest
from cli_helpers import refused

from hashvpr_ros.cli.main import COMMANDS
from hashvpr_ros.cli.outputs import AnyPath

# Options that are a file or a topic; what reads them expands a leading ~.
FILE_OR_TOPIC = {("replay", "truth"), ("evaluate", "truth"), ("evaluate", "map_truth")}


def commands():
    """Each command with its name, those of groups included."""

    def within(name, command):
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                yield from within(f"{name} {child}", command.get_command(context, child))

    for name in COMMANDS:
        module = importlib.import_module(f"hashvpr_ros.cli.{name}")
        yield from within(name, module.command)


PARAMETERS = [(name, p) for name, command in commands() for p in command.params]
WORDS = ("path", "out", "file", "folder", "bag", "images", "image", "model", "maps", "plot",
         "report", "json", "params", "truth", "suite", "checkpoint", "config", "data", "cache",
         "against", "engine")  # fmt: skip


def is_path(parameter):
    return isinstance(parameter.type, (click.Path, click.File))


@pytest.mark.parametrize(
    ("name", "parameter"), PARAMETERS, ids=[f"{n} {p.name}" for n, p in PARAMETERS]
)
def test_a_parameter(monkeypatch, tmp_path, name, parameter):
    if not is_path(parameter):
        looks_like_one = parameter.type is click.STRING and (
            set(str(parameter.name).split("_")) & set(WORDS)
            or "FILE" in str(getattr(parameter, "metavar", None))
        )
        assert (
            not looks_like_one
            or (name, parameter.name) in FILE_OR_TOPIC
            or (str(parameter.name) in NO_PATHS)
        ), "give it the type of outputs.PATH"
        return
    assert isinstance(parameter.type, AnyPath), "give it the type of outputs.PATH"
    monkeypatch.setenv("HOME", str(tmp_path))
    for suffix in (".json", ".html", ".png", ".timing", ""):
        try:
            found = parameter.type.convert(f"~/x{suffix}", parameter, None)
        except click.BadParameter as e:  # one that must end in another way
            assert "must end in" in str(e), e
            continue
        assert found == tmp_path / f"x{suffix}"
        return
    raise AssertionError("takes no name")


NO_PATHS = {"image_topic", "image_topics", "pose_topic", "model_version"}


def test_there_are_many():
    assert len([p for _, p in PARAMETERS if is_path(p)]) > 60
    assert {name for name, _ in PARAMETERS} > {"map build", "bench index", "replay"}


def test_a_home_that_is_none(run, tmp_path):
    refused(run("replay", "bag", "--out=~nobody_of_this_name/x"), "no such home folder", "./~")


def test_no_folder_of_that_name_is_made(run, monkeypatch, tmp_path, images):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    done = run("map", "build", "~/m.vprmap", f"--images={images}")
    assert done.code == 0 and (home / "m.vprmap").is_file(), done.err
    done = run("map", "info", "~/m.vprmap", "--json=~/deep/j.json")
    assert done.code == 0 and (home / "deep" / "j.json").is_file(), done.err
    assert os.listdir(here) == []
