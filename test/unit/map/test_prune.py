"""Pruning maps: who may go, who goes first, and when it stops."""

import math

import numpy as np
import pytest
from edit_helpers import check_result, content, refused
from map_helpers import DIM, add_places, descriptor, folder_state, make_map, open_map

from hashvpr_ros.map.nearness import Nearness
from hashvpr_ros.map.place_map import NewPlace
from hashvpr_ros.map.prune import prune_map
from hashvpr_ros.types import Descriptor, Pose

ODOM = Pose((0.0, 0.0, 0.0), frame_id="odom")


def flipped(seed, bits):
    """The code of a seed with its first bits changed."""
    code = np.unpackbits(descriptor(seed).code)
    code[:bits] ^= 1
    return Descriptor(np.packbits(code), descriptor(seed).feature)


def view(seed, bits=0, pose=None, camera="c", stamp_ns=0):
    return NewPlace(camera, stamp_ns, pose, flipped(seed, bits))


def turned(x, angle):
    return Pose((x, 0.0, 0.0), (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)), "odom")


def left(tmp_path, sessions, **options):
    """The ids that stay of sessions of views, and what was told."""
    for name in ("m", "out"):
        (tmp_path / name).unlink(missing_ok=True)
    with open_map(tmp_path / "m", session="0") as place_map:
        for i, views in enumerate(sessions):
            place_map.start_session(str(i))
            place_map.add_many(views)
    pruned = prune_map(tmp_path / "m", tmp_path / "out", **options)
    check_result(tmp_path / "out", tmp_path / "m")
    found, whole = content(tmp_path / "out"), content(tmp_path / "m")
    assert all(whole[i] == values for i, values in found.items())
    assert (pruned.before, pruned.after) == (len(whole), len(found))
    assert pruned.before - pruned.after == pruned.near_own_session + pruned.near_other_session
    assert pruned.file_bytes == (tmp_path / "out").stat().st_size
    return list(found), pruned


# Who may go


@pytest.mark.parametrize("pose", [None, ODOM])
def test_codes_that_are_near(tmp_path, pose):
    views = [view(1, 0, pose), view(1, 24, pose), view(1, 25, pose), view(2, 0, pose)]
    assert left(tmp_path, [views])[0] == [1, 3, 4]
    assert left(tmp_path, [views], nearness=Nearness(within_bits=0))[0] == [1, 2, 3, 4]
    assert left(tmp_path, [views], nearness=Nearness(within_bits=512))[0] == [1]


@pytest.mark.parametrize(
    ("pose", "stays"),
    [
        (turned(1.0, 0.0), False),
        (turned(1.01, 0.0), True),
        (turned(-0.99, 0.34), False),
        (turned(0.0, 0.36), True),
        (turned(0.0, math.pi), True),
        (turned(0.0, 2 * math.pi - 0.3), False),
        (Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, -7.0), "odom"), False),  # the same rotation
        (Pose((0.0, 0.9, 0.9), frame_id="odom"), True),
        (Pose((0.0, 0.0, 0.0), frame_id="map"), True),  # cannot be compared
        (Pose((1e300, 0.0, 0.0), frame_id="odom"), True),
        (None, True),
    ],
)
def test_poses_that_are_near(tmp_path, pose, stays):
    assert left(tmp_path, [[view(1, 0, turned(0.0, 0.0)), view(1, 3, pose)]])[0] == (
        [1, 2] if stays else [1]
    )


def test_limits_of_poses(tmp_path):
    views = [
        view(1, 0, turned(3.0, 0.0)),
        view(1, 0, turned(3.2, 0.1)),
        view(1, 0, turned(3.0, 0)),
    ]
    for nearness, ids in (
        (Nearness(within_m=0.0), [1, 2]),
        (Nearness(within_rad=0.0), [1, 2]),
        (Nearness(within_m=0.0, within_rad=0.0), [1, 2]),
        (Nearness(within_m=100.0, within_rad=9.0), [1]),
    ):
        assert left(tmp_path, [views], nearness=nearness)[0] == ids


def test_cameras_are_not_compared(tmp_path):
    for pose in (None, ODOM):
        views = [view(1, 0, pose, "front"), view(1, 0, pose, "rear"), view(1, 0, pose, "rear")]
        assert left(tmp_path, [views])[0] == [1, 2]


def test_the_older_stays(tmp_path):
    for pose in (None, ODOM):
        views = [view(1, 0, pose, stamp_ns=9), view(1, 1, pose, stamp_ns=5)]
        assert left(tmp_path, [views])[0] == [2]


def test_each_that_goes_has_one_near_it_that_stays(tmp_path):
    chain = [view(1, 10 * i) for i in range(10)]
    assert left(tmp_path, [chain])[0] == [1, 4, 7, 10]
    along = [view(1, 0, turned(0.4 * i, 0.0)) for i in range(10)]
    assert left(tmp_path, [along])[0] == [1, 4, 7, 10]
    standing = [view(1, i % 5) for i in range(300)]
    ids, pruned = left(tmp_path, [standing, standing])
    assert ids == [1] and (pruned.near_own_session, pruned.near_other_session) == (299, 300)


