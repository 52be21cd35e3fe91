"""Every service with every result code, and how soon they answer while the engine works."""

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import Point, Quaternion
from geometry_msgs.msg import Pose as PoseMessage
from sensor_msgs.msg import CompressedImage, Image
from vpr_process import PATIENCE_S, START_NS, Camera, image_message, latched, picture, wait_until

from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.msg import MapStatus
from hashvpr_ros.srv import (
    ClearMap,
    InspectMap,
    LoadMap,
    Recognize,
    SaveMap,
    SetMode,
    UpdatePoses,
)

SERVICES = [
    (SaveMap, "save_map", {}),
    (LoadMap, "load_map", {"path": "/x"}),
    (ClearMap, "clear_map", {"confirm": True}),
    (UpdatePoses, "update_poses", {}),
    (InspectMap, "inspect_map", {}),
    (SetMode, "set_mode", {"mode": "slam"}),
    (Recognize, "recognize", {}),
]
EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}


@pytest.fixture(scope="module")
def node(start_module):
    """An active node whose map holds pictures 1 to 5."""
    node = start_module(**EVERYTHING, matching__exclude_recent_s=1.0)
    for kind, name, fields in SERVICES:
        answer = node.call(kind, name, **fields)
        assert answer.result == answer.RESULT_NOT_CONFIGURED, name
        assert "configure" in answer.message
    assert node.change("configure")
    assert node.change("activate")
    node.camera = Camera(node).connect()
    for i in range(1, 6):
        node.camera.show(i, 100.0 + i)
    return node


def recognize(node, **fields):
    answer = node.call(Recognize, "recognize", **fields)
    return answer, Recognize.Response


def test_recognize_a_raw_and_a_compressed_image(node):
    before = node.call(InspectMap, "inspect_map").status.keyframes
    message = image_message(picture(3), 7 * 10**9, "other_lens")
    answer, codes = recognize(node, image=message)
    assert answer.result == codes.RESULT_OK, answer.message
    best = answer.hypotheses.hypotheses[0]
    assert best.place_id == 3 and best.distance == 0 and best.similarity > 0.999
    assert answer.hypotheses.header == message.header
    assert answer.hypotheses.camera == "image"
    jpeg = cv2.imencode(".jpg", picture(4)[..., ::-1])[1].tobytes()
    answer, _ = recognize(node, compressed=CompressedImage(format="jpeg", data=jpeg))
    assert answer.hypotheses.hypotheses[0].place_id == 4
    answer, _ = recognize(node, image=message, camera="left", max_hypotheses=2)
    # Five keyframes in a row are one place.
    assert len(answer.hypotheses.hypotheses) == 1 and answer.hypotheses.camera == "left"
    assert node.call(InspectMap, "inspect_map").status.keyframes == before


@pytest.mark.parametrize(
    "image",
    [
        Image(),
        Image(height=4, width=4, encoding="rgb8", step=12),
        Image(height=4, width=4, encoding="who knows", step=12, data=bytes(48)),
        Image(height=4, width=4, encoding="rgb8", step=3, data=bytes(48)),
    ],
)
def test_recognize_refuses_bad_images(node, image):
    answer, codes = recognize(node, image=image)
    assert answer.result == codes.RESULT_INVALID_IMAGE and answer.message


def test_recognize_says_when_it_is_busy(node):
    message = image_message(picture(1, 600, 800), 1)
    client = node.client.node.create_client(Recognize, node.topic("recognize"))
    assert client.wait_for_service(PATIENCE_S)
    # Not more than ten: the middleware keeps no more of a service's requests.
    futures = [client.call_async(Recognize.Request(image=message)) for _ in range(10)]
    wait_until(lambda: all(f.done() for f in futures), "all requests are answered")
    results = [f.result().result for f in futures]
    assert set(results) <= {Recognize.Response.RESULT_OK, Recognize.Response.RESULT_BUSY}
    assert Recognize.Response.RESULT_OK in results


