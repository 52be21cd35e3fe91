"""Several cameras of one node: instants are judged as a whole, and turns are told."""

import math

import pytest
from sensor_msgs.msg import Image
from vpr_process import START_NS, image_message, picture, stamp_ns_of, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import LoopClosure, PlaceHypotheses
from hashvpr_ros.srv import SaveMap

CAMERAS = ("front", "rear")
INSTANTS = 50


def parameters(**others):
    return {
        "input__image_topics": list(CAMERAS),
        "input__camera_headings": [0.0, math.pi],
        # The first image of an instant waits for so long for the others: machines may be slow.
        "input__sync_s": 1.0,
        "keyframes__min_period_s": 0.0,
        "keyframes__min_novelty_bits": 0,
        "matching__exclude_recent_s": 60.0,
        "matching__target_precision": 0.5,
        "matching__min_sequence_support": 0.0,
        **others,
    }


class Pair:
    """Publishes the images of both cameras and waits for what the node makes of each."""

    def __init__(self, node):
        self.node = node
        self.heard = node.client.listen(PlaceHypotheses, node.topic("hypotheses"))
        self.publishers = {
            c: node.client.publisher(Image, f"{node.namespace}/{c}") for c in CAMERAS
        }
        for publisher in self.publishers.values():
            node.client.matched(publisher)

    def show(self, seeds, second):
        stamp_ns = START_NS + round(second * 1e9)
        for camera, seed in seeds.items():
            self.publishers[camera].publish(image_message(picture(seed), stamp_ns))

        def answers():
            found = {h.camera: h for h in self.heard if stamp_ns_of(h) == stamp_ns}
            return found if len(found) == len(seeds) else None

        return wait_until(answers, f"both images are judged; the node says:\n{self.node.text()}")


@pytest.fixture(scope="module")
def node(start_module):
    node = start_module(**parameters())
    node.activate()
    node.pair = Pair(node)
    return node


def front(i):
    return i


def rear(i):
    return 1000 + i


def test_a_turned_robot_is_recognised_by_both_cameras_which_say_how_it_is_turned(node):
    closures = node.client.listen(LoopClosure, node.topic("loop_closures"))
    wait_until(
        lambda: node.client.node.count_publishers(node.topic("loop_closures")), "it is advertised"
    )
    for i in range(INSTANTS):
        node.pair.show({"front": front(i), "rear": rear(i)}, i)
    # Back the same way: what lies ahead now lay behind then.
    back = [
        (i, node.pair.show({"front": rear(i), "rear": front(i)}, 200.0 + INSTANTS - i))
        for i in reversed(range(20, INSTANTS))
    ]
    accepted = 0
    for i, answers in back[-10:]:
        for camera, other in zip(CAMERAS, reversed(CAMERAS), strict=True):
            best = answers[camera].hypotheses[0]
            assert best.camera == other and stamp_of(best.stamp) == START_NS + i * 10**9
            assert best.votes == 2
            assert best.has_relative_heading
            assert math.cos(best.relative_heading) == pytest.approx(-1.0)
            accepted += answers[camera].accepted
    assert accepted > 0
    wait_until(lambda: len(closures) >= accepted, "the closures come")
    assert all(
        c.has_relative_heading and math.cos(c.relative_heading) == pytest.approx(-1.0)
        for c in closures
    )


def stamp_of(stamp):
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def test_the_map_holds_one_place_for_each_instant_with_a_view_of_each_camera(node, tmp_path):
    copy = tmp_path / "copy.vprmap"
    assert node.call(SaveMap, "save_map", path=str(copy)).result == SaveMap.Response.RESULT_OK
    with PlaceMap.open(copy, read_only=True, create=False) as place_map:
        places = {k.place: k for k in place_map.keyframes(place_map.ids())}
        assert len(places) >= INSTANTS
        for place, keyframe in places.items():
            views = place_map.keyframes(place_map.views_of(place))
            assert {v.camera for v in views} == set(CAMERAS)
            assert {v.stamp_ns for v in views} == {keyframe.stamp_ns}
        assert dict(place_map.headings_rad) == pytest.approx({"front": 0.0, "rear": math.pi})


def test_a_camera_that_is_silent_keeps_nobody_waiting_for_ever(node):
    answer = node.pair.show({"front": front(7)}, 400.0)["front"]
    assert answer.camera == "front"
    assert all(h.votes <= 1 for h in answer.hypotheses)


def test_headings_that_are_too_few_are_refused_with_their_number(start_module):
    node = start_module(**parameters(input__camera_headings=[0.0]))
    assert not node.change("configure")
    assert "input.camera_headings has 1 headings for 2 topics" in node.text()
