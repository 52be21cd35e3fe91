"""The shipped SROS2 policy, beside what a running node has.

The middleware of the wheels is built without DDS security, so nothing here runs with it enforced.
"""

import xml.etree.ElementTree as ET

import pytest
from vpr_process import ROOT, wait_until

POLICY = ROOT / "config" / "sros2_policy.xml"
KINDS = ("publish", "subscribe", "reply", "request")
# What a node has only with tf2_ros, with bondpy, or with other parameters.
ELSEWHERE = {
    "subscribe": {"/tf", "/tf_static", "{ns}/bond", "{ns}/image"},
    "publish": {"{ns}/bond"},
    "reply": {"~/get_type_description"},  # not in Humble
}


def allowed(namespace):
    """What the policy allows a node in a namespace, by kind: names, with ~ for the node's own."""
    (profile,) = ET.parse(POLICY).getroot().iter("profile")
    assert profile.attrib == {"ns": "/", "node": "vpr_node"}
    found = {kind: set() for kind in KINDS}
    for group in profile:
        assert group.tag in ("topics", "services") and len(group)
        for kind, value in group.attrib.items():
            assert value == "ALLOW"
            for name in group:
                full = name.text if name.text[0] in "/~" else f"{namespace}/{name.text}"
                assert full not in found[kind], f"{full} is twice in the policy"
                found[kind].add(full)
    return found


def offered(node, ask):
    names = ask("vpr_node", node.namespace)
    return {name.replace(f"{node.name}/", "~/") for name, _ in names}


def test_the_policy_allows_what_a_node_has_and_nothing_else(start):
    node = start(
        use_sim_time=True, pose__source="odometry", input__compressed=True,
        input__descriptor_topics=["/robot2/vpr_node/descriptors"],
    ).activate()  # fmt: skip
    ros = node.client.node
    wait_until(
        lambda: (
            "/robot2/vpr_node/descriptors"
            in offered(node, ros.get_subscriber_names_and_types_by_node)
        ),
        "the graph is known",
    )
    policy = allowed(node.namespace)
    for kind, ask in (
        ("publish", ros.get_publisher_names_and_types_by_node),
        ("subscribe", ros.get_subscriber_names_and_types_by_node),
        ("reply", ros.get_service_names_and_types_by_node),
        ("request", ros.get_client_names_and_types_by_node),
    ):
        has = offered(node, ask)
        elsewhere = {n.replace("{ns}", node.namespace) for n in ELSEWHERE.get(kind, set())}
        assert has - policy[kind] == set(), f"{kind}: the policy lacks these"
        assert policy[kind] - has <= elsewhere, f"{kind}: no node has these"


def test_sros2_takes_the_policy():
    policy = pytest.importorskip("sros2.policy", reason="sros2 is not installed (no wheel of it)")
    policy.load_policy(POLICY)
