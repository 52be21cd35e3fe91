"""Damaged maps, opened as the node does: refused and said, or the answers are those of before.

More of them: `VPR_DAMAGES=5000 pytest -s test/unit/map/test_damaged_maps.py -k campaign` prints
what became of them.
"""

import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from map_helpers import add_places, descriptor, open_map

from hashvpr_ros.errors import MapError
from hashvpr_ros.map.backup import restore
from hashvpr_ros.map.calibration import Calibration
from hashvpr_ros.map.files import good_copy_of
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.schema import DamagedMapError
from hashvpr_ros.map.verdicts import StoredVerdict

KEYFRAMES = 60
PAGE = 4096


def make(path):
    """A map with something in every table, closed as a node closes it, and its good copy."""
    with open_map(path, session="monday", model_name="lite") as place_map:
        add_places(place_map, 1, KEYFRAMES // 2)
        place_map.start_session("tuesday")
        add_places(place_map, KEYFRAMES // 2, KEYFRAMES + 1)
        place_map.set_calibration(Calibration(slope=2.5, intercept=-1.25, right=10, wrong=990))
        place_map.add_headings({"camera1": 3.125})
        for i in range(4):
            place_map.add_verdict(StoredVerdict(10**15 + i, 40 + i, "accepted", 1.5 + i))
        place_map.keep_good_copy()
    return path


def answers(place_map):
    """What a map says of itself, and of each keyframe, by id."""
    ids = place_map.ids().tolist()
    info = place_map.info()
    of_map = {
        "id": (place_map.map_id, place_map.fingerprint, place_map.feature_dim),
        "model name": place_map.model_name,
        "next id": place_map._next_id,
        "calibration": place_map.calibration,
        "headings": dict(place_map.headings_rad),
        "verdicts": place_map.read_verdicts(),
        "sessions": [(s.name, s.keyframes) for s in info.sessions],
        "counts": (info.keyframes, info.with_pose, info.with_thumbnail, info.cameras),
        "found": [tuple(map(tuple, place_map.search(descriptor(i).code, 9))) for i in (3, 40)],
    }
    codes, features = place_map.codes(), place_map.features(ids)
    of_keyframes = {
        k.id: (k, bytes(code), bytes(feature), place_map.thumbnail(k.id))
        for k, code, feature in zip(place_map.keyframes(ids), codes, features, strict=True)
    }
    return of_map, of_keyframes


# Damage


def flip_a_bit(content, rng):
    """A bit flips where the map has content."""
    held = [at for at in range(len(content)) if any(content[max(0, at - 8) : at + 9])]
    content[rng.choice(held)] ^= 1 << rng.randrange(8)


def flip_structure(content, rng):
    """A byte of what steers SQLite most."""
    at = rng.randrange(len(content) // PAGE) * PAGE
    content[at + rng.randrange(16) + (100 if at == 0 else 0)] ^= rng.randrange(1, 256)


def swap_pages(content, rng):
    """Two pages change places, as where a disk mixes sectors up."""
    one, other = (PAGE * i for i in rng.sample(range(1, len(content) // PAGE), 2))
    first = bytes(content[one : one + PAGE])
    content[one : one + PAGE] = content[other : other + PAGE]
    content[other : other + PAGE] = first


def repeat_a_page(content, rng):
    """A page is written where another belongs."""
    one, other = (PAGE * i for i in rng.sample(range(1, len(content) // PAGE), 2))
    content[one : one + PAGE] = content[other : other + PAGE]


def zero_sectors(content, rng):
    """A part is never written, as after a power cut."""
    at = 512 * rng.randrange(len(content) // 512)
    content[at : at + 512 * rng.randrange(1, 9)] = bytes(len(content[at : at + 512]))


def cut(content, rng):
    """The file ends too early."""
    del content[rng.randrange(len(content)) :]


DAMAGES = [flip_a_bit, flip_a_bit, flip_structure, swap_pages, repeat_a_page, zero_sectors, cut]
CHANGES = [
    f"UPDATE {table} SET {column} = {value} WHERE rowid = {row}"
    for table, columns in {
        "keyframes": "id session_id camera stamp_ns frame_id px qw code feature_crc crc",
        "features": "id feature",
        "thumbnails": "id jpeg",
        "sessions": "id name crc",
    }.items()
    for column in columns.split()
    for value in ("NULL", "7", "-1", "1.5", "9e99", "'text'", "x'ff'", "zeroblob(64)", "1 << 62")
    for row in (2, 58)
] + [
    f"UPDATE {table} SET {column} = {value}"
    for table, columns in {
        "meta": "value crc",
        "checks": "count sum crc",
        "verdicts": "verdict log_odds match_id crc",
    }.items()
    for column in columns.split()
    for value in ("7", "-1", "1.5", "9e99", "'text'", "x'ff'", "1 << 62")
]


def change(path, rng):
    """A value becomes another, of whatever type. Returns whether it did."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        try:
            changed = db.execute(rng.choice(CHANGES)).rowcount
        except sqlite3.IntegrityError:
            return False
        db.commit()
        db.execute("PRAGMA journal_mode = DELETE")
    return changed > 0


def outcome(path, expected, *, verify, read_only, on_damage):
    """What becomes of a map that may be damaged; fails where it gives other answers unsaid."""
    before = path.read_bytes()
    try:
        with open_map(
            path, read_only=read_only, create=False, session="monday", verify=verify,
            on_damage=on_damage,
        ) as place_map:  # fmt: skip
            left_out = place_map.left_out_damaged
            place_map.keep_good_copy()
            of_map, of_keyframes = answers(place_map)
    except DamagedMapError as e:
        assert "damaged" in str(e) or "truncated" in str(e) or "empty" in str(e)
        assert "hashvpr map restore" in str(e) and "\n" not in str(e)
        assert on_damage == "drop" or path.read_bytes() == before
        return "refused"
    except MapError as e:
        assert str(path) in str(e) and "\n" not in str(e)
        return "refused as foreign"
    if not left_out:
        assert (of_map, of_keyframes) == expected
        return "the same answers"
    assert on_damage == "drop"
    of_map_then, keyframes_then = expected
    assert of_map["id"] == of_map_then["id"]
    assert of_map["model name"] in (of_map_then["model name"], "")
    assert of_map["next id"] > max(of_keyframes, default=0)
    assert of_keyframes.keys() <= keyframes_then.keys()
    for id_, (keyframe, *content) in of_keyframes.items():
        then, *content_then = keyframes_then[id_]
        assert content == content_then and keyframe.pose == then.pose
        assert keyframe.stamp_ns == then.stamp_ns and keyframe.camera == then.camera
        assert keyframe.session == then.session or "of a damaged map" in keyframe.session
    lost = len(keyframes_then) - len(of_keyframes)
    assert not lost or any("keyframes" in line for line in left_out)
    if not read_only:
        kept = [p for p in path.parent.iterdir() if ".damaged-" in p.name]
        assert [p.read_bytes() for p in kept] == [before]
        with PlaceMap.open(path, read_only=True, verify=True) as place_map:
            assert place_map.verify() == []
    return "what is sound is used"


def campaign(count, seed, folder):
    """Damage a map in `count` ways and open it as a node does; how often it ended in which way."""
    rng = random.Random(seed)
    sound = make(folder / "sound")
    with open_map(sound, read_only=True) as place_map:
        expected = answers(place_map)
    raw, good = sound.read_bytes(), good_copy_of(sound).read_bytes()
    ended = Counter()
    for i in range(count):
        path = folder / "case" / "m.vprmap"
        path.parent.mkdir()
        content = bytearray(raw)
        if i % 8 == 7:
            path.write_bytes(content)
            if not change(path, rng):
                shutil.rmtree(path.parent)
                continue
        else:
            DAMAGES[i % 8](content, rng)
            path.write_bytes(content)
        damaged = path.read_bytes()
        good_copy_of(path).write_bytes(good)
        for how in (
            {"verify": True, "read_only": False, "on_damage": "refuse"},
            {"verify": True, "read_only": True, "on_damage": "refuse"},
            {"verify": False, "read_only": True, "on_damage": "refuse"},
            {"verify": True, "read_only": True, "on_damage": "drop"},
            {"verify": True, "read_only": False, "on_damage": "drop"},
        ):
            # A sound map that was opened for writing is another file then.
            if path.read_bytes() != damaged:
                path.write_bytes(damaged)
            ended[outcome(path, expected, **how)] += 1
            assert good_copy_of(path).read_bytes() == good or how["on_damage"] == "drop"
            good_copy_of(path).write_bytes(good)
        path.write_bytes(damaged)
        restore(path, force=True)
        with open_map(path, read_only=True) as place_map:
            assert answers(place_map) == expected
        shutil.rmtree(path.parent)
    return ended


def test_campaign(tmp_path):
    ended = campaign(int(os.environ.get("VPR_DAMAGES", "80")), 1, tmp_path)
    print(dict(ended))
    assert ended["refused"] > ended["the same answers"] > 0 and ended["what is sound is used"] > 0


@pytest.mark.parametrize("read_only", [True, False])
def test_drop_leaves_out_what_is_damaged_and_nothing_else(tmp_path, read_only):
    path = make(tmp_path / "m")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(descriptor(7).code.tobytes())] ^= 1
    damaged[damaged.rindex(descriptor(41).feature.astype("<f2").tobytes())] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedMapError, match=r"keyframe 7: .*map restore .* with 60 keyframes"):
        open_map(path, read_only=read_only)
    with open_map(path, read_only=read_only, on_damage="drop") as place_map:
        assert place_map.left_out_damaged[0] == "2 of 60 keyframes"
        assert set(range(1, KEYFRAMES + 1)) - set(place_map.ids().tolist()) == {7, 41}
        assert place_map.calibration is not None and place_map.session_count == 2
        if read_only:
            assert path.read_bytes() == damaged
        else:
            assert add_places(place_map, 100, 101) == [KEYFRAMES + 1]
    if not read_only:
        (kept,) = (p for p in tmp_path.iterdir() if ".damaged-" in p.name)
        assert kept.read_bytes() == damaged
        with open_map(path, verify=True) as place_map:
            assert len(place_map) == 59 and place_map.left_out_damaged == ()


def test_drop_gives_sessions_whose_names_are_damaged_another(tmp_path):
    path = make(tmp_path / "m")
    damaged = path.read_bytes().replace(b"tuesday", b"tuesdax")
    path.write_bytes(damaged)
    with open_map(path, read_only=True, on_damage="drop") as place_map:
        assert len(place_map) == KEYFRAMES
        assert {k.session for k in place_map.keyframes(place_map.ids())} == {
            "monday", "session 2 of a damaged map",
        }  # fmt: skip
        assert any("name of session 2" in line for line in place_map.left_out_damaged)


def test_drop_uses_nothing_of_a_map_whose_model_is_not_known(tmp_path):
    path = make(tmp_path / "m")
    damaged = path.read_bytes().replace(b"feature_dim", b"feature_din")
    path.write_bytes(damaged)
    for read_only in (True, False):
        with pytest.raises(DamagedMapError, match="lacks feature_dim"):
            open_map(path, read_only=read_only, on_damage="drop")
    assert path.read_bytes() == damaged and len(list(tmp_path.iterdir())) == 2