def test_save_map(node, tmp_path):
    codes = SaveMap.Response
    answer = node.call(SaveMap, "save_map")
    assert (answer.result, answer.keyframes) == (codes.RESULT_OK, len_of(node))
    copy = tmp_path / "copy.vprmap"
    answer = node.call(SaveMap, "save_map", path=str(copy))
    assert answer.result == codes.RESULT_OK, answer.message
    with PlaceMap.open(copy, read_only=True, create=False) as saved:
        assert len(saved) == len_of(node) and saved.verify() == []
    assert node.call(SaveMap, "save_map", path=str(copy)).result == codes.RESULT_INVALID_PATH
    assert node.call(SaveMap, "save_map", path=str(copy), overwrite=True).result == codes.RESULT_OK
    for bad in (str(tmp_path), "relative.vprmap"):
        answer = node.call(SaveMap, "save_map", path=bad)
        assert answer.result == codes.RESULT_INVALID_PATH and answer.message
    own = node.call(InspectMap, "inspect_map").status.path
    answer = node.call(SaveMap, "save_map", path=own, overwrite=True)
    assert answer.result != codes.RESULT_OK and own in answer.message


def len_of(node) -> int:
    return int(node.call(InspectMap, "inspect_map").status.keyframes)


def test_inspect_map(node):
    answer = node.call(InspectMap, "inspect_map", keyframe_id=2, verify=True)
    assert answer.result == answer.RESULT_OK, answer.message
    assert answer.status.keyframes >= 5 and answer.status.mode == "slam"
    assert answer.sessions == [answer.status.session]
    assert answer.keyframe.place_id == 2 and answer.keyframe.camera == "image"
    stamp = answer.keyframe.stamp
    assert stamp.sec * 10**9 + stamp.nanosec == START_NS + 102 * 10**9
    assert answer.thumbnail.format == "jpeg"
    assert cv2.imdecode(np.frombuffer(answer.thumbnail.data, np.uint8), 1).shape == (60, 80, 3)
    for missing in (10**6, -1):
        answer = node.call(InspectMap, "inspect_map", keyframe_id=missing)
        assert answer.result == answer.RESULT_NO_SUCH_KEYFRAME and str(missing) in answer.message


def test_load_map(node, tmp_path):
    codes = LoadMap.Response
    status = node.call(InspectMap, "inspect_map").status
    answer = node.call(LoadMap, "load_map", path=str(tmp_path / "none.vprmap"))
    assert answer.result == codes.RESULT_NOT_FOUND
    (tmp_path / "foreign.vprmap").write_text("hello" * 1000)
    answer = node.call(LoadMap, "load_map", path=str(tmp_path / "foreign.vprmap"))
    assert answer.result == codes.RESULT_INVALID_MAP
    assert node.call(LoadMap, "load_map", path="").result == codes.RESULT_INVALID_MAP
    PlaceMap.open(tmp_path / "model.vprmap", "ab" * 32, status_dim(node)).close()
    answer = node.call(LoadMap, "load_map", path=str(tmp_path / "model.vprmap"))
    assert answer.result == codes.RESULT_WRONG_MODEL and "model.vprmap" in answer.message
    assert node.call(InspectMap, "inspect_map").status.map_id == status.map_id
    answer = node.call(LoadMap, "load_map", path=status.path)  # the present one
    assert (answer.result, answer.map_id) == (codes.RESULT_OK, status.map_id)
    copy = str(tmp_path / "copy.vprmap")
    assert node.call(SaveMap, "save_map", path=copy).result == 0
    answer = node.call(LoadMap, "load_map", path=copy)
    assert (answer.result, answer.keyframes) == (codes.RESULT_OK, status.keyframes), answer.message
    assert node.call(InspectMap, "inspect_map").status.path == copy
    assert node.camera.show(3, 1000.0).hypotheses[0].place_id == 3
    answer = node.call(LoadMap, "load_map", path=status.path)
    assert answer.result == codes.RESULT_OK


