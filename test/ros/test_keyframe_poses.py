"""What the example back end sends to `~/update_poses`, and what answers make of it.

A service of the test answers in place of vpr_node; test_pose_graph_node has the real one.
"""

import time

import pytest
from rclpy.task import Future
from vpr_process import START_NS, wait_until

from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.msg import PlaceHypotheses
from hashvpr_ros.srv import UpdatePoses

OK, INVALID = UpdatePoses.Response.RESULT_OK, UpdatePoses.Response.RESULT_INVALID
WAY = [(START_NS + i * 10**9, planar_pose(2.0 * i, 0.0, 0.0, "map")) for i in range(10)]
END_NS = WAY[-1][0]


class Map:
    """Answers as it is told, and sends keyframes."""

    def __init__(self, client):
        self.client, self.requests, self.results = client, [], []
        self.service = client.node.create_service(
            UpdatePoses, "vpr_node/update_poses", self._answer
        )
        self.publisher = client.publisher(PlaceHypotheses, "vpr_node/hypotheses", depth=100)

    def _answer(self, request, response):
        self.requests.append(request)
        response.result = self.results.pop(0)
        return response

    def add(self, id_, second, **fields):
        message = PlaceHypotheses(keyframe_id=id_, map_id="m", session="s")
        stamp_ns = START_NS + round(second * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        for name, value in fields.items():
            setattr(message, name, value)
        self.publisher.publish(message)


@pytest.fixture
def place_map(client):
    made = Map(client)
    yield made
    client.node.destroy_service(made.service)


@pytest.fixture
def keyframes(client, place_map):
    from keyframe_poses import KeyframePoses

    made = KeyframePoses(client.node, "map")
    client.matched(place_map.publisher)
    wait_until(made._client.service_is_ready, "the service is known")
    return made


def heard(keyframes, ids):
    wait_until(lambda: set(keyframes._stamps_ns) == set(ids), f"keyframes {ids} are heard of")


def send(keyframes, place_map, result):
    """The request that is sent, whose answer has arrived."""
    before = len(place_map.requests)
    place_map.results.append(result)
    assert keyframes.send(WAY, END_NS)
    wait_until(lambda: keyframes._answer is None, "it is answered")
    (request,) = place_map.requests[before:]
    return request


def test_poses_between_the_nodes_of_the_way_are_sent(keyframes, place_map):
    for id_, second in ((7, 2.0), (8, 2.5), (9, 40.0), (10, -3.0)):
        place_map.add(id_, second)
    place_map.add(0, 3.0)  # an image that was not kept
    heard(keyframes, (7, 8, 9, 10))
    request = send(keyframes, place_map, OK)
    assert (request.map_id, request.frame_id) == ("m", "map")
    # Not where the way has not come to yet, nor from before it began.
    assert list(request.keyframe_ids) == [7, 8]
    assert [p.position.x for p in request.poses] == [4.0, 5.0]


def test_keyframes_of_a_map_that_was_cleared_are_not_sent_again(keyframes, place_map):
    place_map.add(1, 1.0)
    heard(keyframes, (1,))
    send(keyframes, place_map, INVALID)
    place_map.add(2, 4.0)
    heard(keyframes, (2,))
    assert list(send(keyframes, place_map, OK).keyframe_ids) == [2]


def test_another_session_or_map_begins_anew(keyframes, place_map):
    place_map.add(1, 1.0)
    heard(keyframes, (1,))
    place_map.add(2, 2.0, session="t")
    heard(keyframes, (2,))
    place_map.add(1, 3.0, session="t", map_id="n")
    heard(keyframes, (1,))
    assert send(keyframes, place_map, OK).map_id == "n"


def test_who_does_not_answer_is_asked_again_later(keyframes, place_map):
    place_map.add(1, 1.0)
    heard(keyframes, (1,))
    keyframes._answer, keyframes._asked_s = Future(), time.monotonic()
    assert not keyframes.send(WAY, END_NS)
    keyframes._asked_s -= 11.0
    assert list(send(keyframes, place_map, OK).keyframe_ids) == [1]
