"""What another robot sees is matched with this robot's map, over DDS."""

import array
import itertools

import pytest
from vpr_process import START_NS, Camera, stamp_ns_of, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import ClosureVerdict, LoopClosure, PlaceDescriptor, PlaceHypotheses
from hashvpr_ros.srv import InspectMap, SaveMap

SECONDS = itertools.count(5000)  # after the other tests' stamps

EVERYTHING = {
    "keyframes__min_period_s": 0.0,
    "keyframes__min_novelty_bits": 0,
    "matching__target_precision": 0.5,
    "matching__min_sequence_support": 0.0,
}


@pytest.fixture(scope="module")
def robots(start_module):
    """A robot whose map holds pictures 0 to 49, and another that it listens to."""
    other = start_module(**EVERYTHING, publish__descriptors=True)
    one = start_module(**EVERYTHING, input__descriptor_topics=[other.topic("descriptors")])
    for node in (other, one):
        node.activate()
        node.camera = Camera(node).connect()
        node.map_id = node.call(InspectMap, "inspect_map").status.map_id
    for i in range(50):
        one.camera.show(i, i)
    return one, other


def test_places_of_another_robot_are_found_and_the_closures_say_whose_image_it_is(robots):
    one, other = robots
    hypotheses = one.client.listen(PlaceHypotheses, one.topic("peer_hypotheses"))
    closures = one.client.listen(LoopClosure, one.topic("peer_closures"))
    client = one.client.node
    for topic in ("peer_hypotheses", "peer_closures"):
        wait_until(lambda t=topic: client.count_publishers(one.topic(t)), f"{topic} is advertised")
    wait_until(lambda: client.count_subscribers(other.topic("descriptors")), "the robot listens")
    # An hour before this robot was there: nothing is too recent for another robot.
    shown = {i: other.camera.show(i, 3600.0 + i) for i in range(30)}
    wait_until(lambda: len(hypotheses) == 30, f"all are matched:\n{one.text()}")
    assert [stamp_ns_of(h) for h in hypotheses] == [stamp_ns_of(h) for h in shown.values()]
    accepted = [h for h in hypotheses if h.accepted]
    assert len(accepted) > 10
    wait_until(lambda: len(closures) >= len(accepted), "the closures come")
    for closure, h in zip(closures, accepted, strict=True):
        picture_number = (stamp_ns_of(h) - START_NS) // 10**9 - 3600
        assert closure.match_keyframe_id == picture_number + 1
        assert closure.map_id == one.map_id and closure.query_map_id == other.map_id
        assert closure.query_session == shown[picture_number].session
        assert closure.query_keyframe_id == shown[picture_number].keyframe_id
        assert closure.match_session != closure.query_session
    assert one.call(InspectMap, "inspect_map").status.keyframes == 50  # nothing was added
    robots[0].closure = closures[-1]


def test_a_closure_with_another_robot_can_be_rejected(robots, tmp_path):
    one, _ = robots
    copy = tmp_path / "copy.vprmap"
    closure = one.closure
    publisher = one.client.matched(one.client.publisher(ClosureVerdict, one.topic("verdicts")))
    verdict = ClosureVerdict(
        map_id=closure.map_id,
        query_stamp=closure.query_stamp,
        query_camera=closure.query_camera,
        match_keyframe_id=closure.match_keyframe_id,
        verdict=ClosureVerdict.VERDICT_REJECTED_BY_GRAPH,
    )
    publisher.publish(verdict)  # on a closure of this robot's own, of which there is none
    wait_until(lambda: "copy query_map_id" in one.text(), f"it is passed over:\n{one.text()}")
    verdict.query_map_id = closure.query_map_id
    publisher.publish(verdict)

    def kept():
        assert one.call(SaveMap, "save_map", path=str(copy), overwrite=True).result == 0
        with PlaceMap.open(copy, read_only=True, create=False) as place_map:
            return place_map.read_verdicts()

    (verdict,) = wait_until(kept, "the verdict is kept")
    assert verdict.match_id == closure.match_keyframe_id


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model_fingerprint": "ab" * 32}, "made by model"),
        ({"feature_encoding": 7}, "no feature_encoding 7"),
        ({"feature": array.array("B", b"123")}, "which are not"),
        ({"feature": array.array("B", b"\xff" * 2 * 640)}, "has the length nan"),
        ({"camera": "c" * 256}, "its camera has 256 characters"),
    ],
)
def test_what_is_no_descriptor_of_this_model_is_passed_over_and_said(
    start_module, robots, wrong, says
):
    one, other = robots
    node = start_module(**EVERYTHING, input__descriptor_topics=["/elsewhere/descriptors"])
    node.activate()
    publisher = node.client.matched(
        node.client.publisher(PlaceDescriptor, "/elsewhere/descriptors")
    )
    heard = one.client.listen(PlaceDescriptor, other.topic("descriptors"))
    wait_until(
        lambda: one.client.node.count_publishers(other.topic("descriptors")), "there is one"
    )
    other.camera.show(3, next(SECONDS))
    wait_until(lambda: heard, "a descriptor comes")
    message = heard[0]
    for name, value in wrong.items():
        setattr(message, name, value)
    publisher.publish(message)
    wait_until(lambda: says in node.text(), f"{says}:\n{node.text()}")
    assert node.is_running()
    node.stop()


def test_its_own_descriptors_behind_a_relay_are_passed_over(start_module, diagnostics):
    node = start_module(
        **EVERYTHING, publish__descriptors=True, publish__diagnostics_period_s=0.2,
        input__descriptor_topics=["/relay/descriptors"],
    )  # fmt: skip
    node.activate()
    own = node.client.listen(PlaceDescriptor, node.topic("descriptors"))
    answers = node.client.listen(PlaceHypotheses, node.topic("peer_hypotheses"))
    client = node.client.node
    for topic in ("descriptors", "peer_hypotheses"):
        wait_until(lambda t=topic: client.count_publishers(node.topic(t)), f"{topic} is there")
    relay = node.client.matched(node.client.publisher(PlaceDescriptor, "/relay/descriptors"))
    Camera(node).connect().show(3, next(SECONDS))
    wait_until(lambda: own, "a descriptor comes")
    relay.publish(own[0])
    said = diagnostics(node, lambda d: d["node"]["peers_passed_over"] == "1", "it is counted")
    assert said["node"]["level"] == 1 and "own map and session" in said["node"]["message"]
    own[0].session = "of another robot"
    relay.publish(own[0])
    diagnostics(node, lambda d: d["node"]["peers_matched"] == "1", "the other robot's is matched")
    wait_until(lambda: answers, "its hypotheses come")
    assert [h.session for h in answers] == ["of another robot"]
    node.stop()


def test_a_node_does_not_listen_to_itself(start_module):
    node = start_module(**EVERYTHING, input__descriptor_topics=["vpr_node/descriptors"])
    assert not node.change("configure")
    assert "give those of other robots" in node.text()
