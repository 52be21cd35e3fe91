"""The program itself: help, options, errors, and what all commands share."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from cli_helpers import COMMAND, ENVIRONMENT, Done, process, refused, strict_json, well

from hashvpr_ros import __version__
from hashvpr_ros.cli.bench import command as bench_command
from hashvpr_ros.cli.common import write_json
from hashvpr_ros.cli.engine import command as engine_command
from hashvpr_ros.cli.main import COMMANDS
from hashvpr_ros.cli.map import command as map_command
from hashvpr_ros.errors import ConfigError

# The program itself


def test_version_and_help():
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"hashvpr, version {__version__}\n")
    done = process("--help")
    assert done.returncode == 0 and not done.stderr
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", done.stdout, re.M)


@pytest.mark.parametrize(
    "words",
    [
        *([name] for name in COMMANDS),
        *(["map", name] for name in map_command.commands),
        *(["engine", name] for name in engine_command.commands),
        *(["bench", name] for name in bench_command.list_commands(None)),
    ],
    ids=" ".join,
)
def test_every_command_has_help(run, words):
    out = well(run(*words, "--help"))
    assert out.startswith(f"Usage: hashvpr {' '.join(words)} ")
    assert "--help" in out and len(out.splitlines()) > 5


@pytest.mark.parametrize("words", [[], ["map"], ["engine"]])
def test_without_a_command_the_help_is_shown(run, words):
    done = run(*words)
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize("words", [["--help"], ["map", "build", "--help"], ["config"]])
def test_help_and_config_import_nothing_heavy(words):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['hashvpr', *{words!r}]\n"
        "try:\n"
        "    runpy.run_module('hashvpr_ros.cli.main', run_name='__main__')\n"
        "except SystemExit as e:\n"
        "    assert not e.code, e.code\n"
        "heavy = {'cv2', 'faiss', 'onnxruntime', 'torch', 'matplotlib', 'numpy', 'rosbags'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stderr.splitlines() == ["[]"] and done.stdout


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m hashvpr_ros.cli.main config | true"],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode in (0, 1) and done.stderr == ""  # 1 where it came too late


def test_an_error_is_one_line_in_a_process_too(tmp_path):
    for words in (
        ["map", "info", tmp_path / "no.vprmap"],
        ["query", tmp_path / "no.vprmap", tmp_path / "no.jpg"],
        ["nosuch"],
    ):
        done = process(*words)
        refused(Done(done.returncode, done.stdout, done.stderr))
        assert not done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nosuch"], ["nosuch", "`hashvpr --help`"]),
        (["--nosuch"], ["--nosuch", "`hashvpr --help`"]),
        (["map", "nosuch"], ["nosuch", "`hashvpr map --help`"]),
        (["map", "build"], ["OUT", "`hashvpr map build --help`"]),
        (["map", "build", "o", "--nosuch"], ["--nosuch"]),
        (["map", "build", "o"], ["either --images DIR or --bag BAG"]),
        (["map", "build", "o", "--images", "a", "--bag", "b"], ["either"]),
        (
            ["map", "build", "o", "--images", "a", "--pose-topic", "/p"],
            ["--pose-topic is for --bag"],
        ),
        (["map", "build", "o", "--bag", "b"], ["--image-topic", "--help"]),
        (["map", "info"], ["MAP"]),
        (["map", "verify", "a", "b"], ["b", "`hashvpr map verify --help`"]),
        (["query"], ["MAP"]),
        (["query", "m"], ["IMAGE"]),
        (["query", "m", "i", "--top-k", "0"], ["--top-k"]),
        (["query", "m", "i", "--top-k", "many"], ["--top-k", "many"]),
        (["query", "m", "i", "--show", "0"], ["--show"]),
        (["query", "m", "i", "--json", "/"], ["--json"]),
        (["calibrate", "m", "--radius", "nan"], ["--radius", "not a finite number"]),
        (["calibrate", "m", "--radius", "inf"], ["--radius", "not a finite number"]),
        (["evaluate"], ["FOLDER"]),
        (["evaluate", "f", "--top-k", "0"], ["--top-k"]),
        (["evaluate", "f", "--tolerance", "-1"], ["--tolerance"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_bad_options(run, words, told):
    refused(run(*words), *told)


# What commands share


def test_json_is_strict_and_atomic(tmp_path):
    nan, path = float("nan"), tmp_path / "deep" / "x.json"
    write_json(path, {"a": nan, "b": [1, float("inf"), (nan, "NaN")], "c": {"d": -float("inf")}})
    assert strict_json(path) == {"a": None, "b": [1, None, [None, "NaN"]], "c": {"d": None}}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert strict_json(path)["a"] is None
    write_json(None, object())
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(path / "y.json", {})
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.json: cannot be written"):
        write_json(tmp_path / "folder.json", {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "folder.json", "x.json"]


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)  # a double: it is installed here
    for module in ("hashvpr_ros.datasets.bag", "hashvpr_ros.bag_reader"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    done = run("map", "build", "o", "--bag", "b", "--image-topic", "/c")
    refused(done, "rosbags", "not installed", "requirements/base.txt")


def test_interrupting_is_no_traceback(built, tmp_path):
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    code = (  # with a double of what reads an image, which says that it was reached, and waits
        "import sys, time\nfrom hashvpr_ros.cli import main\n"
        "from hashvpr_ros.datasets import folder\n"
        f"def wait(path): open({str(reached)!r}, 'w').close(); time.sleep(60)\n"
        "folder.read_image = wait; sys.argv[0] = 'hashvpr'; main.main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "query", built, tmp_path / "image.jpg"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    reached.read_bytes()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err.strip()) == (130, "", "hashvpr: interrupted")


def test_a_name_that_is_no_text_is_told_escaped(built, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.vprmap")
    shutil.copy(built, path)
    for words, told in (
        (["verify"], "OK, 4 keyframes"),
        (["info", "--json", f"{path}.json"], "keyframes"),
    ):
        done = subprocess.run(
            [*COMMAND, "map", *words, path],
            capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"") and told in done.stdout.decode()
    done = subprocess.run(
        [*COMMAND, "map", "split", path, f"{path}2", "--session", "first"],
        capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0 and rb"\udcff.vprmap2: 4 of 4 keyframes" in done.stdout


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "config"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
    refused(Done(done.returncode, "", done.stderr), "No space left on device")
