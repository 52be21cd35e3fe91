"""The recognizer with the lite engine on a rendered course: modes, exclusion, closures, times."""

import itertools

import numpy as np
import pytest

from hashvpr_ros.config import from_flat
from hashvpr_ros.datasets.bag_writer import planar_pose
from hashvpr_ros.errors import ImageError
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.matching.recognizer import Recognizer, thumbnail_jpeg
from hashvpr_ros.simulation.course import DAY, EVENING, Course
from hashvpr_ros.simulation.odometry import Drift, drifting
from hashvpr_ros.types import Mode, Pose, Reason, Verdict

SECOND = 10**9


@pytest.fixture(scope="module")
def engine(remembering):
    return remembering


@pytest.fixture(scope="module")
def shots():
    """Two laps of a course, the second by evening and to the side; not one that was fitted on."""
    course = Course(60.0, seed=5, size=(96, 128))
    return list(course.drive([(DAY, 0.0, 0.0), (EVENING, 0.4, 0.04)], speed_mps=2.0, rate_hz=4.0))


@pytest.fixture
def place_map(engine):
    with PlaceMap.open("", engine.info.fingerprint, engine.info.feature_dim) as opened:
        yield opened


def pose_of(shot):
    return planar_pose(shot.x_m, shot.y_m, shot.yaw_rad)


def recognizer(engine, place_map, mode=Mode.SLAM, **changes):
    settings = {k.replace("__", "."): v for k, v in changes.items()}
    return Recognizer(engine, place_map, from_flat(settings), mode=mode)


def test_a_second_lap_closes_and_no_closure_is_wrong(engine, place_map, shots):
    vpr = recognizer(engine, place_map, matching__exclude_recent_s=10.0)
    by_stamp = {s.stamp_ns: s for s in shots}
    decisions = [vpr.process(s.rgb, s.stamp_ns, pose_of(s)) for s in shots]
    closures = [d for d in decisions if d.accepted]
    for d in closures:
        here, there = by_stamp[d.stamp_ns], by_stamp[d.hypotheses[0].keyframe.stamp_ns]
        assert np.hypot(here.x_m - there.x_m, here.y_m - there.y_m) < 4.0
        assert d.hypotheses[0].probability >= 0.99
        assert d.hypotheses[0].sequence_support >= 0.8
    second = [d for d in decisions if d.stamp_ns >= shots[len(shots) // 2].stamp_ns]
    assert len(closures) > 0.3 * len(second)
    assert decisions[0].reason is Reason.MAP_EMPTY
    assert {d.reason for d in decisions} <= set(Reason)


def test_laps_still_close_where_the_index_has_reached_its_ceiling(engine, shots, monkeypatch):
    with PlaceMap.open(
        "", engine.info.fingerprint, engine.info.feature_dim, max_index_mb=1
    ) as place_map:
        monkeypatch.setattr(place_map._index, "most_rows", len(shots) * 2 // 5)
        vpr = recognizer(
            engine, place_map, matching__exclude_recent_s=10.0, keyframes__min_distance_m=0.0
        )
        by_stamp = {s.stamp_ns: s for s in shots}
        decisions = [vpr.process(s.rgb, s.stamp_ns, pose_of(s)) for s in shots]
        assert place_map.left_out > len(shots) / 2
        accepted = [d for d in decisions if d.accepted]
        for d in accepted:
            here, there = by_stamp[d.stamp_ns], by_stamp[d.hypotheses[0].keyframe.stamp_ns]
            assert np.hypot(here.x_m - there.x_m, here.y_m - there.y_m) < 4.0
            # What was matched may have left since, and a back end may speak of it still.
            ids = np.array([h.keyframe.id for h in d.hypotheses])
            assert [k.id for k in place_map.keyframes(ids)] == ids.tolist()
            vpr.verdict(d.stamp_ns, d.camera, int(ids[0]), Verdict.ACCEPTED)
        # Not one in ten where a place that has left is none that the robot can be at.
        assert len(accepted) > 0.5 * len(shots) / 2


def test_slam_leaves_out_the_recent_past_before_the_search(engine, place_map, shots):
    vpr = recognizer(
        engine, place_map, matching__exclude_recent_s=5.0, matching__top_k=10,
        matching__max_hypotheses=10, keyframes__min_distance_m=0.0,
    )  # fmt: skip
    for s in shots[:60]:
        d = vpr.process(s.rgb, s.stamp_ns, pose_of(s))
        old_enough = sum(o.stamp_ns <= s.stamp_ns - 5 * SECOND for o in shots[:60])
        assert len(d.candidates) == min(10, old_enough)
        assert all(h.keyframe.stamp_ns <= s.stamp_ns - 5 * SECOND for h in d.hypotheses)
        ranks = [c.similarity for c in d.candidates]
        assert ranks == sorted(ranks, reverse=True)
        assert sorted(c.rank_hash for c in d.candidates) == list(range(len(ranks)))
    assert len(place_map) == 60


def test_mapping_only_adds_and_localization_only_asks(engine, place_map, shots):
    vpr = recognizer(engine, place_map, Mode.MAPPING)
    for s in shots[:10]:
        d = vpr.process(s.rgb, s.stamp_ns, pose_of(s))
        assert d.reason is Reason.MAPPING_ONLY and not d.hypotheses and d.session
    held = len(place_map)
    assert held == d.keyframe_id > 0
    vpr.set_mode(Mode.LOCALIZATION)
    s = shots[4]
    d = vpr.process(s.rgb, s.stamp_ns, None)
    # The keyframe may be the view half a metre away.
    assert d.hypotheses[0].similarity > 0.85 and d.keyframe_id == 0 and d.session == ""
    assert len(place_map) == held


def test_the_present_image_is_never_its_own_match(engine, place_map, shots):
    vpr = recognizer(engine, place_map, matching__exclude_recent_s=0.0)
    for s in shots[:20]:
        d = vpr.process(s.rgb, s.stamp_ns, pose_of(s))
        assert all(h.keyframe.id != d.keyframe_id for h in d.hypotheses)


def test_a_map_that_was_only_recorded_at_first_is_closed_with_drifted_odometry(
    engine, place_map, shots
):
    """While it maps, the node learns how far the robot has come: by so much odometry may err."""
    vpr = recognizer(engine, place_map, Mode.MAPPING, matching__exclude_recent_s=10.0)
    half = len(shots) // 2
    closed = 0
    for i, shot in enumerate(shots):
        if i == half:
            assert vpr._matcher.odometer.travelled_m > 50.0
            vpr.set_mode(Mode.SLAM)
        drift_m = 0.09 * i
        pose = planar_pose(shot.x_m + drift_m, shot.y_m + drift_m, shot.yaw_rad)
        closed += vpr.process(shot.rgb, shot.stamp_ns, pose).accepted
    assert closed > 0.2 * half


def test_coming_back_to_the_start_closes_what_is_there_and_nothing_before(engine, place_map):
    """Odometry leaves the places around the start alone possible before the robot is there."""
    course = Course(400.0, seed=5, repeats=2)
    laps = [(DAY, 0.0, 0.0), (EVENING, 0.3, 0.0)]
    way = list(itertools.islice(course.drive(laps, rate_hz=1.0, seed=5), 260))
    drifted = drifting(((s.x_m, s.y_m, s.yaw_rad) for s in way), Drift(seed=5))
    vpr, at, errors_m = recognizer(engine, place_map), {}, []
    for shot, pose in zip(way, drifted, strict=True):
        at[shot.stamp_ns] = np.array([shot.x_m, shot.y_m])
        decision = vpr.process(shot.rgb, shot.stamp_ns, planar_pose(*pose))
        if decision.accepted:
            match = at[decision.hypotheses[0].keyframe.stamp_ns]
            errors_m.append(float(np.linalg.norm(at[shot.stamp_ns] - match)))
    assert len(errors_m) > 30  # of 60 on the second lap; a run takes 30 m
    assert max(errors_m) < 4.0


def test_recognize_changes_nothing(engine, place_map, shots):
    vpr = recognizer(engine, place_map, Mode.MAPPING)
    for s in shots[:10]:
        vpr.process(s.rgb, s.stamp_ns, pose_of(s))
    held = len(place_map)
    d = vpr.recognize(shots[2].rgb, "camera", 3)
    assert len(d.hypotheses) == 1 and len(place_map) == held  # ten images of one place
    assert d.reason is Reason.NOT_DISTINCT
    assert all(h.sequence_support == 0.0 for h in d.hypotheses)


def test_a_nan_pose_is_stored_as_none(engine, place_map, shots):
    vpr = recognizer(engine, place_map, Mode.MAPPING)
    d = vpr.process(shots[0].rgb, 1, Pose((float("nan"), 0.0, 0.0)))
    assert d.keyframe_id == 1 and d.pose is None
    assert place_map.keyframes([1])[0].pose is None


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32), None,
    ],
)  # fmt: skip
def test_bad_images_are_refused_and_change_nothing(engine, place_map, image):
    vpr = recognizer(engine, place_map)
    with pytest.raises(ImageError, match="RGB"):
        vpr.process(image, 1)
    assert len(place_map) == 0


