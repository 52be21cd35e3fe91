"""All parameters of a real node: declared as the configuration says, refused, taking effect."""

import subprocess
import sys
import time

import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import ListParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from vpr_process import Camera, wait_until

from hashvpr_ros.config import Config
from hashvpr_ros.setting import CONFIGURE, LIVE, START, settings

SETTINGS = {s.name: s for s in settings(Config())}
TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
LISTS = {
    str: ParameterType.PARAMETER_STRING_ARRAY,
    float: ParameterType.PARAMETER_DOUBLE_ARRAY,
}
EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}


@pytest.fixture(scope="module")
def node(start_module):
    node = start_module(
        **EVERYTHING, matching__exclude_recent_s=0.0, publish__diagnostics_period_s=0.1
    )
    node.defaults = {name: node.get(name) for name in SETTINGS}
    node.activate()
    node.camera = Camera(node).connect()
    return node


def test_all_are_declared_with_their_default_description_and_range(node):
    names = node.call(ListParameters, "list_parameters").result.names
    assert set(SETTINGS) <= set(names)
    for setting, descriptor in zip(SETTINGS.values(), node.describe(*SETTINGS), strict=True):
        assert descriptor.name == setting.name
        is_list = isinstance(setting.default, list)
        kind = LISTS[setting.items] if is_list else TYPES[type(setting.default)]
        assert descriptor.type == kind, setting.name
        assert descriptor.description.startswith(setting.doc)
        assert setting.unit in descriptor.description
        assert all(choice in descriptor.description for choice in setting.choices)
        assert descriptor.read_only == (setting.change == START)
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        if setting.low is not None and setting.high is not None and not is_list:
            assert [(r.from_value, r.to_value) for r in ranges] == [(setting.low, setting.high)]
        else:
            assert ranges == []
        if setting.name not in ("engine.threads", "map.path", "map.allowed_dirs", *(
            name.replace("__", ".") for name in (
                *EVERYTHING, "matching__exclude_recent_s", "publish__diagnostics_period_s"
            )
        )):  # fmt: skip
            got = node.defaults[setting.name]
            assert (list(got) if isinstance(setting.default, list) else got) == setting.default


def bad_values(setting):
    """Values that a setting cannot have."""
    kind = type(setting.default)
    yield 5 if kind in (str, bool, list) else "five"
    if kind is list:
        yield "alone"
        yield [1, 2] if setting.items is str else ["one", "two"]
    if setting.choices:
        yield "none of these"
    if kind is float:
        yield float("nan")
        yield float("inf")
    for bound, step in ((setting.low, -1), (setting.high, 1)):
        if bound is not None:
            yield [float(bound + step)] if kind is list else kind(bound) + step


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_is_refused_with_a_reason_and_the_old_one_stays(node, name):
    before = node.get(name)
    for value in bad_values(SETTINGS[name]):
        answer = node.set(name, value)
        assert not answer.successful, value
        assert answer.reason, value
        assert node.get(name) == before


@pytest.mark.parametrize("name", [s.name for s in settings(Config()) if s.change == CONFIGURE])
def test_what_takes_effect_at_configure_is_refused_later(node, name):
    setting, before = SETTINGS[name], node.get(name)
    same, items, kind = before, setting.items, None
    if isinstance(setting.default, list):  # an empty one does not say of what it is empty
        same = list(before) or ([""] if items is str else [])
        kind = None if items is str else Parameter.Type.DOUBLE_ARRAY
    assert node.set(name, same, kind).successful  # no change
    other = {bool: not before, int: 3, float: 0.5, str: "other"}
    other[list] = ["other"] if items is str else [0.5]
    value = setting.choices[0] if setting.choices else other[type(setting.default)]
    if value == before:
        value = setting.choices[1]
    answer = node.set(name, value)
    assert not answer.successful and "configure" in answer.reason
    after = node.get(name)
    assert (list(after) if isinstance(setting.default, list) else after) == same


def test_what_is_set_at_start_is_refused_later(node):
    assert not node.set("autostart", True).successful


def test_all_or_nothing(node):
    answer = node.call(
        SetParametersAtomically,
        "set_parameters_atomically",
        parameters=[
            Parameter("matching.max_hypotheses", value=1).to_parameter_msg(),
            Parameter("matching.top_k", value=0).to_parameter_msg(),
        ],
    )
    assert not answer.result.successful
    for i in range(40):  # keyframes that are no neighbours are distinct places
        last = node.camera.show(i, i)
    assert len(last.hypotheses) > 1 and node.get("matching.max_hypotheses") == 5


