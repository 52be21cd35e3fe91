"""Every way beside one another on real images, and the numbers made of them."""

import numpy as np
import pytest

from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.evaluation.ablation import Way, ablate, measures
from hashvpr_ros.evaluation.metrics import recall_at
from hashvpr_ros.evaluation.recorded import RecordedEngine

KEYS = [
    "hash", "float", "rerank_10", "rerank_50", "rerank_100", "sequence", "filter", "both",
    "orb", "hog", "vlad",
]  # fmt: skip


@pytest.fixture(scope="module")
def corridor(data):
    return VprBench(data / "corridor")


@pytest.fixture(scope="module")
def result(corridor, lite):
    calls = []
    done = ablate(corridor, lite, progress=lambda: calls.append(None))
    assert len(calls) == 4 * 222  # the network and three baselines
    return done


@pytest.fixture(scope="module")
def summary(result):
    """With its intervals, which take longest."""
    return result.summary()


def test_every_way_has_its_numbers(summary):
    assert list(summary["ways"]) == KEYS
    for key, way in summary["ways"].items():
        recall = list(way["recall"].values())
        assert recall == sorted(recall) and recall[0] > 30
        low, high = way["recall_interval"]["1"]
        assert low <= way["recall"]["1"] <= high and high - low < 35  # 11 blocks
        assert 0 <= way["recall_at_100_precision"] <= way["recall_at_99_precision"] <= 100
        assert 0 < way["latency_ms"]["median"] <= way["latency_ms"]["p95"]
        assert way["bytes_per_place"]["resident"] > 64
        # A code, a feature of 512 floats, and what else a keyframe has.
        assert way["bytes_per_place"]["stored"] > 64 + 2 * 512
        assert (
            ("closures" in way)
            == ("calibration_error" in way)
            == (key in ("sequence", "filter", "both"))
        )


def test_what_time_adds_beats_single_images(summary):
    """Runs of views beat single images on the corridor, and hardly any closure is wrong."""
    ways = summary["ways"]
    assert ways["both"]["recall"]["1"] > ways["rerank_100"]["recall"]["1"]
    assert ways["both"]["recall"]["1"] > ways["float"]["recall"]["1"]
    assert ways["both"]["closures"]["accepted"] > 30
    assert ways["both"]["closures"]["precision"] > 95.0


def test_the_network_beats_what_does_without(summary):
    ways = summary["ways"]
    best = max(ways[k]["recall"]["1"] for k in ("orb", "hog"))
    assert ways["rerank_100"]["recall"]["1"] > best + 5
    assert ways["rerank_100"]["recall"]["1"] > ways["vlad"]["recall"]["1"]


def test_re_ranking_all_is_float_alone(result, summary, corridor):
    ways = {w.key: w for w in result.ways}
    assert [r[0] for r in ways["rerank_100"].ranked] == [r[0] for r in ways["float"].ranked]
    recall = recall_at(ways["hash"].ranked, corridor.positives(), (1,))["1"]
    assert summary["ways"]["hash"]["recall"]["1"] == pytest.approx(recall, abs=0.01)


def test_intervals_are_of_blocks(result, summary):
    assert summary["ground_truth"]["left_out"] == 0
    assert summary["interval_block_queries"] == 10  # each reference is correct for 5 queries
    one_place = measures(result.ways[0], [{0}] * 111)
    for name in ("average_precision_interval", "recall_at_100_precision_interval"):
        assert np.isnan(one_place[name]).all()
    assert np.isnan(one_place["recall_interval"]["1"]).all()


def test_numbers_by_hand():
    way = Way(
        "x", "x", [[0], [5], [2, 1], []], [0.9, 0.8, 0.7, 0.0], [1.0, 3.0, 2.0, 2.0], 80.0, 90.0,
        accepted=[True, True, False, False], is_probability=True,
    )  # fmt: skip
    # The second shows no place of the map; the last found nothing.
    found = measures(way, [{0}, set(), {1}, {3}])
    assert found["recall"]["1"] == pytest.approx(33.33)
    assert found["recall"]["5"] == pytest.approx(66.67)
    assert found["closures"] == {"accepted": 2, "precision": 50.0, "recall": 33.33}
    assert found["recall_at_100_precision"] == pytest.approx(33.33)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.49) / 4)
    assert found["latency_ms"]["median"] == 2.0


def test_a_recorded_engine_gives_what_was_recorded(lite):
    codes = np.arange(3 * 64, dtype=np.uint8).reshape(3, 64)
    features = np.eye(3, 512, dtype=np.float32)
    engine = RecordedEngine(lite.info, codes, features)
    assert engine.info.fingerprint == lite.info.fingerprint
    first = engine.describe(engine.blank[np.newaxis])
    rest = engine.describe(np.stack([engine.blank] * 2))
    assert np.array_equal(np.concatenate([first[0], rest[0]]), codes)
    assert np.array_equal(np.concatenate([first[1], rest[1]]), features)
