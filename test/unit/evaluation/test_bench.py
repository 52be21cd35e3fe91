"""The benchmark's rows, on small sizes; what they measure is not judged here."""

import json

import pytest
from click.testing import CliRunner

from hashvpr_ros.cli.bench import command
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.evaluation.bench import bench_search, check_room


def test_the_command_writes_json_and_a_plot(tmp_path):
    done = CliRunner().invoke(
        command,
        [
            "--sizes", "300,50", "--batches", "1", "--queries", "10",
            "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "b.json").read_text())
    assert [row["places"] for row in result["search"]] == [50, 300]
    for row in result["search"]:
        assert row["ratio"] > 0 and row["bytes_per_place"]["resident"] < 100
        for key in ("bare_search_ms", "search_ms", "rerank_ms", "search_and_rerank_ms"):
            assert 0 < row[key]["median"] <= row[key]["p95"]
    (row,) = result["engine"]
    assert row["batch"] == 1 and row["engine_ms"]["median"] > 0 and row["ratio"] > 0
    assert result["machine"]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [["--sizes", "0"], ["--sizes", "many"], ["--batches", ""], ["--top-k", "0"]],
)
def test_bad_numbers_are_refused(arguments):
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2 and arguments[0] in done.output


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError):
        bench_search([])
    with pytest.raises(Exception, match="--sizes"):
        check_room(10**12, 512)


def test_the_plot_must_be_a_picture(tmp_path):
    done = CliRunner().invoke(command, ["--plot", str(tmp_path / "b.txt")])
    assert done.exit_code == 2 and ".png or .svg" in done.output
