"""`hashvpr evaluate --suite`: one table, and every wrong turn."""

import shutil

import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros.cli.common import LOST_IMAGES
from hashvpr_ros.engine.factory import default_model_path


@pytest.fixture
def folder(few, tmp_path):
    few(3, name="suite/one")
    few(4, name="suite/group/two")
    few(3, name="suite/three")
    (tmp_path / "suite" / "empty").mkdir()
    return tmp_path / "suite"


def test_a_suite(run, folder, tmp_path):
    path, page = tmp_path / "s.json", tmp_path / "s.html"
    other = tmp_path / "other.onnx"
    shutil.copy(default_model_path(), other)
    (folder / "one" / "query" / "0000001.jpg").write_text("text")
    for image in (folder / "three" / "query").iterdir():
        image.write_text("text")
    done = run(
        *("evaluate", "--suite", folder, "--json", path, "--report", page),
        *("--compare-to", other, "--queries", "group/two=1:4"),
    )
    out = done.out
    assert done.code == LOST_IMAGES and "0000001.jpg" in done.err, done.err
    result = strict_json(path)
    assert "skipped: empty is no image set" in out and result["skipped"] == ["empty"]
    assert "can be read" in result["sets"]["three"]["error"] and "three failed: " in out
    assert result["sets"]["one"]["images_left_out"] == 1
    two = result["sets"]["group/two"]
    assert two["queries"] == two["references"] == 3
    row = two["row"]
    assert row["other.onnx"] == row["recall_at_1"] and {"orb", "hog", "vlad"} <= set(row)
    assert result["queries"] == {"group/two": [1, 4]}
    assert result["compared"]["other.onnx"] == result["engine"]
    assert "other.onnx R@1" in out and "VLAD R@1" in out and str(page) in out
    assert "group/two" in page.read_text()


def test_without_baselines(run, folder, tmp_path):
    out = well(run("evaluate", "--suite", folder, "--no-baselines", "--json", tmp_path / "s.json"))
    assert "VLAD" not in out
    assert strict_json(tmp_path / "s.json")["sets"]["one"]["baselines"] == {}


def test_where_every_set_fails(run, folder, tmp_path):
    for image in folder.glob("**/ref/*.jpg"):
        image.write_text("text")
    done = run("evaluate", "--suite", folder, "--no-baselines", "--json", tmp_path / "s.json")
    refused(done, folder, "none of its image sets could be evaluated")
    assert set(strict_json(tmp_path / "s.json")["sets"]) == {"one", "group/two", "three"}


def test_what_is_refused(run, few, folder, tmp_path):
    suite = "evaluate", "--suite", folder
    refused(run("evaluate"), "give FOLDER, BAG or --suite")
    refused(run(*suite, folder), "--suite takes no FOLDER")
    refused(run(*suite, "--ablate"), "--ablate")
    refused(run(*suite, "--layout", "drive"), "--layout")
    refused(run("evaluate", "--suite", tmp_path / "no"), "no such folder")
    refused(run("evaluate", "--suite", folder / "empty"), "holds no image set")
    for text in ("one", "one=1", "one=1:x", "one=-1:2", "=1:2"):
        refused(run(*suite, "--queries", text), text, "SET=FIRST:LAST")
    refused(run(*suite, "--queries", "four=0:1"), "no set four", "group/two, one, three")
    refused(run(*suite, "--queries", "one=0:1", "--queries", "one=1:2"), "one has a range already")
    refused(run(*suite, "--queries", "one=1:9"), "one: the range", "does not fit 3 queries")
    refused(run(*suite, "--compare-to", tmp_path / "no.onnx"), tmp_path / "no.onnx")
    one = folder / "one"
    refused(run("evaluate", one, "--queries", "one=0:1"), "belong to --suite")
    refused(run("evaluate", one, "--no-baselines"), "--ablate or --suite")