def test_a_map_that_cannot_be_written_does_not_stop_recognition(engine, tmp_path, shots):
    path = tmp_path / "m.vprmap"
    with PlaceMap.open(path, engine.info.fingerprint, engine.info.feature_dim) as writable:
        vpr = recognizer(engine, writable, Mode.MAPPING)
        vpr.process(shots[0].rgb, shots[0].stamp_ns)
    with PlaceMap.open(path, read_only=True) as read_only:
        d = recognizer(engine, read_only).process(shots[1].rgb, shots[1].stamp_ns)
    assert d.hypotheses and d.keyframe_id == 0
    assert "read-only" in d.store_error


def test_cameras_have_keyframes_and_sequences_of_their_own(engine, place_map, shots):
    vpr = recognizer(engine, place_map, Mode.MAPPING)
    for camera in ("left", "right"):
        assert vpr.process(shots[0].rgb, 1, pose_of(shots[0]), camera).keyframe_id
    assert [k.camera for k in place_map.keyframes([1, 2])] == ["left", "right"]


def test_the_same_images_give_the_same_decisions(engine, shots):
    def run():
        with PlaceMap.open(
            "", engine.info.fingerprint, engine.info.feature_dim, session="s"
        ) as opened:
            vpr = recognizer(engine, opened, matching__exclude_recent_s=5.0)
            decisions = [vpr.process(s.rgb, s.stamp_ns, pose_of(s)) for s in shots[:80]]
        return [(d.reason, d.keyframe_id, d.hypotheses, d.candidates) for d in decisions]

    assert run() == run()


def test_thumbnails():
    image = np.zeros((480, 640, 3), np.uint8)
    image[..., 0] = 255
    import cv2

    jpeg = thumbnail_jpeg(image, 160)
    small = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (120, 160, 3)
    assert small[60, 80, 2] > 240 > 20 > small[60, 80, 0]  # red, in OpenCV's order
    assert thumbnail_jpeg(image, 0) is None
    assert cv2.imdecode(np.frombuffer(thumbnail_jpeg(image[:2, :2], 160), np.uint8), 1).shape == (
        2, 2, 3,
    )  # fmt: skip
