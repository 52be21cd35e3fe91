"""Recall of a branch on a validation set, while it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.errors import DatasetError
from hashvpr_ros.evaluation.metrics import recall_at

# Of the squared slope: of no weight unless right and wrong lie apart, where without it no slope
# would be steep enough.
_INVERSE_PENALTY = 1e3


class Validation:
    """Part of a folder in the layout of VPR-Bench: queries, and the references of the same range.

    Args:
        first, last: of the queries, as Python slices count; 0 as last is the end.

    Raises:
        DatasetError: the folder is malformed, or no query has a correct reference.
    """

    def __init__(self, folder: Path, first: int = 0, last: int = 0) -> None:
        dataset = VprBench(folder)
        numbers = range(len(dataset.queries))[first : last or None]
        if not len(numbers) or not any(dataset.correct[i] for i in numbers):
            raise DatasetError(f"{folder}: no query from {first} to {last or 'the end'} counts")
        # With a range, what those queries look for; with all queries, every reference.
        wanted = {r for i in numbers for r in dataset.correct[i]}
        references = sorted(wanted) if len(numbers) < len(dataset.queries) else None
        chosen = list(range(len(dataset.references))) if references is None else references
        position = {r: i for i, r in enumerate(chosen)}
        self.queries = len(numbers)
        self.paths = [
            *(dataset.queries[i] for i in numbers),
            *(dataset.references[i] for i in chosen),
        ]
        self.positives = [{position[r] for r in dataset.correct[i]} for i in numbers]

    def recall(self, descriptors: Tensor, binary: bool) -> dict[str, float]:
        """R@1, R@5 and R@10 in percent of descriptors [queries + references, D].

        Args:
            binary: search by the signs.
        """
        values = torch.where(descriptors >= 0, 1.0, -1.0) if binary else descriptors.float()
        similarity = values[: self.queries] @ values[self.queries :].T
        # Equal distances go by number, as the map's search does.
        ranked = np.argsort(-similarity.numpy(), axis=1, kind="stable")[:, :10]
        return recall_at(ranked.tolist(), self.positives)

    def probability_curve(self, features: Tensor, changed: Tensor) -> tuple[float, float] | None:
        """P(the best match is right) over its distinctness, by logistic regression.

        Each query is asked for twice: as it is, and with its correct references out of the map, so
        that the best match is wrong. The distinctness is the best cosine less the best at another
        reference (matching.distinct), so the set should be of places apart from one another.

        Args:
            features: float32 [queries + references, D], L2-normalised.
            changed: the queries once more, under another camera and light, [queries, D].

        Returns:
            slope and intercept; None where the regression finds no rising curve.
        """
        from sklearn.linear_model import LogisticRegression

        references = features[self.queries :]
        distinctness, right = [], []
        for queries in (features[: self.queries], changed):
            similarity = (queries @ references.T).numpy()
            for row, positives in zip(similarity, self.positives, strict=True):
                absent = row.copy()
                absent[list(positives)] = -np.inf
                for scores, present in ((row, True), (absent, False)):
                    best = int(scores.argmax())
                    # Whatever shows the place that was found is no rival of it.
                    rivals = scores.copy()
                    rivals[list(positives) if present and best in positives else [best]] = -np.inf
                    distinctness.append(float(scores[best] - rivals.max()))
                    right.append(present and best in positives)
        x, y = np.array(distinctness)[:, None], np.array(right)
        if not np.isfinite(x).all() or y.all() or not y.any():
            return None
        fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000).fit(x, y)
        slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        return (round(slope, 3), round(intercept, 3)) if slope > 0 else None
