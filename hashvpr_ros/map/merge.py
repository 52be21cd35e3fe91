"""One map of several that the same model made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import MapError
from hashvpr_ros.map import files
from hashvpr_ros.map.edit import MapReader, new_map, write_rows
from hashvpr_ros.map.rows import Row
from hashvpr_ros.map.schema import MAX_ID, WrongModelError

_Key = tuple  # all that a keyframe holds but its id: equal only for the same keyframe


@dataclass(frozen=True)
class IdRange:
    """Ids of a source, first and last included, that are all moved by one offset."""

    first_id: int
    last_id: int
    offset: int


@dataclass(frozen=True)
class MergedMap:
    """What became of one of the maps that were merged."""

    path: str
    map_id: str
    keyframes: int
    taken_once: int  # which an earlier map holds, too
    ids: tuple[IdRange, ...]  # ascending; one, unless some were taken once


def merge_maps(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    salvage: bool = False,
) -> list[MergedMap]:
    """Write one map of several.

    The first map keeps its ids, and so does each whose ids are free. Those of another are moved
    by one offset per map, to above all ids that any of the maps ever used. Maps that descend from
    the same map (copies, parts, pruned ones) may have sessions in common: keyframes that are equal
    in all they hold are taken once, under the id of the first map that has them.

    Args:
        salvage: use the valid keyframes of damaged maps.

    Returns:
        what became of each map, in their order.

    Raises:
        WrongModelError: the maps are of different models.
        MapError: a map cannot be read, unrelated maps have sessions of one name, the ids would
            pass the largest possible, or `out` cannot be written. There is no new `out` then.
    """
    resolved = [files.resolve(path) for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise MapError(f"{path}: is given twice; give each map once")
    with ExitStack() as stack:
        maps = [stack.enter_context(MapReader(path, salvage=salvage)) for path in paths]
        _check_models(maps)
        common = _common_sessions(maps)
        with new_map(out, maps, overwrite=overwrite) as store:
            placing = _Placing(maps, common)
            merged = []
            for source in maps:
                new_ids, known = placing.place(source)
                write_rows(store, _moved(source, new_ids, ~known))
                merged.append(
                    MergedMap(
                        str(source.path),
                        source.map_id,
                        len(source),
                        int(known.sum()),
                        _ranges(source.columns.ids, new_ids),
                    )
                )
    return merged


def _check_models(maps: Sequence[MapReader]) -> None:
    first = maps[0]
    for other in maps[1:]:
        if (other.fingerprint, other.feature_dim) != (first.fingerprint, first.feature_dim):
            raise WrongModelError(
                f"{other.path}: made by model {_model(other)}, but {first.path} by "
                f"{_model(first)}; make one of them anew by the other's model, from its images or "
                "by `hashvpr map reembed`"
            )


def _model(source: MapReader) -> str:
    name = source.model_name or "unnamed"
    return f"{name} ({source.fingerprint[:12]}, {source.feature_dim}-d)"


def _common_sessions(maps: Sequence[MapReader]) -> set[str]:
    """Names of sessions that several maps hold.

    Raises:
        MapError: two of those maps have no ancestor in common, so that it cannot be one session.
    """
    holders: dict[str, list[MapReader]] = {}
    for source in maps:
        for name in source.columns.session_names.values():
            for earlier in holders.setdefault(name, []):
                if not source.lineage & earlier.lineage:
                    raise MapError(
                        f"{source.path}: has a session named {name!r} as {earlier.path} has, from "
                        "which it does not descend; build one of them anew with another "
                        "--session, or take its other sessions alone by `hashvpr map split`"
                    )
            holders[name].append(source)
    return {name for name, found in holders.items() if len(found) > 1}


class _Placing:
    """Finds ids for the keyframes of one map after the other."""

    def __init__(self, maps: Sequence[MapReader], common: set[str]) -> None:
        self._common = common
        self._top = max(source.last_id for source in maps)
        self._taken = np.empty(0, np.int64)
        self._known: dict[_Key, int] = {}  # new ids of keyframes of common sessions

    def place(self, source: MapReader) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """New ids of a map's keyframes, int64 [n], and which an earlier map has brought, [n].

        Raises:
            MapError: they would pass the largest possible.
        """
        keys = dict(self._keys(source))
        new_ids = source.columns.ids.astype(np.int64)
        known = np.zeros(len(source), bool)
        for row, key in keys.items():
            if key in self._known:
                new_ids[row] = self._known[key]
                known[row] = True
        own = new_ids[~known]
        if np.isin(own, self._taken).any():
            # Above all that any map used: a later map, too, keeps its ids where it can.
            own += self._top + 1 - own[0]
            if own[-1] > MAX_ID:
                raise MapError(
                    f"{source.path}: its ids would be moved to {own[-1]}, but end at {MAX_ID}; "
                    "leave it out"
                )
            self._top = int(own[-1])
            new_ids[~known] = own
        self._taken = np.concatenate([self._taken, own])
        for row, key in keys.items():
            self._known.setdefault(key, int(new_ids[row]))
        return new_ids, known

    def _keys(self, source: MapReader) -> Iterator[tuple[int, _Key]]:
        """The rows of common sessions."""
        columns = source.columns
        names = {i: name for i, name in columns.session_names.items() if name in self._common}
        for row in np.flatnonzero(np.isin(columns.sessions, list(names))).tolist():
            yield (
                row,
                (
                    names[int(columns.sessions[row])],
                    int(columns.stamps_ns[row]),
                    columns.cameras[row],
                    columns.frame_ids[row],
                    columns.poses[row].tobytes(),
                    columns.codes[row].tobytes(),
                    columns.contents[row],
                ),
            )


def _moved(
    source: MapReader, new_ids: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> Iterator[Row]:
    rows = source.rows(source.columns.ids[wanted])
    for row, id_ in zip(rows, new_ids[wanted].tolist(), strict=True):
        yield dataclasses.replace(row, id=id_)


def _ranges(ids: NDArray[np.int32], new_ids: NDArray[np.int64]) -> tuple[IdRange, ...]:
    if not len(ids):
        return ()
    offsets = new_ids - ids
    begins = np.flatnonzero(np.diff(offsets, prepend=offsets[0] - 1))
    ends = np.append(begins[1:], len(ids)) - 1
    return tuple(
        IdRange(int(ids[b]), int(ids[e]), int(offsets[b]))
        for b, e in zip(begins, ends, strict=True)
    )
