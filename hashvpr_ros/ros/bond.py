"""The bond by which Nav2's lifecycle manager sees that the node is alive."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode

# As Nav2's own nodes have them.
_TOPIC, _HEARTBEAT_PERIOD_S, _HEARTBEAT_TIMEOUT_S = "bond", 0.1, 4.0
_PARAMETER = "/bond_disable_heartbeat_timeout"
_LET_KNOW_S = 0.1  # for which the end waits until the manager knows of it


class ManagerBond:
    """One bond, from an activation until the node is deactivated. A broken one cannot be mended.

    Args:
        node: whose name is the bond's id.
        bondpy: the module.
    """

    def __init__(self, node: LifecycleNode, bondpy: Any) -> None:
        self._node = node
        self._closing = threading.Event()
        # bondpy (4.0) declares it when a manager has died, and raises where it is there already.
        if node.has_parameter(_PARAMETER):
            node.undeclare_parameter(_PARAMETER)
        self._bond = bondpy.Bond(
            node, _TOPIC, node.get_name(), on_broken=self._on_broken, on_formed=self._on_formed
        )
        self._bond.heartbeat_period = _HEARTBEAT_PERIOD_S
        self._bond.heartbeat_timeout = _HEARTBEAT_TIMEOUT_S
        self._formed = False
        self._bond.start()

    def _on_formed(self) -> None:
        self._formed = True
        self._node.get_logger().info("a lifecycle manager watches this node (bond)")

    def _on_broken(self) -> None:
        # Also where nobody has ever answered, as without a manager.
        if self._formed and not self._closing.is_set():
            self._node.get_logger().warning(
                "the lifecycle manager has ended the bond or has died: the node continues"
            )

    def close(self) -> None:
        """Break the bond, so that the manager knows that this is no crash."""
        self._closing.set()
        try:
            if not self._bond.is_broken():
                self._bond.break_bond()
                if self._formed:
                    self._bond.wait_until_broken(Duration(seconds=_LET_KNOW_S))
            self._bond.shutdown()
            # bondpy (4.0) destroys them and leaves them with the node, whose executor then raises
            # from every wait.
            self._node.destroy_subscription(self._bond.sub)
            self._node.destroy_publisher(self._bond.pub)
        except Exception as e:  # another version of bondpy, or the context is gone
            self._node.get_logger().debug(f"bond: {e}")


def form_bond(node: LifecycleNode) -> ManagerBond | None:
    """A bond for Nav2's lifecycle manager; None where bondpy is not installed."""
    try:
        from bondpy import bondpy
    except ImportError as e:
        node.get_logger().debug(
            f"no bond for a lifecycle manager ({e}): install ros-<distro>-bondpy, or set its "
            "bond_timeout to 0.0"
        )
        return None
    try:
        return ManagerBond(node, bondpy)
    except Exception as e:  # the node works without
        node.get_logger().warning(f"no bond for a lifecycle manager: {type(e).__name__}: {e}")
        return None
