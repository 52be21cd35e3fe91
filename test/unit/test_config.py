"""One source of settings: the YAML, the launch file and the node's names are held equal to it."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from hashvpr_ros.cli.config import command, parameters_table, parameters_yaml
from hashvpr_ros.config import Config, camera_headings, from_flat
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.setting import problem_with, settings

ROOT = Path(__file__).resolve().parents[2]
YAML = ROOT / "config" / "vpr.yaml"
LAUNCH = ROOT / "launch" / "vpr.launch.py"
ROS = ROOT / "hashvpr_ros" / "ros"


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def test_the_yaml_is_what_the_command_prints():
    assert YAML.read_text() == parameters_yaml(), "run: hashvpr config > config/vpr.yaml"
    assert CliRunner().invoke(command).output == parameters_yaml()
    assert max(map(len, parameters_yaml().splitlines())) <= 99


def test_the_readme_has_the_table_that_the_command_prints():
    table = CliRunner().invoke(command, ["--table"]).output
    assert table == parameters_table()
    assert table in (ROOT / "README.md").read_text(), "run: hashvpr config --table"


def test_the_yaml_has_every_parameter_with_its_default():
    tree = yaml.safe_load(YAML.read_text())
    assert list(tree) == ["/**"]
    values = flat(tree["/**"]["ros__parameters"])
    assert values == {s.name: s.default for s in settings(Config())}
    for s in settings(Config()):  # 30 would be declared as an integer
        assert type(values[s.name]) is type(s.default), s.name
    assert from_flat(values) == Config()


def test_every_default_is_allowed_and_every_setting_is_explained():
    for s in settings(Config()):
        assert problem_with(s, s.default) == ""
        assert s.doc.endswith("."), s.name
        numeric = type(s.default) in (int, float)
        assert not numeric or (s.low is not None and s.high is not None), s.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matching.top_k", 0), ("matching.top_k", 1001), ("matching.top_k", True),
        ("matching.top_k", 1.5), ("matching.target_precision", float("nan")),
        ("matching.exclude_recent_s", float("inf")), ("mode", "SLAM"), ("mode", ""),
        ("input.image_topics", "image"), ("input.image_topics", [1]), ("autostart", 1),
        ("input.camera_headings", 1.0), ("input.camera_headings", ["0"]),
        ("input.camera_headings", [True]), ("input.camera_headings", [float("nan")]),
        ("input.camera_headings", [0.0, 7.0]),
        ("map.path", None), ("no.such", 1),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=re.escape(name)):
        from_flat({name: value})


def test_a_whole_number_is_taken_for_a_real_one():
    config = from_flat({"matching.exclude_recent_s": 30, "input.image_topics": ("a", "b")})
    assert config.matching.exclude_recent_s == 30.0
    assert isinstance(config.matching.exclude_recent_s, float)
    assert config.input.image_topics == ["a", "b"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.mode = "slam"


def test_headings_are_numbers_one_for_each_camera():
    two = {"input.image_topics": ["a", "b"], "input.camera_headings": [0, 3]}
    headings = camera_headings(from_flat(two))
    assert headings == {"a": 0.0, "b": 3.0} and isinstance(headings["a"], float)
    assert camera_headings(Config()) == {}
    with pytest.raises(ConfigError, match="2 headings for 1 topics"):
        camera_headings(from_flat({"input.camera_headings": [0.0, 3.0]}))


# The launch file cannot be imported where there is no `launch`; it is read instead.


def launch_overrides() -> dict[str, tuple]:
    for node in ast.parse(LAUNCH.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "OVERRIDES":
            return {
                key.value: (value.elts[0].value, ast.unparse(value.elts[1]))
                for key, value in zip(node.value.keys, node.value.values, strict=True)
            }
    raise AssertionError("the launch file has no OVERRIDES")


def test_launch_overrides_parameters_that_exist_with_their_type():
    types = {"str": str, "bool": bool, "List[str]": list}
    known = {s.name: type(s.default) for s in settings(Config())} | {"use_sim_time": bool}
    for argument, (parameter, kind) in launch_overrides().items():
        assert known[parameter] is types[kind], argument


def test_launch_has_the_usual_arguments():
    text = LAUNCH.read_text()
    declared = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', text))
    assert declared | set(launch_overrides()) == {
        "namespace", "name", "params_file", "autostart", "respawn", "log_level", "map", "engine",
        "mode", "image_topics", "compressed", "use_sim_time",
    }  # fmt: skip
    assert set(re.findall(r'LaunchConfiguration\("(\w+)"\)', text)) <= declared


def test_launch_starts_the_executable_and_the_file_that_are_installed():
    text = LAUNCH.read_text()
    assert 'package="hashvpr_ros"' in text
    assert 'executable="vpr_node"' in text
    assert '"config" / "vpr.yaml"' in text
    assert 'super().__init__("vpr_node"' in (ROS / "vpr_node.py").read_text()
    cmake = ROOT / "CMakeLists.txt"
    assert re.search(r"\bvpr_node\b", cmake.read_text()), "CMake installs no vpr_node"
    for folder in ("launch", "config"):
        assert re.search(rf"\b{folder}\b", cmake.read_text()), f"CMake installs no {folder}"


def test_every_service_file_is_served_and_every_topic_is_private():
    source = "".join(p.read_text() for p in ROS.glob("*.py"))
    served = set(re.findall(r'\((\w+), "~/(\w+)", self\._', source))
    names = {p.stem for p in (ROOT / "srv").glob("*.srv")}
    assert {kind for kind, _ in served} == names
    for kind, name in served:
        assert name == re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    topics = set(re.findall(r'"(~/\w+)"', source)) - {f"~/{n}" for _, n in served}
    assert topics == {
        "~/hypotheses",
        "~/loop_closures",
        "~/descriptors",
        "~/ledger",
        "~/peer_hypotheses",
        "~/peer_closures",
        "~/verdicts",
        "~/map_status",
        "~/alike",  # of `hashvpr audit --rviz`
    }
