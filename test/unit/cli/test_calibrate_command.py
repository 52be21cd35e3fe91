"""`hashvpr calibrate` on the corridor, `hashvpr audit`, and what is refused."""

from cli_helpers import refused, strict_json, well

from hashvpr_ros.map.place_map import PlaceMap


def test_on_the_corridor(run, data, tmp_path):
    path, result = tmp_path / "c.vprmap", tmp_path / "r.json"
    folder = data / "corridor"
    well(run("map", "build", path, "--images", folder / "ref"))
    before = path.read_bytes()
    out = well(run("calibrate", path, "--images", folder, "--dry-run", "--json", result))
    assert "not kept" in out and path.read_bytes() == before
    assert "111 of 111 images show a place of the map by their ground truth; 0 are left out" in out
    numbers = strict_json(result)
    assert numbers["calibration"]["right"] > 90 and numbers["calibration"]["wrong"] > 60
    assert numbers["accepted_after"][1] == 0
    assert "kept in the map" in well(run("calibrate", path, "--images", folder))
    with PlaceMap.open(path, read_only=True) as place_map:
        assert place_map.calibration.slope == numbers["calibration"]["slope"]
    assert "forgotten" in well(run("calibrate", path, "--clear"))
    with PlaceMap.open(path, read_only=True) as place_map:
        assert place_map.calibration is None


def test_what_is_refused(run, built, bag, few, tmp_path):
    refused(run("calibrate", built), "--bag", "--images")
    refused(run("calibrate", built, "--bag", bag), "--image-topic", "--pose-topic")
    refused(run("calibrate", tmp_path / "no.vprmap", "--images", few(2, "x")), "no such map")
    refused(run("calibrate", built, "--images", few(2, "y")), "has 4 keyframes", "2 references")
    refused(run("calibrate", built, "--images", few(4, "z")), "at least 50 of each")
    topics = ("--image-topic", "/camera/image", "--pose-topic", "/odom")
    refused(run("calibrate", built, "--bag", bag, *topics), "no poses of a common frame")
    refused(run("calibrate", built, "--images", few(4, "w"), "--set", "matching.top=1"), "unknown")
    for way in ("none", "sequence", "filter"):
        other = ("--set", f"matching.temporal={way}")
        refused(run("calibrate", built, "--images", few(4, way), *other), f"temporal is {way}")


def test_the_audit_of_a_map(run, built, tmp_path):
    plot, result = tmp_path / "alike.png", tmp_path / "a.json"
    out = well(run("audit", built, "--plot", plot, "--json", result))
    assert "0 of 4 keyframes have a double elsewhere" in out and plot.stat().st_size > 1000
    assert strict_json(result)["pairs"] == []
    refused(run("audit", tmp_path / "no.vprmap"), "no such map")
