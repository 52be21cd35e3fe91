"""Support by preceding views: who retraces the map has it, who jumps about has not."""

import numpy as np
import pytest

from hashvpr_ros.matching.sequence import MAX_GAP_NS, NEW_VIEW_BITS, SequenceMemory
from hashvpr_ros.types import Keyframe

SECOND = 10**9


def code(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, 64, np.uint8)


def keyframe(id_: int, session: str = "s") -> Keyframe:
    return Keyframe(id_, session, "camera", id_ * SECOND)


def seen(ids, length=10, session="s", distinctness=0.1) -> SequenceMemory:
    memory = SequenceMemory(length)
    for i, id_ in enumerate(ids):
        memory.begin(i * SECOND)
        best = None if id_ is None else keyframe(id_, session)
        memory.add(i * SECOND, code(i), best, distinctness)
    return memory


@pytest.mark.parametrize("step", [1, -1, 2, -2, 4, 0.5, -0.25])
def test_a_retraced_stretch_is_supported_at_several_speeds_in_both_directions(step):
    ids = [round(1000 + i * step) for i in range(10)]
    run = seen(ids).run(code(99), keyframe(round(1000 + 10 * step)), 0.3)
    assert run.support == 1.0
    assert run.distinctness == pytest.approx((10 * 0.1 + 0.3) / 11)


@pytest.mark.parametrize(
    "ids", [[1000] * 10, [1000, 1900, 1300, 1700, 1100, 1600, 1200, 1800] * 2]
)
def test_standing_still_and_jumping_about_are_no_support(ids):
    assert seen(ids).run(code(99), keyframe(1000), 0.3).support < 0.4


def test_outliers_cost_their_share_and_their_distinctness_does_not_count():
    ids = [1000 + i for i in range(10)]
    memory = SequenceMemory(10)
    for i, id_ in enumerate(ids):
        wrong = i in (2, 5)
        memory.add(i, code(i), keyframe(5 if wrong else id_), 9.0 if wrong else 0.1)
    run = memory.run(code(99), keyframe(1010), 0.1)
    assert run.support == pytest.approx(0.8)
    assert run.distinctness == pytest.approx(0.1)


def test_few_views_are_little_support():
    assert seen([1000, 1001, 1002], length=10).run(code(9), keyframe(1003), 0.1).support == 0.3
    assert SequenceMemory(10).run(code(1), keyframe(3), 0.2) == seen([]).run(
        code(1), keyframe(3), 0.2
    )
    assert SequenceMemory(10).run(code(1), keyframe(3), 0.2).support == 0.0


def test_views_without_a_match_and_of_another_session_do_not_support():
    ids = [1000 + i for i in range(10)]
    assert seen(ids, session="other").run(code(99), keyframe(1010), 0.1).support == 0.0
    assert seen([None] * 10).run(code(99), keyframe(1010), 0.1).support == 0.0


def test_one_view_again_and_again_is_one_witness():
    memory = SequenceMemory(10)
    for i in range(50):
        memory.add(i, code(7), keyframe(1000), 0.1)
    assert memory.run(code(8), keyframe(1001), 0.1).support == 0.1
    nearly = code(7)
    nearly[: NEW_VIEW_BITS // 8] ^= 0xFF
    memory.add(51, nearly, keyframe(1001), 0.1)
    assert memory.run(code(8), keyframe(1002), 0.1).support == 0.2


def test_time_that_jumps_begins_anew():
    for jump in (-1, MAX_GAP_NS + 1):
        memory = seen([1000 + i for i in range(10)])
        memory.begin(9 * SECOND + jump)
        assert memory.run(code(99), keyframe(1010), 0.1).support == 0.0


def test_what_is_older_than_the_length_is_forgotten():
    run = seen([5] * 20 + [1000 + i for i in range(5)], length=5).run(
        code(99), keyframe(1005), 0.1
    )
    assert run.support == 1.0


def test_a_view_counts_where_its_place_was_passed_on_any_lap():
    memory = SequenceMemory(10)
    for i in range(10):
        memory.begin(i * SECOND)
        # The best match is on one lap or another, by turns; the copies are of both.
        first, second = 100 + i, 400 + i
        best, copy = (first, second) if i % 2 else (second, first)
        memory.add(i * SECOND, code(i), keyframe(best), 0.1, [copy])
    assert memory.run(code(99), keyframe(110), 0.1).support == 1.0
    assert memory.run(code(99), keyframe(410), 0.1).support == 1.0
    assert memory.run(code(99), keyframe(260), 0.1).support < 0.3
