"""Whatever raises whatever, wherever: it is counted, logged once with its traceback, and the node
lives on. And malformed requests for parameters."""

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from vpr_process import START_NS, Camera, image_message, picture, wait_until

from hashvpr_ros.msg import ClosureVerdict, PlaceDescriptor
from hashvpr_ros.srv import InspectMap, Recognize, SaveMap

PEER = "/peer/descriptors"
KINDS = ("ValueError", "MemoryError", "SystemExit", "Fault", "OSError")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return tmp_path_factory.mktemp("faults") / "faults"


@pytest.fixture(scope="module")
def node(start_module, faults):
    node = start_module(
        broken=faults, keyframes__min_period_s=0.0, keyframes__min_novelty_bits=0,
        pose__source="odometry", pose__wait_s=0.0, input__descriptor_topics=[PEER],
        map__commit_period_s=0.1, publish__diagnostics_period_s=0.1,
    ).activate()  # fmt: skip
    node.camera = Camera(node).connect()
    node.odometry = node.client.matched(node.client.publisher(Odometry, f"{node.namespace}/odom"))
    node.peer = node.client.matched(node.client.publisher(PlaceDescriptor, PEER))
    node.verdicts = node.client.matched(
        node.client.publisher(ClosureVerdict, node.topic("verdicts"))
    )
    node.second = 0
    node.camera.show(1, 0.0)
    return node


def image(node):
    node.second += 1
    node.camera.publisher.publish(image_message(picture(1), START_NS + node.second * 10**9))


def recognize(node):
    answer = node.call(Recognize, "recognize", image=image_message(picture(1), 1))
    assert answer.result == Recognize.Response.RESULT_FAILED and answer.message


def inspect(node):
    answer = node.call(InspectMap, "inspect_map")
    assert answer.result == InspectMap.Response.RESULT_DAMAGED and answer.message


def set_parameter(node):
    answer = node.set("matching.top_k", 50)
    assert not answer.successful and answer.reason


PROVOKE = {
    "decode": image,
    "process": image,
    "publish": image,
    "gather": image,
    "pose": image,
    "camera": image,
    "commit": image,
    "recognize": recognize,
    "service": inspect,
    "parameters": set_parameter,
    "post": lambda node: node.set("matching.top_k", 60),
    "odometry": lambda node: node.odometry.publish(Odometry()),
    "descriptor": lambda node: node.peer.publish(PlaceDescriptor()),
    "verdict": lambda node: node.verdicts.publish(ClosureVerdict()),
    "status": lambda node: None,
    "diagnostics": lambda node: None,
}


@pytest.mark.parametrize("hook", PROVOKE)
def test_the_node_lives_on_whatever_raises(node, faults, hook, diagnostics):
    said = len(node.text())
    kinds = KINDS if hook == "process" else (KINDS[list(PROVOKE).index(hook) % len(KINDS)],)
    before = failures(node)
    for kind in kinds:
        faults.write_text(f"{hook} {kind} 1\n")
        PROVOKE[hook](node)
        wait_until(lambda: faults.read_text().endswith(" 0\n"), f"{hook} has raised a {kind}")
        wait_until(
            lambda kind=kind: f"{kind}: " in node.text()[said:], f"the {kind} of {hook} is logged"
        )
    text = node.text()[said:]
    assert text.count("Traceback") == len(kinds), text
    assert "broken_node.py" in text and "[ERROR]" in text
    wait_until(lambda: failures(node) >= before + len(kinds), "diagnostics have counted it")
    # All else answers as before.
    node.second += 1
    node.camera.show(1, float(node.second))
    assert node.call(SaveMap, "save_map").result == SaveMap.Response.RESULT_OK
    assert node.call(InspectMap, "inspect_map", verify=True).result == 0
    assert node.set("matching.top_k", 100).successful
    assert node.state() == "active"


def failures(node) -> int:
    if not hasattr(node, "diagnosed"):
        node.diagnosed = node.client.listen(DiagnosticArray, "/diagnostics")
    mine = node.name.lstrip("/")

    def counts():
        return [
            int(value.value)
            for message in list(node.diagnosed)[-20:]
            for status in message.status
            if status.name == mine
            for value in status.values
            if value.key == "failures"
        ]

    node.diagnosed.clear()
    return int(wait_until(counts, "there are diagnostics")[-1])


