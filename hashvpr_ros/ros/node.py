"""The program `vpr_node`: runs the node until SIGINT or SIGTERM, then writes the map and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from hashvpr_ros.errors import HashVprError

# A launch that is interrupted passes the signal on to nodes that have it already, as members of
# the terminal's process group: what comes so soon is no second wish.
_IMPATIENT_S = 3.0


def main(args: list[str] | None = None) -> int:
    """Run the node.

    Returns:
        the process's exit code: 0 after a signal, 2 where it cannot start, 1 after a fault.
    """
    try:
        import rclpy
        from rclpy.exceptions import InvalidHandle
        from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
    except ImportError as e:
        return _refuse(f"rclpy is not installed ({e}): source a ROS 2 environment first")
    try:
        from hashvpr_ros.ros.log import log_library
        from hashvpr_ros.ros.vpr_node import VprNode
    except ImportError as e:
        return _refuse(
            f"{e}: build this package with colcon, source install/setup.bash, and install what "
            "its README lists"
        )
    # The thread that receives images would else hold the interpreter for 5 ms at a time, which
    # shows in the time of every stage of the worker.
    sys.setswitchinterval(0.001)
    # rclpy's own handlers would shut its context down at once, and nothing could be said after.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = VprNode()
        except HashVprError as e:
            return _refuse(str(e))
        log_library(node.get_logger())
        # Not fewer: services that wait for the worker each hold a thread.
        executor = MultiThreadedExecutor(num_threads=8)
        executor.add_node(node)
        return _run(node, executor, ExternalShutdownException, InvalidHandle)
    finally:
        rclpy.try_shutdown()


def _refuse(reason: str) -> int:
    print(f"vpr_node: {reason}", file=sys.stderr)
    return 2


def _run(node: Any, executor: Any, shut_down: type[Exception], destroyed: type[Exception]) -> int:
    stop = threading.Event()
    faults: list[BaseException] = []
    asked_s: list[float] = []

    def on_signal(*_: object) -> None:
        if not asked_s:
            asked_s.append(time.monotonic())
            stop.set()
        elif time.monotonic() - asked_s[0] > _IMPATIENT_S:
            raise KeyboardInterrupt  # asked once more: at once

    def spin() -> None:
        try:
            while not stop.is_set():
                try:
                    executor.spin()
                    return
                except destroyed:
                    # A transition destroys subscriptions and publishers in another thread than
                    # the one that waits for their events, and rclpy (7.1) then raises from the
                    # wait. What was destroyed is no longer among what is waited for.
                    continue
        except shut_down:
            pass
        except BaseException as e:
            faults.append(e)
        finally:
            stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if node.autostart:
        _start_soon(node)
    thread = threading.Thread(target=spin, name="vpr_executor", daemon=True)
    thread.start()
    try:
        # A wait without a timeout cannot be interrupted by a signal on every platform.
        while not stop.wait(1.0):
            pass
    finally:
        if node.end_soon():
            _leave_a_build(node)
        executor.shutdown(timeout_sec=10.0)
        thread.join(timeout=10.0)
    # rclpy (7.1) does not wait for callbacks, whatever it is told.
    while not node.transition_lock.acquire(timeout=1.0):
        pass
    if node.state_label() in ("unconfigured", "inactive", "active"):
        node.trigger_shutdown()
    node.destroy_node()
    # All is written. Python itself would die of a signal that comes while it tidies up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if faults:
        print(f"vpr_node: {type(faults[0]).__name__}: {faults[0]}", file=sys.stderr)
        return 1
    return 0


def _leave_a_build(node: Any) -> NoReturn:
    """End the process at once, instead of the minutes that a build of an engine takes.

    TensorRT 8.6 cannot be told to stop, and Python would wait for its thread. Nothing is lost: no
    map is open yet, and engines are written under another name first.
    """
    node.get_logger().info("ends while an engine is built; it will be built at the next start")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _start_soon(node: Any) -> None:
    """Configure and activate from the executor, in the group of the lifecycle services.

    By steady time: the node's own may be simulated and stand still.
    """

    from rclpy.clock import Clock, ClockType

    def start() -> None:
        timer.cancel()
        with node.transition_lock:
            try:
                if node.state_label() == "unconfigured":
                    node.trigger_configure()
                if node.state_label() == "inactive":
                    node.trigger_activate()
            except Exception as e:
                node.get_logger().error(f"autostart: {e}")

    timer = node.create_timer(
        0.001, start, node.transition_group, clock=Clock(clock_type=ClockType.STEADY_TIME)
    )


if __name__ == "__main__":
    sys.exit(main())
