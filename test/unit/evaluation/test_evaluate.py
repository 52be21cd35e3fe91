"""Recall of the lite model on real images, and the numbers beside an independent computation."""

import json
import shutil

import numpy as np
import pytest

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.engine.preprocess import resize
from hashvpr_ros.errors import ConfigError, DatasetError
from hashvpr_ros.evaluation.evaluate import SMALL_TOP_K, candidates_to_rerank, evaluate


@pytest.fixture(scope="module")
def corridor(data):
    return VprBench(data / "corridor")


@pytest.fixture(scope="module")
def result(corridor, lite):
    calls = []
    done = evaluate(corridor, lite, progress=lambda: calls.append(None))
    assert len(calls) == 222
    return done


@pytest.fixture(scope="module")
def described(corridor, lite):
    def describe(paths):
        size = lite.info.height, lite.info.width
        images = np.stack([resize(read_image(p), *size) for p in paths])
        parts = [lite.describe(images[i : i + 16]) for i in range(0, len(images), 16)]
        return [np.concatenate(p) for p in zip(*parts, strict=True)]

    return describe(corridor.queries), describe(corridor.references)


def test_the_bar_for_the_corridor(result):
    """With 20 of 111 re-ranked: local descriptors find more than exhaustive search without."""
    summary = result.summary()
    assert summary["top_k"] == SMALL_TOP_K == 20
    recall = summary["recall"]
    assert recall["rerank"]["1"] >= 75.0
    assert recall["rerank"]["1"] > recall["float"]["1"]
    assert recall["hash"]["1"] < recall["rerank"]["1"]


def test_the_keys_of_the_summary(result):
    summary = result.summary()
    assert summary["queries"] == summary["references"] == 111
    assert set(summary["recall"]) == {"hash", "float", "rerank"}
    for kind in summary["recall"].values():
        assert list(kind) == ["1", "5", "10", "20", "100"]
        assert (
            list(kind.values()) == sorted(kind.values()) and 0 <= kind["1"] <= kind["100"] <= 100
        )
    assert set(summary["latency_ms"]) == {"preprocess", "engine", "search", "rerank"}
    for stage in summary["latency_ms"].values():
        assert 0 < stage["median"] <= stage["p95"]
    size = summary["bytes_per_place"]
    assert set(size) == {"resident", "stored"}
    assert 64 <= size["resident"] < 128  # the code, and little besides
    assert size["stored"] > 64 + 2 * 512  # code and float16 feature
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_timings_are_those_of_the_queries(result):
    assert all(len(times) == 111 for times in result.times_ms.values())


def test_rankings_equal_an_independent_computation(described, corridor, global_only):
    result = evaluate(corridor, global_only)
    (codes, features), (ref_codes, ref_features) = described
    bits = np.unpackbits(codes[:, None] ^ ref_codes[None], axis=2).sum(2)
    similarity = features @ ref_features.T
    agreeing = 0
    for i in range(111):
        by_hash = np.lexsort((np.arange(111), bits[i]))
        # Codes of a batch may differ in a bit whose logit is about zero, features in float16.
        agreeing += result.hash_ranked[i] == by_hash[:100].tolist()
        candidates = by_hash[:20]
        best = candidates[np.argmax(similarity[i, candidates])]
        agreeing += result.rerank_ranked[i][0] == best
        agreeing += result.float_ranked[i][0] == int(np.argmax(similarity[i]))
        assert result.rerank_similarity[i] == pytest.approx(
            similarity[i, result.rerank_ranked[i][0]], abs=2e-3
        )
    assert agreeing >= 3 * 111 - 6
    hits = [r[0] in p for r, p in zip(result.rerank_ranked, corridor.positives(), strict=True)]
    assert result.summary()["recall"]["rerank"]["1"] == pytest.approx(100 * np.mean(hits))


def test_every_ranking_has_a_hundred_different_references(result):
    for ranked in (result.hash_ranked, result.float_ranked, result.rerank_ranked):
        assert all(len(set(r)) == 100 and set(r) <= set(range(111)) for r in ranked)


def test_the_number_of_candidates(few, global_only):
    bench = VprBench(few(12))
    one = evaluate(bench, global_only, top_k=1)
    assert one.rerank_ranked == one.hash_ranked and one.top_k == 1
    every = evaluate(bench, global_only, top_k=5000)
    assert [r[0] for r in every.rerank_ranked] == [r[0] for r in every.float_ranked]
    assert evaluate(bench, global_only).top_k == 20


def test_a_thousand_references_are_re_ranked_by_a_hundred(few):
    folder = few(1)
    for i in range(1, 1000):
        shutil.copy(folder / "ref" / "0000000.jpg", folder / "ref" / f"{i:07d}.jpg")
    assert candidates_to_rerank(VprBench(folder).references, None) == 100
    assert candidates_to_rerank(VprBench(folder).references, 7) == 7
    (folder / "ref" / "0000999.jpg").unlink()
    assert candidates_to_rerank(VprBench(folder).references, None) == 20


def test_tolerance(few, lite):
    folder = few(6, correct=[[5]] * 6)
    strict, lax = (evaluate(VprBench(folder), lite, tolerance=t) for t in (0, 5))
    assert strict.positives == [{5}] * 6 and lax.positives == [set(range(6))] * 6
    assert lax.summary()["recall"]["rerank"]["1"] == 100.0
    assert strict.rerank_ranked == lax.rerank_ranked


@pytest.mark.parametrize(("top_k", "tolerance"), [(0, 0), (-1, 0), (5, -1)])
def test_numbers_out_of_range(few, lite, top_k, tolerance):
    with pytest.raises(ConfigError, match="at least"):
        evaluate(VprBench(few(1)), lite, top_k=top_k, tolerance=tolerance)


@pytest.mark.parametrize("part", ["query", "ref"])
def test_an_unreadable_image_is_left_out(few, lite, part):
    """The others are measured as if it had never been there."""
    folder = few(4, correct=[[0], [1, 2], [2], [3, 1]])
    whole = evaluate(VprBench(folder), lite)
    (folder / part / "0000001.jpg").write_text("text")
    done = evaluate(VprBench(folder), lite)
    (line,) = done.skipped
    assert f"{part}/0000001.jpg" in line
    assert done.summary()["images_left_out"] == 1 and done.summary()["images"] == 7
    wanted = [{0}, {2}, {3, 1}] if part == "query" else [{0}, {1}, {1}, {2}]
    assert done.positives == wanted
    for name in ("hash_ranked", "float_ranked", "rerank_ranked"):
        ranked = getattr(whole, name)
        if part == "query":
            ranked = [ranked[i] for i in (0, 2, 3)]
        else:  # the references after it have moved up
            ranked = [[j - (j > 1) for j in row if j != 1] for row in ranked]
        assert getattr(done, name) == ranked


def test_where_nothing_can_be_read_or_judged(few, lite):
    folder = few(2)
    for image in (folder / "ref").iterdir():
        image.write_text("text")
    with pytest.raises(DatasetError, match="no image of the data set can be read"):
        evaluate(VprBench(folder), lite)
    with pytest.raises(DatasetError, match="none of 2 queries has a correct reference"):
        evaluate(VprBench(few(2, correct=[[], []], name="none")), lite)
