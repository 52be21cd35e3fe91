"""`~/load_map` while images come: the old map answers until the new one does, or all along."""

import threading
import time

import numpy as np
import pytest
from vpr_process import START_NS, Camera, image_message, picture

from hashvpr_ros.map.backup import damage_of
from hashvpr_ros.map.merge import merge_maps
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.rows import NewPlace
from hashvpr_ros.srv import InspectMap, LoadMap, SaveMap
from hashvpr_ros.types import Descriptor

EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}
PICTURES = range(1, 6)
BIG = 6000  # keyframes of a map that takes a while to load


@pytest.fixture(scope="module")
def maps(start_module, tmp_path_factory):
    """Two maps with the same pictures under different ids, the second one large."""
    folder = tmp_path_factory.mktemp("maps")
    small, big, both = (folder / name for name in ("small.vprmap", "big.vprmap", "both.vprmap"))
    node = start_module(map__path=str(small), **EVERYTHING).activate()
    camera = Camera(node).connect()
    for i in PICTURES:
        camera.show(i, float(i))
    assert node.stop() == 0
    info = PlaceMap.read_info(small)
    rng = np.random.default_rng(3)
    features = rng.standard_normal((BIG, info.feature_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    codes = rng.integers(0, 256, (BIG, 64), np.uint8)
    with PlaceMap.open(big, info.fingerprint, info.feature_dim, session="big") as place_map:
        place_map.add_many(
            [
                NewPlace("front", i, None, Descriptor(code, feature))
                for i, (code, feature) in enumerate(zip(codes, features, strict=True))
            ]
        )
    merge_maps([big, small], both)
    return small, both


class Stream:
    """Images of the pictures in turn, many a second, in a thread of its own."""

    def __init__(self, node):
        self.camera = Camera(node).connect()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        count = 0
        while not self._stop.wait(0.01):
            count += 1
            stamp_ns = START_NS + count * 10**9
            image = picture(PICTURES[count % len(PICTURES)])
            self.camera.publisher.publish(image_message(image, stamp_ns))

    def __enter__(self):
        self._thread.start()
        self.seen(5)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def seen(self, more):
        """Wait for so many answers from now on."""
        begin = len(self.camera.heard)
        end = time.monotonic() + 40.0
        while len(self.camera.heard) < begin + more and time.monotonic() < end:
            time.sleep(0.005)  # answers, not time, are waited for
        assert len(self.camera.heard) >= begin + more

    def answers(self):
        """(map_id, picture, place) of each answer."""
        return [
            (
                h.map_id,
                PICTURES[(h.header.stamp.sec - START_NS // 10**9) % len(PICTURES)],
                h.hypotheses[0].place_id if h.hypotheses else 0,
            )
            for h in list(self.camera.heard)
        ]


def ids_of(path):
    return PlaceMap.read_info(path).map_id


@pytest.mark.parametrize("mode", ["localization", "slam"])
def test_the_old_map_answers_until_the_new_one_does(start, maps, tmp_path, mode):
    small, both = maps
    new_id = ids_of(both)
    with PlaceMap.open(small, read_only=True) as source:
        source.copy_to(tmp_path / "old.vprmap")
    with PlaceMap.open(both, read_only=True) as source:
        source.copy_to(tmp_path / "new.vprmap")
    node = start(
        map__path=str(tmp_path / "old.vprmap"),
        mode=mode,
        matching__temporal="none",
        matching__exclude_recent_s=86400.0,
        **EVERYTHING,
    ).activate()
    old_id = node.call(InspectMap, "inspect_map").status.map_id
    with Stream(node) as stream:
        before = len(stream.camera.heard)
        answer = node.call(LoadMap, "load_map", path=str(tmp_path / "new.vprmap"))
        during = len(stream.camera.heard) - before
        assert answer.result == answer.RESULT_OK, answer.message
        stream.seen(10)
    assert answer.message == "" and answer.map_id == new_id
    assert answer.keyframes == BIG + len(PICTURES)
    assert (answer.sessions, answer.cameras) == (2, ["front", "image"])
    assert during > 2  # it was not waited for
    answers = stream.answers()
    ids = [map_id for map_id, _, _ in answers]
    switch = ids.index(new_id)
    assert set(ids[:switch]) == {old_id} and set(ids[switch:]) == {new_id}
    # Each answer is of the map that it names.
    for map_id, shown, place in answers:
        assert place == shown + (BIG if map_id == new_id else 0), answers
    assert node.logged("[ERROR]") == 0, node.text()
    if mode == "slam":  # what was added before the switch is in the map that was left
        assert node.stop() == 0
        with PlaceMap.open(tmp_path / "old.vprmap", read_only=True) as place_map:
            assert len(place_map) >= len(PICTURES) + switch - 1 and place_map.verify() == []


def test_a_load_that_fails_leaves_the_old_map_in_use(start, maps, tmp_path):
    small, both = maps
    damaged, truncated = tmp_path / "damaged.vprmap", tmp_path / "truncated.vprmap"
    content = bytearray(both.read_bytes())
    content[content.rindex(b"front")] ^= 1
    damaged.write_bytes(content)
    truncated.write_bytes(content[:50000])
    PlaceMap.open(tmp_path / "model.vprmap", "cd" * 32, 7).close()
    busy = PlaceMap.open(small, create=False)
    node = start(map__path=str(tmp_path / "m.vprmap"), matching__temporal="none", **EVERYTHING)
    with busy:
        busy.copy_to(tmp_path / "m.vprmap")
        node.activate()
        old_id = node.call(InspectMap, "inspect_map").status.map_id
        codes = LoadMap.Response
        with Stream(node) as stream:
            for path, result, word in (
                (damaged, codes.RESULT_INVALID_MAP, "does not match its checksum"),
                (truncated, codes.RESULT_INVALID_MAP, "truncated"),
                (tmp_path / "model.vprmap", codes.RESULT_WRONG_MODEL, "made by model"),
                (small, codes.RESULT_INVALID_MAP, "another process has this map open"),
                (tmp_path / "none.vprmap", codes.RESULT_NOT_FOUND, "no such map"),
            ):
                answer = node.call(LoadMap, "load_map", path=str(path))
                assert answer.result == result, answer.message
                assert word in answer.message and str(path) in answer.message
                assert (answer.map_id, answer.keyframes, answer.sessions) == ("", 0, 0)
                stream.seen(3)
    assert {map_id for map_id, _, _ in stream.answers()} == {old_id}
    assert node.call(SaveMap, "save_map").result == SaveMap.Response.RESULT_OK
    assert node.stop() == 0
    assert damaged.read_bytes() == bytes(content)
    assert damage_of(damaged, {})


def test_a_map_that_was_replaced_on_the_disk_is_loaded_from_there(start, maps, tmp_path):
    path = tmp_path / "m.vprmap"
    for source, name in zip(maps, (path, tmp_path / "new.vprmap"), strict=True):
        with PlaceMap.open(source, read_only=True) as place_map:
            place_map.copy_to(name)
    node = start(map__path=str(path), mode="localization", **EVERYTHING).activate()
    before = node.call(LoadMap, "load_map", path=str(path))  # nothing to do
    (tmp_path / "new.vprmap").replace(path)
    after = node.call(LoadMap, "load_map", path=str(path))
    assert (before.result, after.result) == (LoadMap.Response.RESULT_OK,) * 2, after.message
    assert (before.map_id, after.map_id) == (ids_of(maps[0]), ids_of(path))
    assert after.keyframes == BIG + len(PICTURES)
