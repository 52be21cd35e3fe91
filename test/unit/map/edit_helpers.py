"""What all maps that are made of maps must be, and their content in a form to compare."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from map_helpers import folder_state, open_map

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.place_map import PlaceMap


def content(path: Path) -> dict[int, tuple]:
    """Everything that a map holds, by id."""
    with PlaceMap.open(path, read_only=True) as place_map:
        ids = place_map.ids()
        return {
            k.id: (
                k.session,
                k.camera,
                k.stamp_ns,
                k.pose,
                code,
                feature,
                place_map.thumbnail(k.id),
            )
            for k, code, feature in zip(
                place_map.keyframes(ids),
                map(bytes, place_map.codes()),
                map(bytes, place_map.features(ids)),
                strict=True,
            )
        }


def check_result(out: Path, *sources: Path) -> None:
    """A result is sound, another map than its sources, alone, and goes on with ids of its own."""
    infos = [PlaceMap.read_info(path) for path in sources]
    with open_map(out) as place_map:
        assert place_map.verify() == []
        assert place_map.map_id not in [info.map_id for info in infos]
        assert place_map.model_name == infos[0].model_name
        highest = place_map._next_id
    for path in sources:
        with PlaceMap.open(path, read_only=True) as source:
            assert highest >= source._next_id
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


@contextmanager
def refused(folder: Path, *reasons: str, error=MapError):
    """What is done raises one sentence with all of the words, and changes no file."""
    before = folder_state(folder)
    with pytest.raises(error) as e:
        yield
    for reason in reasons:
        assert reason in str(e.value)
    assert "\n" not in str(e.value)
    assert folder_state(folder) == before