# Who goes first, and when it stops


@pytest.mark.parametrize("pose", [None, ODOM])
def test_the_most_redundant_go_first(tmp_path, pose):
    first = [view(1, 0, pose), view(1, 20, pose), view(2, 0, pose), view(2, 6, pose)]
    second = [view(1, 1, pose), view(3, 0, pose), view(3, 7, pose), view(2, 2, pose)]
    gone = [4, 7, 2, 5, 8]  # near their own session by bits, then near another
    for count in range(len(gone) + 1):
        ids, pruned = left(tmp_path, [first, second], keep=8 - count)
        assert ids == sorted(set(range(1, 9)) - set(gone[:count]))
        assert pruned.size_reached and pruned.redundant == 5
    ids, pruned = left(tmp_path, [first, second], keep=2)
    assert ids == [1, 3, 6] and not pruned.size_reached
    assert (pruned.near_own_session, pruned.near_other_session) == (3, 2)
    assert left(tmp_path, [first, second], keep=99)[0] == list(range(1, 9))


def test_a_size_in_bytes(tmp_path):
    rng = np.random.default_rng(0)
    with open_map(tmp_path / "m", session="s") as place_map:
        for i in range(1000):
            place_map.add(
                camera="c", stamp_ns=i, pose=None, descriptor=flipped(i // 10, i % 10),
                thumbnail=rng.bytes(int(rng.integers(0, 6000))) if i % 3 else None,
            )  # fmt: skip
    whole = (tmp_path / "m").stat().st_size
    for share in (1.5, 0.9, 0.5, 0.2):
        limit = int(share * whole)
        pruned = prune_map(tmp_path / "m", tmp_path / "out", max_bytes=limit, overwrite=True)
        check_result(tmp_path / "out", tmp_path / "m")
        size = (tmp_path / "out").stat().st_size
        assert pruned.file_bytes == size <= limit and pruned.size_reached
        assert size > min(0.9 * limit, 0.9 * whole)  # no more went than had to
    pruned = prune_map(tmp_path / "m", tmp_path / "out", max_bytes=10_000, overwrite=True)
    assert pruned.after == 100 and not pruned.size_reached


def test_a_guess_of_the_size_that_is_wrong_is_put_right(tmp_path, monkeypatch):
    path = make_map(tmp_path / "m", 2)
    with open_map(path, session="s") as place_map:
        place_map.add_many([view(1, i % 20, stamp_ns=i) for i in range(500)])
    for wrong in (0.3, 3.0):
        monkeypatch.setattr(
            "hashvpr_ros.map.edit.MapReader.bytes_each",
            lambda reader, wrong=wrong: np.full(len(reader), 300.0 * wrong),
        )
        pruned = prune_map(path, tmp_path / "out", max_bytes=100_000, overwrite=True)
        check_result(tmp_path / "out", path)
        assert pruned.file_bytes == (tmp_path / "out").stat().st_size <= 100_000
        assert pruned.after == len(content(tmp_path / "out"))


def test_nothing_to_prune(tmp_path):
    path = make_map(tmp_path / "m", 300)
    before = folder_state(tmp_path)
    pruned = prune_map(path, tmp_path / "out")
    check_result(tmp_path / "out", path)
    assert content(tmp_path / "out") == content(path) and pruned.redundant == 0
    (tmp_path / "out").unlink()
    assert folder_state(tmp_path) == before
    open_map(tmp_path / "empty").close()
    assert prune_map(tmp_path / "empty", tmp_path / "out").after == 0
    with refused(tmp_path, "is read from"):
        prune_map(path, path, overwrite=True)
    with refused(tmp_path, "exists"):
        prune_map(path, tmp_path / "out")


def test_ids_of_those_that_went_are_not_used_again(tmp_path):
    left(tmp_path, [[view(1), view(2), view(2)]])
    with open_map(tmp_path / "out") as place_map:
        assert place_map.ids().tolist() == [1, 2] and place_map.feature_dim == DIM
        assert add_places(place_map, 7, 8) == [4]


def test_both_ways_of_searching_agree_with_plain_comparison(tmp_path):
    rng = np.random.default_rng(1)
    for posed in (False, True):
        views = []
        for i in range(400):
            pose = turned(*rng.uniform((0, 0), (6, 1))) if posed else None
            views.append(view(int(rng.integers(12)), int(rng.integers(40)), pose, stamp_ns=i))
        nearness = Nearness(within_m=1.5, within_rad=0.5, within_bits=15)
        stays = []
        for i, v in enumerate(views):
            code = np.unpackbits(v.descriptor.code)
            for j in stays:
                w = views[j]
                near = (code != np.unpackbits(w.descriptor.code)).sum() <= 15
                if posed:
                    near &= abs(v.pose.position_m[0] - w.pose.position_m[0]) <= 1.5
                    dot = abs(np.dot(v.pose.orientation, w.pose.orientation))
                    near &= 2 * math.acos(min(1.0, dot)) <= 0.5
                if near:
                    break
            else:
                stays.append(i)
        ids, _ = left(tmp_path, [views], nearness=nearness)
        assert ids == [i + 1 for i in stays] and 20 < len(ids) < 380
