"""`hashvpr query` and `hashvpr evaluate` on real images, and every wrong turn."""

import re
import shutil

import numpy as np
import pytest
from cli_helpers import refused, strict_json, well

from hashvpr_ros import __version__
from hashvpr_ros.datasets.bag_writer import IMAGE_TOPIC, ODOMETRY_TOPIC
from hashvpr_ros.datasets.registry import LAYOUTS
from hashvpr_ros.map.place_map import PlaceMap

# query


def test_query(run, built, images, data, tmp_path):
    query = data / "corridor" / "query" / "0000001.jpg"
    asked = [images / "0000002.jpg", query]
    done = run("query", built, *asked, "--show", 3, "--json", tmp_path / "q.json")
    out = well(done)
    result = strict_json(tmp_path / "q.json")
    assert [r["image"] for r in result] == [str(p) for p in asked]
    assert [len(r["hypotheses"]) for r in result] == [1, 1]  # all four show one place
    best = result[0]["hypotheses"][0]
    assert best["place_id"] == 3 and best["distance_bits"] <= 2 and best["similarity"] > 0.999
    assert best["session"] == "first" and best["camera"] == "camera"
    assert best["stamp_ns"] == 3 * 10**9 and best["position_m"] is None
    for r in result:
        similarity = [h["similarity"] for h in r["hypotheses"]]
        assert similarity == sorted(similarity, reverse=True)
        assert all(0 <= h["probability"] <= 1 for h in r["hypotheses"])
    assert str(query) in out and re.search(r"^  3 +3\.000 ", out, re.M)


def test_query_of_a_map_with_poses(run, bag, data, tmp_path):
    path = tmp_path / "m.vprmap"
    well(
        run("map", "build", path, "--bag", bag, "--image-topic", IMAGE_TOPIC,
            "--pose-topic", ODOMETRY_TOPIC)
    )  # fmt: skip
    image = data / "corridor" / "ref" / "0000002.jpg"
    well(run("query", path, image, "--json", tmp_path / "q.json"))
    best = strict_json(tmp_path / "q.json")[0]["hypotheses"][0]
    assert best["place_id"] == 2 and best["position_m"] == pytest.approx([0.6, 0.0, 0.0])


def test_query_of_an_empty_map(run, lite, images, tmp_path):
    PlaceMap.open(
        tmp_path / "e.vprmap", lite.info.fingerprint, lite.info.feature_dim, model_name="m"
    ).close()
    done = run("query", tmp_path / "e.vprmap", images / "0000000.jpg", "--json", tmp_path / "q")
    assert "the map is empty" in well(done)
    assert strict_json(tmp_path / "q")[0]["hypotheses"] == []
    assert "keyframes" in well(run("map", "info", tmp_path / "e.vprmap"))
    well(run("map", "verify", tmp_path / "e.vprmap"))


