"""Verdicts of a back end over DDS: undone, kept in the map, and refused where they fit nothing."""

import pytest
from vpr_process import START_NS, Camera, stamp_ns_of, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import ClosureVerdict, LoopClosure


@pytest.fixture
def node(start, tmp_path):
    # One image is enough here, and every image becomes a keyframe.
    node = start(
        keyframes__min_period_s=0.0,
        keyframes__min_novelty_bits=0,
        matching__exclude_recent_s=1.0,
        matching__temporal="none",
        matching__target_precision=0.6,
        map__path=str(tmp_path / "m.vprmap"),
        publish__ledger=True,
        publish__diagnostics_period_s=0.1,
    )
    node.activate()
    node.camera = Camera(node).connect()
    node.closures = node.client.listen(LoopClosure, node.topic("loop_closures"))
    node.verdicts = node.client.publisher(ClosureVerdict, node.topic("verdicts"))
    node.client.matched(node.verdicts)
    for i in range(50):  # fewer say nothing of what looks alike
        node.camera.show(i, float(i))
    return node


def verdict_on(closure, said, **changes):
    fields = {
        "header": closure.header,
        "map_id": closure.map_id,
        "query_stamp": closure.query_stamp,
        "query_camera": closure.query_camera,
        "match_keyframe_id": closure.match_keyframe_id,
        "verdict": said,
    }
    return ClosureVerdict(**(fields | changes))


def test_a_rejected_pair_is_not_offered_again_and_all_are_kept(node, diagnostics, tmp_path):
    def close(seed, second):
        assert node.camera.show(seed, second).reason == "accepted"
        stamp_ns = START_NS + round(second * 1e9)
        return wait_until(
            lambda: [c for c in node.closures if stamp_ns_of(c) == stamp_ns], "the closure"
        )[0]

    first = close(5, 100.0)
    assert first.match_keyframe_id == 6
    # Those that fit no closure are named and change nothing.
    for changes in (
        {"verdict": "maybe" + 100_000 * "?"},
        {"map_id": "another"},
        {"match_keyframe_id": 7},
        {"query_camera": "rear"},
    ):
        node.verdicts.publish(verdict_on(first, "accepted", **changes))
    diagnostics(node, lambda d: d["node"]["verdicts_passed_over"] == "4", "they are counted")
    (line,) = (text for text in node.text().splitlines() if "unknown verdict 'maybe" in text)
    assert "give one of accepted, " in line and len(line) < 500
    rejected = "verdicts_rejected_by_geometry"
    node.verdicts.publish(verdict_on(first, "rejected_by_geometry"))
    diagnostics(node, lambda d: d["node"][rejected] == "1", "the rejection")
    again = node.camera.show(5, 101.0)
    assert all(abs(h.place_id - 6) > 12 for h in again.hypotheses)
    node.verdicts.publish(verdict_on(close(20, 110.0), "accepted"))
    diagnostics(node, lambda d: d["node"]["verdicts_accepted"] == "1", "the second verdict")
    from_elsewhere = node.camera.show(7, 120.0)
    assert from_elsewhere.hypotheses[0].place_id == 8
    assert node.change("deactivate") and node.change("cleanup")
    with PlaceMap.open(tmp_path / "m.vprmap", read_only=True) as place_map:
        assert place_map.info().verdicts == {"accepted": 1, "rejected_by_geometry": 1}
