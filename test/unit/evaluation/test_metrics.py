"""Measures against what can be computed by hand."""

import math

import numpy as np
import pytest

from hashvpr_ros.evaluation.metrics import (
    MISSED,
    average_precision,
    brier,
    expected_calibration_error,
    first_hit,
    median_p95,
    precision_recall,
    recall_at,
    recall_at_precision,
    reliability,
)


def test_recall():
    ranked = [[3, 1, 2], [0, 2, 1], [5, 6, 7, 8, 9, 4], [1]]
    positives = [{3}, {1, 9}, {4}, {0}]
    assert recall_at(ranked, positives) == {"1": 25.0, "5": 50.0, "10": 75.0}
    assert recall_at(ranked, positives, ks=(2, 3)) == {"2": 25.0, "3": 50.0}


def test_queries_without_a_correct_reference_do_not_count():
    assert recall_at([[0], [0], [1]], [{0}, set(), {0}]) == {"1": 50.0, "5": 50.0, "10": 50.0}
    for nothing in (([], []), ([[0]], [set()])):
        assert all(math.isnan(v) for v in recall_at(*nothing).values())
    with pytest.raises(ValueError):
        recall_at([[0]], [{0}, {1}])


def test_recall_of_a_query_without_candidates_is_none():
    assert recall_at([[], [0]], [{0}, {0}])["10"] == 50.0


def test_a_short_list_counts_with_what_it_holds():
    ranked = [list(range(100)), [7, 99], []]
    positives = [{19}, {99}, {99}]
    recall = recall_at(ranked, positives, ks=(1, 5, 10, 20, 100))
    a, b = 100 / 3, 200 / 3
    assert recall == pytest.approx({"1": 0, "5": a, "10": a, "20": b, "100": b})


def test_rank_of_the_first_correct_reference():
    ranked = [[3, 1, 2], [0, 2, 1], [8, 9], [5, 6], []]
    first = first_hit(ranked, [{3, 2}, {1, 9}, set(), {4}, {4}])
    assert first.tolist() == [0, 2, MISSED, MISSED] and first.dtype == np.int64
    resample = np.array([0, 0, 1, 3])
    assert (first[resample] < 1).mean() == 0.5 and (first[resample] < 100).mean() == 0.75
    assert first_hit([], []).shape == (0,)
    with pytest.raises(ValueError):
        first_hit([[0]], [])


def test_median_and_95th_percentile():
    assert median_p95([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": 2.9}
    assert median_p95(range(101)) == {"median": 50.0, "p95": 95.0}
    assert median_p95([7]) == {"median": 7.0, "p95": 7.0}
    assert all(math.isnan(v) for v in median_p95([]).values())


def test_precision_and_recall():
    # By hand: 0.9 right; 0.8 twice, one right; 0.5 wrong; 0.2 right. Of 5 that could be.
    scores = [0.8, 0.9, 0.2, 0.8, 0.5]
    right = [True, True, True, False, False]
    thresholds, precision, recall = precision_recall(scores, right, possible=5)
    np.testing.assert_array_equal(thresholds, [0.9, 0.8, 0.5, 0.2])
    np.testing.assert_allclose(precision, [1, 2 / 3, 2 / 4, 3 / 5])
    np.testing.assert_allclose(recall, [1 / 5, 2 / 5, 2 / 5, 3 / 5])
    assert average_precision(precision, recall) == pytest.approx(
        (1 / 5) * 1 + (1 / 5) * (2 / 3) + 0 + (1 / 5) * (3 / 5)
    )


def test_the_order_of_equal_scores_does_not_matter():
    a = precision_recall([0.5] * 4, [True, True, False, False], 4)
    b = precision_recall([0.5] * 4, [False, False, True, True], 4)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a[1], [0.5])


def test_queries_whose_place_is_not_in_the_map():
    # By hand: of six queries four are of places in the map; one of them matches wrongly, at 0.6,
    # and one nothing at all. The two others match what they can, at 0.7 and at 0.4.
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.4])
    right = np.array([True, True, False, False, False])
    thresholds, precision, recall = precision_recall(scores, right, possible=4)
    np.testing.assert_array_equal(thresholds, scores)
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 4, 2 / 5])
    np.testing.assert_allclose(recall, [1 / 4, 2 / 4, 2 / 4, 2 / 4, 2 / 4])
    assert recall_at_precision(precision, recall, 1.0) == 0.5
    # Without them the curve is another: they do count.
    _, without, _ = precision_recall(scores[[0, 1, 3]], right[[0, 1, 3]], possible=4)
    np.testing.assert_allclose(without, [1, 1, 2 / 3])
    # One of them above all is what ruins a map.
    _, precision, recall = precision_recall([0.95, *scores], [False, *right], possible=4)
    assert recall_at_precision(precision, recall, 1.0) == 0.0
    assert recall_at_precision(precision, recall, 2 / 3) == 0.5


