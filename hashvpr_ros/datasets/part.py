"""A range of the queries of two traverses, with the references that belong to it."""

from __future__ import annotations

from pathlib import Path

from hashvpr_ros.datasets.base import Traverses
from hashvpr_ros.errors import ConfigError


class Part:
    """Queries first to last - 1 of two traverses; see `datasets.base.Traverses`.

    The references are those that are correct for one of these queries, and those whose index is in
    the same range. They keep their order. So the places that a model was trained on can be left
    out, where they come first in both traverses.

    Args:
        whole: both traverses.
        first, last: range of the queries, from 0; `last` is not in it.

    Raises:
        ConfigError: the range is empty, or ends after the last query.
    """

    def __init__(self, whole: Traverses, first: int, last: int) -> None:
        if not 0 <= first < last <= len(whole.queries):
            raise ConfigError(
                f"the range of queries {first}:{last} does not fit {len(whole.queries)} queries; "
                f"give FIRST:LAST with 0 <= FIRST < LAST <= {len(whole.queries)}"
            )
        self._whole, self._range = whole, slice(first, last)
        correct = {j for right in whole.positives()[self._range] for j in right}
        count = len(whole.references)
        kept = sorted(correct | set(range(first, min(last, count))))
        self._index = {j: i for i, j in enumerate(kept)}
        self.notes = whole.notes
        self.queries: list[Path] = whole.queries[self._range]
        self.references: list[Path] = [whole.references[j] for j in kept]

    def positives(self, tolerance: int = 0) -> list[set[int]]:
        """Correct references of each query; those that were left out are none.

        Raises:
            ConfigError: the layout takes no tolerance.
        """
        return [
            {self._index[j] for j in right if j in self._index}
            for right in self._whole.positives(tolerance)[self._range]
        ]
