"""Which places an image may show, each by one keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.matching.distinct import SamePlaces, show_one_place
from hashvpr_ros.matching.finder import Finder, Found
from hashvpr_ros.matching.track import Place
from hashvpr_ros.types import Keyframe


@dataclass(frozen=True)
class Choice:
    """A place, by the keyframe that shows it best."""

    keyframe: Keyframe
    distance_bits: int
    similarity: float
    mass: float  # the filter's belief in the place, 0 to 1


def choose(
    found: Found,
    sessions: NDArray[np.integer],
    places: Sequence[Place],
    finder: Finder,
    same: SamePlaces,
    count: int,
) -> list[Choice]:
    """The likeliest places, no two known to be one; the filter's first, then in `found.order`.

    Args:
        found: candidates, by the finder.
        sessions: of the candidates, [k], as the filter has them; negative: it cannot be there.
        places: that the filter believes in, best first.
        same: stretches of the map that are one place.
        count: at most, but for those of the filter.
    """
    ranked = found.ranked
    possible = np.flatnonzero(sessions >= 0).tolist()
    chosen: list[Choice] = []

    def is_new(keyframe: Keyframe) -> bool:
        return not any(show_one_place(keyframe, other.keyframe, same) for other in chosen)

    numbers, session_of = found.places[possible], sessions[possible]
    for place in places:
        near = (numbers >= place.first) & (numbers <= place.last) & (session_of == place.session)
        if not near.any():  # perhaps on another lap
            near = finder.at_first(np.append(place.number, numbers))[1:]
        if near.any():
            rank = possible[int(np.argmax(near))]  # the best of them
            c, keyframe = ranked.found[rank], ranked.keyframe(rank)
            choice = Choice(keyframe, c.distance_bits, c.similarity, place.mass)
        else:
            choice = Choice(*finder.best_view(place.number, found.descriptor), place.mass)
        if is_new(choice.keyframe):
            chosen.append(choice)
    for rank in found.order:
        if len(chosen) >= count:
            break
        if sessions[rank] < 0:
            continue
        keyframe = ranked.keyframe(rank)
        if is_new(keyframe):
            c = ranked.found[rank]
            chosen.append(Choice(keyframe, c.distance_bits, c.similarity, 0.0))
    return chosen