def test_live_ones_take_effect_at_the_next_image(node):
    def show(seed=None):
        node.second = getattr(node, "second", 100) + 1
        return node.camera.show(node.second if seed is None else seed, node.second)

    live = {s.name for s in settings(Config()) if s.change == LIVE}
    assert node.set("matching.max_hypotheses", 1).successful
    assert len(show().hypotheses) == 1
    assert node.set("matching.max_hypotheses", 4).successful
    assert 1 < len(show().hypotheses) <= 4
    assert node.set("matching.top_k", 1).successful
    assert node.set("matching.temporal", "none").successful  # else the filter has more to say
    assert len(show().hypotheses) == 1
    assert node.set("matching.temporal", "both").successful
    assert node.set("matching.exclude_recent_s", 1000).successful  # a whole number for a float
    assert show().reason == "no_candidate"
    assert node.set("matching.exclude_recent_s", 0.0).successful
    assert show().hypotheses
    assert show().reason == "not_distinct"  # top_k is 1: there is nothing to compare with
    # A picture that was shown before, judged by itself and by those before it alone.
    assert node.set("matching.top_k", 100).successful
    assert node.set("matching.temporal", "sequence").successful
    assert node.set("matching.min_sequence_support", 1.0).successful
    assert show(101).reason == "no_sequence_support"
    assert node.set("matching.min_sequence_support", 0.0).successful
    assert node.set("matching.target_precision", 0.5).successful
    assert show(101).reason == "accepted"
    assert node.set("matching.target_precision", 1.0).successful
    assert show(102).reason == "below_target"
    assert node.set("keyframes.min_period_s", 100.0).successful
    assert show().keyframe_id == 0
    assert node.set("keyframes.min_period_s", 0.0).successful
    assert show().keyframe_id > 0
    assert live >= {"keyframes.min_period_s", "matching.target_precision", "pose.max_age_s"}


def test_stale_after_and_the_period_of_diagnostics(node, diagnostics):
    assert node.set("input.stale_after_s", 0.1).successful
    diagnostics(node, lambda d: d["camera image"]["level"] == 1, "it is stale at once")
    assert node.set("input.stale_after_s", 3600.0).successful
    diagnostics(node, lambda d: d["camera image"]["level"] == 0, "it is not stale")
    assert node.change("deactivate") and node.change("cleanup")
    assert node.set("publish.diagnostics_period_s", 60.0).successful
    assert node.change("configure")
    # One may be under way; a second would come within a tenth of a second, were it the old one.
    from diagnostic_msgs.msg import DiagnosticArray

    heard = node.client.listen(DiagnosticArray, "/diagnostics")
    end = time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() > end, "a second has passed")
    own = [m for m in list(heard) if m.status[0].name == node.name.lstrip("/")]
    assert len(own) <= 2
    assert node.change("cleanup")
    assert node.set("publish.diagnostics_period_s", 0.1).successful
    node.activate()
    diagnostics(node, lambda d: d["node"]["state"] == "active", "it comes again")


def test_a_parameter_file_with_an_unknown_name(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    matching:\n      topk: 5\n      top_k: 0\n"
        "    colour: blue\n"
    )
    good = tmp_path / "good.yaml"
    good.write_text(file.read_text().replace("top_k: 0", "top_k: 7"))
    command = [sys.executable, "-m", "hashvpr_ros.ros.node", "--ros-args", "--params-file"]
    done = subprocess.run([*command, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "matching.top_k" in done.stderr
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, good], stdout=log, stderr=subprocess.STDOUT)

    def said():
        assert process.poll() is None
        text = (tmp_path / "log").read_text()
        return (
            "parameter matching.topk is unknown and has no effect; did you mean matching.top_k?"
            in text
            and "parameter colour is unknown and has no effect" in text
        )

    wait_until(said, "the unknown names are said")
    # Its handler of signals may not be there yet: what counts is that it ends.
    process.terminate()
    process.wait(20.0)


def test_autostart_does_not_wait_for_simulated_time(start):
    node = start(use_sim_time=True, autostart=True)
    wait_until(lambda: node.logged("active: waiting"), "the node has started itself")
    assert node.stop() == 0