def test_recall_at_a_precision_that_falls_and_comes_back():
    # One wrong after three right ones, and then 96 more right ones: 99 of 100.
    right = [True] * 3 + [False] + [True] * 96 + [False] * 20
    _, precision, recall = precision_recall(-np.arange(120.0), right, possible=198)
    assert recall_at_precision(precision, recall, 1.0) == 3 / 198
    assert recall_at_precision(precision, recall, 0.99) == 99 / 198
    assert recall_at_precision(precision, recall, 0.995) == 3 / 198
    assert recall_at_precision(precision, recall, 0.0) == 99 / 198


def test_recall_at_a_precision_that_is_never_reached():
    _, precision, recall = precision_recall([0.9, 0.8], [False, True], possible=1)
    assert recall_at_precision(precision, recall, 0.5) == 1.0
    assert recall_at_precision(precision, recall, 0.51) == 0.0
    assert recall_at_precision(np.empty(0), np.empty(0), 0.5) == 0.0
    with pytest.raises(ValueError, match="not 99"):
        recall_at_precision(precision, recall, 99)


def test_nothing_to_measure():
    thresholds, precision, recall = precision_recall([], [], 3)
    assert len(thresholds) == len(precision) == len(recall) == 0
    assert average_precision(precision, recall) == 0.0
    _, precision, recall = precision_recall([0.3], [False], 0)
    assert (precision.tolist(), recall.tolist()) == ([0.0], [0.0])


def test_calibration():
    # By hand, in fifths: 0.1 and 0.2 (the edge) with one right; 0.7 and 0.9 in bins of their own.
    probabilities = [0.1, 0.2, 0.7, 0.9, 1.0, 1.0]
    right = [False, True, True, True, True, False]
    mean, share, count = reliability(probabilities, right, bins=5)
    assert count.tolist() == [2, 0, 0, 1, 3]
    np.testing.assert_allclose(mean, [0.15, np.nan, np.nan, 0.7, 2.9 / 3])
    np.testing.assert_allclose(share, [0.5, np.nan, np.nan, 1.0, 2 / 3])
    error = (2 * 0.35 + 1 * 0.3 + 3 * 0.3) / 6
    assert expected_calibration_error(probabilities, right, bins=5) == pytest.approx(error)
    squares = 0.1**2 + 0.8**2 + 0.3**2 + 0.1**2 + 0 + 1
    assert brier(probabilities, right) == pytest.approx(squares / 6)


def test_an_upper_edge_belongs_to_its_bin():
    edges = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert reliability(edges, [True] * 10)[2].tolist() == [1] * 10
    assert reliability([0.0], [True])[2].tolist() == [1] + [0] * 9
    assert reliability([0.0, 1.0], [False, True], bins=1)[2].tolist() == [2]


def test_calibrated_and_overconfident_probabilities():
    random = np.random.default_rng(3)
    truth = random.uniform(size=100_000)
    right = random.uniform(size=len(truth)) < truth
    assert expected_calibration_error(truth, right) < 0.01
    assert brier(truth, right) == pytest.approx(1 / 6, abs=0.003)  # the mean of p(1 - p)
    assert expected_calibration_error(np.ones(len(truth)), right) == pytest.approx(0.5, abs=0.01)
    assert brier(np.ones(len(truth)), right) == pytest.approx(0.5, abs=0.01)


def test_the_order_of_equal_probabilities_does_not_matter():
    probabilities = [0.0] * 10 + [1.0] * 10
    a = expected_calibration_error(probabilities, [True] * 5 + [False] * 5 + [True] * 10)
    b = expected_calibration_error(probabilities, [True, False] * 5 + [True] * 10)
    assert a == b == 0.25


def test_no_probabilities_and_wrong_ones():
    assert math.isnan(expected_calibration_error([], [])) and math.isnan(brier([], []))
    mean, share, count = reliability([], [], bins=3)
    assert np.isnan(mean).all() and np.isnan(share).all() and count.tolist() == [0, 0, 0]
    for measure in (reliability, expected_calibration_error, brier):
        for wrong in ([1.1], [-0.1], [float("nan")]):
            with pytest.raises(ValueError, match="from 0 to 1"):
                measure(wrong, [True])
        with pytest.raises(ValueError, match="one outcome"):
            measure([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="at least 1 bin"):
        reliability([0.5], [True], bins=0)