def test_query_with_what_is_no_image(run, built, images, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("int main() {}\n")
    for image, told in (
        (text, "no JPEG, PNG"), (tmp_path / "no.jpg", "check the path"),
        (images, "is a folder"), (built, "no JPEG, PNG"),
    ):  # fmt: skip
        refused(run("query", built, image), image, told)
    image = images / "0000000.jpg"
    refused(run("query", image, image), image, "not a map")
    refused(run("query", images, image), images, "is not a file")
    refused(run("query", tmp_path / "no.vprmap", image), "no such map", "hashvpr map build")
    refused(run("query", built, image, "--json", text / "q.json"), text / "q.json", "another path")
    done = run("query", built, image, text, "--json", tmp_path / "q.json")
    assert done.code == 3 and "text.jpg" in done.err and "1 of 2 images are not in" in done.err
    assert len(strict_json(tmp_path / "q.json")) == 1


# evaluate


def test_evaluate(run, few, tmp_path):
    folder = few(6)
    done = run("evaluate", folder, "--json", tmp_path / "e.json", "--tolerance", 1, "--top-k", 4)
    out = well(done)
    result = strict_json(tmp_path / "e.json")
    assert (result["queries"], result["references"], result["top_k"]) == (6, 6, 4)
    assert result["tolerance"] == 1 and result["version"] == __version__
    assert set(result["recall"]) == {"hash", "float", "rerank"}
    assert all(set(r) == {"1", "5", "10", "20", "100"} for r in result["recall"].values())
    assert set(result["latency_ms"]) == {"preprocess", "engine", "search", "rerank"}
    assert all(set(v) == {"median", "p95"} for v in result["latency_ms"].values())
    assert set(result["bytes_per_place"]) == {"resident", "stored"}
    assert set(result["closures"]) == {
        "accepted", "correct", "unknown", "precision_percent", "revisits", "closed_percent",
        "position_error_frames",
    }  # fmt: skip
    assert result["closures"]["revisits"] == 6
    assert result["ground_truth"] == {
        "queries": 6, "with_correct_reference": 6, "left_out": 0, "median_correct_references": 3,
    }  # fmt: skip
    assert result["recall_of_all_queries"] == result["recall"]
    assert set(result["calibration"]) == {"queries", "expected_calibration_error", "at_least_0_99"}
    assert "of 6 revisits closed" in out and "calibration error: " in out
    assert "6 of 6 queries have a correct reference (median 3); 0 are left out" in out
    assert result["engine"]["name"] == "hashvpr_lite" and result["machine"]
    shown = re.search(r"code, re-ranked +(\S+)", out).group(1)
    assert float(shown) == pytest.approx(result["recall"]["rerank"]["1"], abs=0.05)


def test_evaluate_without_any_correct_reference(run, few):
    folder = few(2, correct=[[], []])
    for options in ([], ["--ablate"]):
        refused(run("evaluate", folder, *options), "none of 2 queries has a correct reference")


def test_queries_that_are_left_out_are_told_in_both_ways_of_counting(run, few, tmp_path):
    folder = few(4, correct=[[0], [], [], [3]])
    out = well(run("evaluate", folder, "--json", tmp_path / "e.json"))
    result = strict_json(tmp_path / "e.json")
    assert "2 of 4 queries have a correct reference (median 1); 2 are left out of recall" in out
    assert result["recall"]["float"]["5"] == 100 and "re-ranked, of all 4 queries" in out
    assert result["recall_of_all_queries"]["float"]["5"] == 50
    ablated = run("evaluate", folder, "--ablate", "--no-baselines", "--json", tmp_path / "a.json")
    assert "2 of 4 queries have a correct reference" in well(ablated)
    way = strict_json(tmp_path / "a.json")["ways"]["float"]
    assert way["recall"]["5"] == 100 and way["recall_of_all_queries"]["5"] == 50


def test_numbers_are_shown_even_where_the_file_cannot_be_written(run, few, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = run("evaluate", few(2), "--json", tmp_path / "file" / "e.json")
    refused(done, tmp_path / "file" / "e.json", "cannot be written")
    assert "code, re-ranked" in done.out and (tmp_path / "file").read_text() == "mine"


def test_evaluate_what_is_no_dataset(run, few, tmp_path):
    folder = few(2)
    refused(run("evaluate", tmp_path / "no"), tmp_path / "no", "no such folder")
    refused(run("evaluate", folder / "query"), folder / "query", "query/", "ref/")
    refused(run("evaluate", folder / "ground_truth_new.npy"), "is a file, not a folder")
    (folder / "ground_truth_new.npy").write_bytes(b"text")
    refused(run("evaluate", folder), "ground_truth_new.npy", "write it again")
    (folder / "ground_truth_new.npy").unlink()
    refused(run("evaluate", folder), "ground_truth_new.npy", "is missing")


def test_every_way_in_one_command(run, few, tmp_path):
    folder, page = few(12), tmp_path / "page.html"
    done = run("evaluate", folder, "--ablate", "--json", tmp_path / "a.json", "--report", page)
    out = well(done)
    result = strict_json(tmp_path / "a.json")
    assert {"hash", "float", "rerank_50", "both", "orb", "hog", "vlad"} <= set(result["ways"])
    for label in ("code alone", "+ sequence and filter", "ORB bag of words", str(page)):
        assert label in out
    text = page.read_text()
    assert text.count("<svg") == 5 and "data:image/jpeg" in text
    assert "src=" not in text.replace('src="data:', "") and not re.search(r"\bnan\b", text)


def test_options_that_do_not_go_together(run, few, tmp_path):
    refused(run("evaluate", few(2), "--report", tmp_path / "r.html"), "--ablate")
    refused(run("evaluate", few(2, "b"), "--ablate", "--top-k", 5), "--top-k")


def test_another_layout(run, few):
    folder = few(4)
    (folder / "ground_truth_new.npy").unlink()
    refused(run("evaluate", folder), "--layout nordland")
    assert "code, re-ranked" in well(run("evaluate", folder, "--layout", "nordland"))
    refused(run("evaluate", folder, "--layout", "utm"), "database/")
    refused(run("evaluate", folder, "--layout", "kitti"), "'kitti'", *LAYOUTS, "auto")


def test_a_drive(run, data, tmp_path):
    """Half of the real drive: no image is back at a place yet."""
    source, folder = data / "rtabmap_corridor" / "images", tmp_path / "drive"
    if not source.is_dir():
        pytest.skip(f"{source} is missing")
    (folder / "images").mkdir(parents=True)
    for image in sorted(source.iterdir())[:36]:
        shutil.copy(image, folder / "images")
    np.save(folder / "loops.npy", np.eye(36))
    out = well(run("evaluate", folder, "--json", tmp_path / "d.json"))
    assert "nan" not in out and "code, re-ranked" in out
    result = strict_json(tmp_path / "d.json")
    assert "a drive of 36 images" in out and "0 revisits closed" in out
    assert result["queries"] == result["ground_truth"]["left_out"] == 36
    assert result["recall"]["rerank"] == dict.fromkeys(["1", "5", "10", "20", "100"])
    assert result["closures"]["revisits"] == 0
    refused(run("evaluate", folder, "--ablate"), "is one drive")
    np.save(folder / "places.npy", np.arange(36))
    refused(run("evaluate", folder), "loops.npy", "places.npy", "remove one")
