"""The bond with Nav2's lifecycle manager: made at each activation, broken when the node stops."""

import importlib.util
import os

import pytest
from vpr_process import wait_until

MISSING = [n for n in ("bond", "bondpy", "smclib") if not importlib.util.find_spec(n)]
needs_bondpy = pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {MISSING}")

# Says what the node does with it. It stands for bondpy's Bond, which needs messages of its own.
DOUBLE = """
class Bond:
    pub = sub = None

    def __init__(self, node, topic, bond_id, on_broken=None, on_formed=None):
        self.broken, self.told = False, (topic, bond_id)

    def say(self, what):
        print("double of a bond:", what, *self.told, flush=True)

    def start(self):
        self.say(f"start {self.heartbeat_period} {self.heartbeat_timeout}")

    def is_broken(self):
        return self.broken

    def break_bond(self):
        self.broken = True
        self.say("break")

    def shutdown(self):
        self.say("shutdown")
"""


def end(client, bond):
    """In the executor's thread: in another one rclpy's wait may raise."""

    def shutdown():
        bond.shutdown()
        # bondpy (4.0) leaves them with the node, where every later wait raises over them.
        client.node.destroy_subscription(bond.sub)
        client.node.destroy_publisher(bond.pub)

    done = client._executor.create_task(shutdown)
    wait_until(done.done, "the manager's side ends")


@pytest.fixture
def with_double(start, tmp_path, monkeypatch):
    """Starts nodes that import a double of bondpy."""
    package = tmp_path / "doubles" / "bondpy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "bondpy.py").write_text(DOUBLE)
    path = f"{package.parent}:{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    return start


def test_each_activation_has_a_bond_of_its_own(with_double):
    node = with_double()
    assert node.change("configure")
    assert node.logged("double of a bond") == 0
    for time in (1, 2):
        assert node.change("activate")
        wait_until(
            lambda n=time: node.logged("double of a bond: start 0.1 4.0 bond vpr_node") == n,
            "there is one",
        )
        assert node.change("deactivate")
        for what in ("break", "shutdown"):
            assert node.logged(f"double of a bond: {what} bond vpr_node") == time
    assert node.change("activate")
    assert node.stop() == 0
    assert node.logged("double of a bond: break") == 3


@pytest.mark.skipif(not MISSING, reason="bondpy is installed here")
def test_without_bondpy_the_node_works(start):
    node = start().activate()
    assert node.state() == "active"
    assert "lifecycle manager" not in node.text()  # at DEBUG only


@needs_bondpy
def test_a_lifecycle_manager_forms_a_bond_and_sees_its_end(start):
    """The manager's side as Nav2 has it, by the real bondpy."""
    from bondpy import bondpy
    from rclpy.duration import Duration

    node = start()
    assert node.change("configure")
    topic = f"{node.namespace}/bond"
    says = "a lifecycle manager watches this node"
    for time in (1, 2):
        bond = bondpy.Bond(node.client.node, topic, "vpr_node")
        bond.heartbeat_timeout = 4.0
        bond.heartbeat_period = 0.1
        bond.start()
        assert node.change("activate")
        assert bond.wait_until_formed(Duration(seconds=4.0))  # Nav2's bond_timeout
        wait_until(lambda n=time: node.logged(says) == n, "it says so")
        assert node.change("deactivate")
        assert bond.wait_until_broken(Duration(seconds=2.0))  # told, not missed
        end(node.client, bond)
    assert node.logged("is gone") == 0


@needs_bondpy
def test_the_node_survives_a_manager_that_goes(start):
    from bondpy import bondpy
    from rclpy.duration import Duration

    node = start()
    assert node.change("configure")
    bond = bondpy.Bond(node.client.node, f"{node.namespace}/bond", "vpr_node")
    bond.start()
    assert node.change("activate")
    assert bond.wait_until_formed(Duration(seconds=4.0))
    bond.break_bond()
    wait_until(lambda: node.logged("has ended the bond or has died") == 1, "it says so")
    end(node.client, bond)
    assert node.state() == "active"
    assert node.change("deactivate") and node.change("activate")
    assert node.stop() == 0


@needs_bondpy
def test_a_manager_that_crashes_is_missed_each_time(start):
    from bond.msg import Status

    node = start()
    assert node.change("configure")
    publisher = node.client.publisher(Status, f"{node.namespace}/bond", depth=1)
    for crash in (1, 2):
        assert node.change("activate")
        beat = Status(id="vpr_node", instance_id=str(crash), active=True)
        beat.heartbeat_timeout, beat.heartbeat_period = 4.0, 0.1

        def formed(n=crash, message=beat):
            publisher.publish(message)
            return node.logged("a lifecycle manager watches this node") == n

        wait_until(formed, "the bond is formed")
        wait_until(lambda n=crash: node.logged("or has died") == n, "the manager is missed")
        assert node.change("deactivate")
    assert "Traceback" not in node.text()
    node.client.destroy(publisher)
