"""`hashvpr bench index` at tiny sizes; what it measures is not judged here, its codes are."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from hashvpr_ros.cli.bench import command
from hashvpr_ros.evaluation.index_bench import CodeModel, measure_kinds, uniform_codes


def test_the_command_shows_each_back_end_and_writes_json(tmp_path):
    done = CliRunner().invoke(
        command,
        [
            "index", "--sizes", "700,300", "--images", "30", "--queries", "12", "--top-k", "20",
            "--kind", "exact", "--kind", "hnsw", "--json", str(tmp_path / "i.json"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "700 drives codes" in done.output and "300 uniform codes" in done.output
    result = json.loads((tmp_path / "i.json").read_text())
    assert result["machine"] and result["top_k"] == 20
    rows = result["index"]
    assert [(r["codes"], r["size"], r["kind"]) for r in rows] == [
        (codes, size, kind)
        for codes in ("drives", "uniform")
        for size in (300, 700)
        for kind in ("exact", "hnsw")
    ]
    for row in rows:
        assert 0 < row["search_ms"]["median"] <= row["search_ms"]["p95"]
        assert row["add_worst_ms"] >= row["add_ms"] > 0 and row["bytes_per_code"] > 0
        assert (row["recall"] == row["recall_10"] == 100) or row["kind"] == "hnsw"


def test_a_kind_that_cannot_be_had_is_refused():
    done = CliRunner().invoke(
        command, ["index", "--sizes", "50", "--codes", "uniform", "--kind", "gpu"]
    )
    assert "map.index gpu" in str(done.exception)


def test_recall_counts_what_is_missing(tmp_path, monkeypatch):
    from hashvpr_ros.evaluation import index_bench

    def measured(path, queries, kind, top_k):
        near = np.int32([[1, 2, 2, 3], [5, 5, 5, 5]])
        lost = np.int32([[1, 2, 3, 513], [5, 5, 5, 6]])
        return {"distances": near if kind == "exact" else lost}

    monkeypatch.setattr(index_bench, "_alone", measured)
    exact, other = measure_kinds(tmp_path, np.empty((2, 64), np.uint8), ["exact", "hnsw"], 4)
    assert exact["recall"] == 100 and other["recall"] == pytest.approx(100 * 6 / 8)


def test_made_codes_have_the_means_and_correlations_of_the_given_and_neighbours(tmp_path):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3000, 20)) @ rng.standard_normal((20, 512))
    shift = rng.uniform(-6, 6, 512)
    given = np.packbits(hidden + shift > 0, axis=1)
    queries = CodeModel.fit(given).drives(4000, 100, tmp_path / "c.npy", lambda n: None)
    made = np.load(tmp_path / "c.npy")
    assert made.shape == (4000, 64) and queries.shape == (100, 64)

    def bits(codes):
        return np.unpackbits(codes, axis=1).astype(float)

    assert np.abs(bits(made).mean(0) - bits(given).mean(0)).max() < 0.15
    both = np.corrcoef(
        np.cov(bits(made).T)[np.triu_indices(512, 1)],
        np.cov(bits(given).T)[np.triu_indices(512, 1)],
    )[0, 1]
    assert both > 0.8
    drive = bits(made)[:250]  # the first of 16
    apart = [np.abs(drive[:-lag] - drive[lag:]).sum(1).mean() for lag in (1, 5, 50)]
    assert apart[0] < 0.6 * apart[2] and apart[0] < apart[1] < apart[2]
    nearest = np.array([np.abs(bits(made) - q).sum(1).min() for q in bits(queries)])
    assert nearest.mean() < 0.7 * apart[2]


def test_queries_of_uniform_codes_are_views_of_some(tmp_path):
    queries = uniform_codes(1000, 50, tmp_path / "u.npy", lambda n: None)
    made = np.unpackbits(np.load(tmp_path / "u.npy"), axis=1)
    apart = [int((made != q).sum(1).min()) for q in np.unpackbits(queries, axis=1)]
    assert 55 < np.mean(apart) < 85 and abs(made.mean() - 0.5) < 0.01