def status_dim(node) -> int:
    path = node.call(InspectMap, "inspect_map").status.path
    copy = Path(path).with_name("dim.vprmap")
    assert node.call(SaveMap, "save_map", path=str(copy), overwrite=True).result == 0
    return PlaceMap.read_info(copy).feature_dim


def test_set_mode(node):
    codes = SetMode.Response
    answer = node.call(SetMode, "set_mode", mode="Slam")
    assert answer.result == codes.RESULT_INVALID_MODE and "localization" in answer.message
    for mode, before in [
        ("localization", "slam"),
        ("mapping", "localization"),
        ("slam", "mapping"),
    ]:
        answer = node.call(SetMode, "set_mode", mode=mode)
        assert (answer.result, answer.previous_mode) == (codes.RESULT_OK, before)
        assert node.get("mode") == mode
        shown = node.camera.show(2, 2000.0 + len(node.camera.heard))
        assert (shown.reason == "mapping_only") == (mode == "mapping")
        assert (shown.keyframe_id == 0) == (mode == "localization")
        assert (shown.session == "") == (mode == "localization")
    assert node.call(SetMode, "set_mode", mode="localization").result == codes.RESULT_OK
    answer = node.call(ClearMap, "clear_map", confirm=True)
    assert answer.result == ClearMap.Response.RESULT_READ_ONLY
    assert node.call(SetMode, "set_mode", mode="slam").result == codes.RESULT_OK


def test_from_localization_to_slam_the_map_is_opened_for_writing(node, start, tmp_path):
    path = tmp_path / "m.vprmap"
    assert node.call(SaveMap, "save_map", path=str(path)).result == 0
    bytes_before = path.read_bytes()
    other = start(map__path=str(path), mode="localization", **EVERYTHING)
    assert other.change("configure") and other.change("activate")
    camera = Camera(other).connect()
    assert camera.show(3, 1.0).keyframe_id == 0
    assert other.call(InspectMap, "inspect_map").status.read_only
    assert path.read_bytes() == bytes_before
    before = len_of(other)
    assert other.call(SetMode, "set_mode", mode="slam").result == SetMode.Response.RESULT_OK
    assert camera.show(9, 2.0).keyframe_id > 0
    assert len_of(other) == before + 1
    assert other.stop() == 0


def test_a_map_in_memory(start, tmp_path):
    node = start(**EVERYTHING)
    assert node.set("map.path", "").successful
    assert node.change("configure") and node.change("activate")
    Camera(node).connect().show(1, 1.0)
    answer = node.call(SaveMap, "save_map")
    assert answer.result == SaveMap.Response.RESULT_IN_MEMORY
    path = tmp_path / "saved.vprmap"
    assert node.call(SaveMap, "save_map", path=str(path)).keyframes == 1
    assert PlaceMap.read_info(path).keyframes == 1


def test_map_status_is_latched(node):
    heard = node.client.listen(MapStatus, node.topic("map_status"), latched())
    status = wait_until(lambda: heard and heard[-1], "the latched status comes")
    assert status.model_fingerprint and status.keyframes >= 5
    node.camera.show(77, 3000.0)
    wait_until(lambda: heard[-1].keyframes > status.keyframes, "a new status after a keyframe")


