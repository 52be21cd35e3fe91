"""Maps made of maps: reading some row by row, and writing a new one that appears when it is whole.

What merge, prune, split, export and reembed share. The maps that are read stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files, integrity
from hashvpr_ros.map.backup import placed
from hashvpr_ros.map.loading import checked_batches, load_columns
from hashvpr_ros.map.rows import Row, row_from_columns
from hashvpr_ros.map.salvage import salvage
from hashvpr_ros.map.schema import DamagedMapError, reading, remedy
from hashvpr_ros.map.store import Store

_ANCESTORS = "derived_from"  # in `meta`: map_ids of the maps that a map was made of, and of theirs
_BATCH = 256  # keyframes in memory with features and thumbnails
Progress = Callable[[], None]


def no_progress() -> None:
    """Tell nobody."""


class MapReader:
    """A map file as it is at one moment, whoever adds to it meanwhile; read-only.

    What a writer has not committed yet is not in it.
    """

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        """Open a map, of whatever model, and check all of it.

        Args:
            salvage: read the valid keyframes of a damaged map; `left_out` lists the rest.

        Raises:
            MapNotFoundError, MapError: missing, foreign, newer. DamagedMapError: damaged. The
                file is untouched.
        """
        self._store = Store.open(path, {}, read_only=True, create=False)
        assert self._store.path is not None
        self.path = self._store.path
        self.left_out: tuple[str, ...] = ()
        try:
            with reading(self.path):
                self._store.db.execute("BEGIN")  # all that is read from here on is of one moment
                meta = self._salvaged() if salvage else self._sound()
        except BaseException:
            self.close()
            raise
        self.map_id = meta["map_id"]
        self.fingerprint = meta["fingerprint"]
        self.feature_dim = int(meta["feature_dim"])
        self.model_name = meta.get("model_name", "")
        self.calibrated = "calibration" in meta
        # The map_ids of this map and of all that it was made of.
        self.lineage = frozenset([self.map_id, *meta.get(_ANCESTORS, "").split()])

    def _sound(self) -> dict[str, str]:
        store = self._store
        meta = store.meta()
        if problems := integrity.find_problems(store.db):
            raise DamagedMapError(
                f"{self.path}: damaged ({problems[0]}); {remedy(self.path)}, or give --salvage to "
                "use its valid keyframes"
            )
        names = {number: name for name, number in store.sessions().items()}
        self.columns = load_columns(checked_batches(store), names)
        self.last_id = store.next_id() - 1  # the highest that was ever used
        return meta

    def _salvaged(self) -> dict[str, str]:
        found = salvage(self._store)
        self.columns = load_columns(iter(found.batches), found.sessions)
        self.last_id = found.last_id
        self.left_out = found.left_out
        return found.meta

    def __len__(self) -> int:
        return len(self.columns)

    def __enter__(self) -> MapReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def rows(self, ids: NDArray[np.integer] | None = None) -> Iterator[Row]:
        """Keyframes with all that they hold, each tested by its checksum.

        Args:
            ids: ascending, of keyframes of this map; None: all.

        Raises:
            MapError: one of them is damaged.
        """
        wanted = (self.columns.ids if ids is None else ids).tolist()
        for begin in range(0, len(wanted), _BATCH):
            chunk = wanted[begin : begin + _BATCH]
            with reading(self.path):
                found = self._store.rows(chunk)
                if [values[0] for values in found] != chunk:
                    raise ValueError("keyframes are missing")
                names = self.columns.session_names
                rows = [row_from_columns(values, names, self.feature_dim) for values in found]
            self._store.check_unchanged()
            yield from rows

    def bytes_each(self) -> NDArray[np.float64]:
        """The share of each keyframe in the pages of the file that are in use, float64 [n]."""
        with reading(self.path):
            thumbnails = self._store.thumbnail_bytes()
            used = self._store.used_bytes()
        content = np.array([thumbnails.get(i, 0) for i in self.columns.ids.tolist()], float)
        content += 2 * self.feature_dim + 200  # pose, code and what else there is
        return content * (used / max(content.sum(), 1.0))


@contextmanager
def new_map(
    path: str | Path,
    sources: Sequence[MapReader],
    *,
    overwrite: bool,
    model: dict[str, str] | None = None,
) -> Iterator[Store]:
    """An empty map to be filled, which takes its place when the block ends well.

    It has a map_id of its own and remembers those of its sources. No id that one of them ever
    used is given to a keyframe that is added to it later. It is not calibrated: a calibration was
    measured on the very keyframes of its map.

    Args:
        model: fingerprint, feature_dim and model_name; None: those of the first source.

    Raises:
        MapError: the file exists and is not to be overwritten, is open or a source, or cannot be
            written.
    """
    target = not_a_source(path, sources)
    meta = model or {
        "fingerprint": sources[0].fingerprint,
        "feature_dim": str(sources[0].feature_dim),
        "model_name": sources[0].model_name,
    }
    ancestors = frozenset[str]().union(*(source.lineage for source in sources))
    meta = {**meta, _ANCESTORS: " ".join(sorted(ancestors))}
    with (
        placed(target, overwrite=overwrite, doing="writing the map") as temporary,
        contextlib.closing(Store.create(temporary, meta, target)) as store,
    ):
        store.clear(max(source.last_id for source in sources))
        yield store


def not_a_source(path: str | Path, sources: Sequence[MapReader]) -> Path:
    """The resolved path of a result.

    Raises:
        MapError: it is one of the maps that are read, or a map keeps a file of its own there.
    """
    target = files.resolve(path)
    files.refuse_kept_name(target)
    if target in [source.path for source in sources]:
        raise MapError(f"{target}: is read from, so it cannot be the result; give another path")
    return target


def write_rows(store: Store, rows: Iterable[Row], progress: Progress = no_progress) -> int:
    """Write rows in batches; returns how many.

    Args:
        progress: called for each.

    Raises:
        MapError: the file cannot be written, or the source of the rows cannot be read.
    """
    count = 0
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        store.write(batch)
        count += len(batch)
        for _ in batch:
            progress()
    return count


def seconds_text(stamp_ns: int) -> str:
    """Nanoseconds as seconds with 9 decimals, exactly, which a float64 cannot."""
    ns = int(stamp_ns)
    whole, rest = divmod(abs(ns), 10**9)
    return f"{'-' * (ns < 0)}{whole}.{rest:09d}"
