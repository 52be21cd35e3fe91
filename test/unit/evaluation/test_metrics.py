"""Measures against what can be computed by hand."""

import math

import numpy as np
import pytest

from hashvpr_ros.evaluation.metrics import (
    average_precision,
    median_p95,
    precision_recall,
    recall_at,
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


def test_nothing_to_measure():
    thresholds, precision, recall = precision_recall([], [], 3)
    assert len(thresholds) == len(precision) == len(recall) == 0
    assert average_precision(precision, recall) == 0.0
    _, precision, recall = precision_recall([0.3], [False], 0)
    assert (precision.tolist(), recall.tolist()) == ([0.0], [0.0])