def test_services_and_transitions_answer_while_the_engine_works(node):
    """Images come faster than the engine can take them, so that it never rests."""
    stop = threading.Event()
    large = np.ascontiguousarray(picture(8, 480, 640))

    def flood() -> None:
        second = 5000.0
        while not stop.wait(0.004):
            second += 0.01
            node.camera.publisher.publish(image_message(large, START_NS + int(second * 1e9)))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        took_ms: dict[str, list[float]] = {}
        for _ in range(10):
            for name, call in {
                "get_state": node.state,
                "save_map": lambda: node.call(SaveMap, "save_map"),
                "set_mode": lambda: node.call(SetMode, "set_mode", mode="slam"),
                "set_parameters": lambda: node.set("matching.top_k", 50),
                "deactivate": lambda: node.change("deactivate"),
                "activate": lambda: node.change("activate"),
            }.items():
                started = time.perf_counter()
                assert call()
                took_ms.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
    finally:
        stop.set()
        thread.join()
    # With the subscription goes what is still under way to it; the engine ends its last image
    # before it answers.
    assert node.change("deactivate")
    assert node.call(Recognize, "recognize", image=image_message(large, 1)).result == 0
    assert node.change("activate")
    medians = {name: float(np.median(values)) for name, values in took_ms.items()}
    assert max(medians.values()) < 100.0, medians


def test_poses_that_a_back_end_optimised_are_those_of_the_answers(node):
    for seed in range(3):
        node.camera.show(9100 + seed, 8000.0 + seed)
    before = node.call(InspectMap, "inspect_map").status
    id_ = before.keyframes
    pose = PoseMessage(position=Point(x=1.0, y=2.0, z=3.0), orientation=Quaternion(z=4.0, w=3.0))

    def update(map_id=before.map_id, frame_id="optimised", keyframe_ids=(id_,), poses=(pose,)):
        return node.call(
            UpdatePoses, "update_poses", map_id=map_id, frame_id=frame_id,
            keyframe_ids=list(keyframe_ids), poses=list(poses),
        )  # fmt: skip

    response = update()
    assert (response.result, response.updated) == (UpdatePoses.Response.RESULT_OK, 1)
    keyframe = node.call(InspectMap, "inspect_map", keyframe_id=id_, verify=True)
    assert keyframe.result == InspectMap.Response.RESULT_OK, keyframe.message
    assert keyframe.keyframe.has_pose
    assert keyframe.keyframe.pose.header.frame_id == "optimised"
    assert keyframe.keyframe.pose.pose.position == pose.position
    turned = keyframe.keyframe.pose.pose.orientation
    assert (turned.z, turned.w) == pytest.approx((0.8, 0.6))  # as all that reckon with it expect
    for wrong, result, says in (
        ({"map_id": "another"}, UpdatePoses.Response.RESULT_OTHER_MAP, "is in use"),
        ({"keyframe_ids": (id_, id_), "poses": (pose, pose)},
         UpdatePoses.Response.RESULT_INVALID, "1 of them distinct"),
        ({"poses": ()}, UpdatePoses.Response.RESULT_INVALID, "0 poses"),
        ({"keyframe_ids": (2**31 - 1,)}, UpdatePoses.Response.RESULT_INVALID, "no keyframe"),
        ({"poses": (PoseMessage(position=Point(x=float("nan"))),)},
         UpdatePoses.Response.RESULT_INVALID, "not finite"),
        ({"poses": (PoseMessage(orientation=Quaternion(w=0.0)),)},
         UpdatePoses.Response.RESULT_INVALID, "not finite"),
    ):  # fmt: skip
        response = update(**wrong)
        assert response.result == result and says in response.message, wrong
        assert response.updated == 0
    keyframe = node.call(InspectMap, "inspect_map", keyframe_id=id_)
    assert keyframe.keyframe.pose.pose.position == pose.position


def test_clear_map_comes_last(node):
    answer = node.call(ClearMap, "clear_map")
    assert answer.result == ClearMap.Response.RESULT_NOT_CONFIRMED and answer.removed == 0
    held = len_of(node)
    assert held > 0
    answer = node.call(ClearMap, "clear_map", confirm=True)
    assert (answer.result, answer.removed) == (ClearMap.Response.RESULT_OK, held)
    assert len_of(node) == 0
    assert node.camera.show(1, 9000.0).reason in ("map_empty", "no_candidate")