def test_one_that_comes_again_and_again_is_said_now_and_then(node, faults):
    said = len(node.text())
    faults.write_text("odometry OSError 50\n")
    for _ in range(50):
        node.odometry.publish(Odometry())
    wait_until(lambda: int(faults.read_text().split()[2]) < 45, "some have raised")
    faults.unlink()
    text = node.text()[said:]
    assert text.count("OSError") <= 3 and text.count("Traceback") <= 1, text


def test_what_cannot_be_written_for_an_unforeseen_reason_is_kept(node, faults):
    before = node.call(InspectMap, "inspect_map").status.keyframes
    faults.write_text("commit ValueError 5\n")
    node.second += 1
    assert node.camera.show(77, float(node.second))
    wait_until(lambda: faults.read_text().endswith(" 0\n"), "writing has failed")
    node.second += 1
    node.camera.show(78, float(node.second))
    assert node.call(SaveMap, "save_map").keyframes >= before + 1
    assert node.call(InspectMap, "inspect_map", verify=True).result == 0


TYPES = {
    "set_parameters": (SetParameters, lambda r: r.results),
    "set_parameters_atomically": (SetParametersAtomically, lambda r: [r.result]),
}


@pytest.mark.parametrize("service", TYPES)
@pytest.mark.parametrize("kind", [10, 99, 255])
def test_a_parameter_of_a_type_that_is_none_is_refused(node, service, kind):
    service_kind, results = TYPES[service]
    bad = Parameter(name="mode", value=ParameterValue(type=kind))
    good = Parameter(name="matching.top_k", value=ParameterValue(type=2, integer_value=70))
    answer = results(node.call(service_kind, service, parameters=[bad]))
    assert [r.successful for r in answer] == [False]
    assert "no parameter" in answer[0].reason and str(kind) in answer[0].reason
    answer = results(node.call(service_kind, service, parameters=[good, bad]))
    if service == "set_parameters":
        assert [r.successful for r in answer] == [True, False]
        assert node.get("matching.top_k") == 70
        assert node.set("matching.top_k", 100).successful
    else:
        assert [r.successful for r in answer] == [False]
        assert node.get("matching.top_k") == 100


def test_malformed_requests_for_parameters_are_answered(node):
    said = len(node.text())
    names = ["", ".", "a..b", "\0", "é" * 1000, "x" * 100_000, "mode", "mode", "qos_overrides."]
    for kind, service in (
        (GetParameters, "get_parameters"),
        (GetParameterTypes, "get_parameter_types"),
        (DescribeParameters, "describe_parameters"),
    ):
        for name in names:
            assert node.call(kind, service, names=[name, "mode"]) is not None
    for depth in (0, 1, 2**64 - 1):
        for prefixes in ([], names):
            answer = node.call(ListParameters, "list_parameters", prefixes=prefixes, depth=depth)
            assert answer is not None
    for name in names[:6]:
        for value in (ParameterValue(), ParameterValue(type=9), ParameterValue(type=4)):
            assert len(node.call(
                SetParameters, "set_parameters", parameters=[Parameter(name=name, value=value)]
            ).results) == 1  # fmt: skip
    assert "Traceback" not in node.text()[said:]
    assert node.state() == "active"


def test_what_fails_in_a_transition_leaves_a_node_that_can_be_configured(node, faults):
    assert node.change("deactivate")
    faults.write_text("activate MemoryError 1\n")
    assert not node.change("activate")
    assert node.state() in ("inactive", "unconfigured")
    if node.state() == "unconfigured":
        assert node.change("configure")
    assert node.change("activate")
    assert node.change("deactivate") and node.change("cleanup")
    faults.write_text("engine Fault 1\n")
    assert not node.change("configure")
    assert node.state() == "unconfigured"
    assert node.change("configure") and node.change("activate")
    node.camera.connect()
    node.second += 1
    node.camera.show(1, float(node.second))
    assert node.stop() == 0
