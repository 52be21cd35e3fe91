"""The benchmarks of loops, evidence and index: small ones, whose numbers must hang together."""

import pytest
from cli_helpers import refused, strict_json, well

WAYS = ("none", "sequence", "filter", "both")


def test_loops_on_a_course_of_two_laps(run, tmp_path):
    path = tmp_path / "loops.json"
    out = well(
        run(
            *("bench", "loops", "--length", 100, "--laps", 2, "--repeats", 1, "--step", 2),
            *("--set", "matching.target_precision=0.9", "--json", path),
        )
    )
    assert "98 images, 2 laps of 100 m in 1 stretches" in out
    result = strict_json(path)
    assert set(result["ways"]) == {f"{w}_{p}" for w in WAYS for p in ("odometry", "images")}
    assert result["course"] == {"length_m": 100, "laps": 2, "repeats": 1, "step_m": 2}
    for way in result["ways"].values():
        # The second lap sees again what the first saw, and the end of the first its beginning.
        assert way["images"] == 98 and 45 <= way["revisits"] <= 55
        assert 0 <= way["wrong"] <= way["accepted"] <= 98
        assert 0 <= way["closed"] <= 100 and 0 < way["ms"]["median"] <= way["ms"]["p95"]
    # That the ways and odometry reach the recognizer: what they decide differs.
    both, alone = result["ways"]["both_odometry"], result["ways"]["none_odometry"]
    assert both["recall_at_1"] > 80 and both["accepted"] > alone["accepted"]
    assert result["odometry_off_m"] > 0
    # The same again, to the last decision.
    well(
        run(
            *("bench", "loops", "--length", 100, "--laps", 2, "--repeats", 1, "--step", 2),
            *("--set", "matching.target_precision=0.9", "--json", path),
        )
    )
    again = strict_json(path)["ways"]
    for name, way in result["ways"].items():
        assert {**way, "ms": None} == {**again[name], "ms": None}


def test_what_evidence_costs(run, tmp_path):
    path = tmp_path / "temporal.json"
    out = well(run("bench", "temporal", "--places", 2000, "--rounds", 1, "--json", path))
    assert "ms, 2000 places" in out
    result = strict_json(path)
    assert set(result["ways"]) == set(WAYS) and set(result["added_ms"]) == set(WAYS[1:])
    for way, added in result["added_ms"].items():
        median = {w: result["ways"][w]["temporal"]["median"] for w in ("none", way)}
        assert added == pytest.approx(median[way] - median["none"], abs=1e-3)


def test_index_kinds_beside_exact_search(run, tmp_path):
    path = tmp_path / "index.json"
    out = well(
        run(
            *("bench", "index", "--sizes", "2000", "--codes", "uniform", "--queries", 20),
            *("--top-k", 10, "--json", path),
        )
    )
    assert "2,000 uniform codes" in out
    rows = {row["kind"]: row for row in strict_json(path)["index"]}
    assert set(rows) == {"exact", "hnsw", "ivf"}
    assert rows["exact"]["recall"] == rows["exact"]["recall_10"] == 100.0
    assert all(0 < row["recall"] <= 100 for row in rows.values())


def test_what_cannot_be_measured_is_refused(run):
    refused(run("bench", "loops", "--set", "matching.max_drift=-1"), "matching.max_drift")
    refused(run("bench", "loops", "--set", "matching.temporal=filter"), "matching.temporal")
    refused(run("bench", "index", "--sizes", "0"), "0")
