"""The program `vpr_node`: runs the node until SIGINT or SIGTERM, then writes the map and ends."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hashvpr_ros.errors import HashVprError
from hashvpr_ros.file_io import check_regular
from hashvpr_ros.ros.ending import Ending, leave

_USAGE = """usage: vpr_node [--help] [--ros-args ...]

Visual place recognition, as a lifecycle node. Its settings are ROS parameters:
  ros2 run hashvpr_ros vpr_node --ros-args -p mode:=slam -p autostart:=true
  ros2 run hashvpr_ros vpr_node --ros-args --params-file vpr.yaml -r image:=/camera/image_raw
`ros2 run hashvpr_ros hashvpr config` prints all parameters and explains them.
Without autostart it waits for `ros2 lifecycle set /vpr_node configure`, then `activate`."""

# Each of the node's groups of callbacks may take one; the services take up to 15.
_THREADS = 24
_WAIT_S = 0.5  # for a transition that is under way when the process is to end
_MOST_BYTES = 10_000_000  # of a file of parameters
# What helps where rcl refuses an argument, by what it says.
_REMEDIES = {
    "severity level": "give debug, info, warn, error or fatal",
    "of same type": "write all numbers of a list in one form, as in [0.0, 3.14]",
    "before ros__parameters": "put parameters under `/**:` and `ros__parameters:`, as "
    "`hashvpr config` prints them",
    "remap rule": "give FROM:=TO with names of topics, or __ns:=/NAME",
    "parameter override": "give NAME:=VALUE",
    "Unknown ROS argument": "see --help",
}


def main(args: list[str] | None = None) -> int:
    """Run the node. After it ran, the process is ended here.

    Returns:
        the process's exit code where the node did not run: 0 after --help, 2 where it cannot
        start. Otherwise the process ends with 0 after a signal, 1 after a fault.
    """
    args = sys.argv[1:] if args is None else args
    own = args[: args.index("--ros-args")] if "--ros-args" in args else args
    if "--help" in own or "-h" in own:
        print(_USAGE)
        return 0
    if own:
        return _refuse(f"{own[0]!r} is unknown; give ROS arguments after --ros-args, see --help")
    # First of all, as the imports take a while.
    ending = Ending()
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as e:
        return _refuse(f"rclpy is not installed ({e}): source a ROS 2 environment first")
    try:
        from hashvpr_ros.ros.log import log_library
        from hashvpr_ros.ros.rclpy_internals import LastingExecutor
        from hashvpr_ros.ros.vpr_node import VprNode
    except ImportError as e:
        return _refuse(
            f"{e}: build this package with colcon, source install/setup.bash, and install what "
            "its README lists"
        )
    # The thread that receives images would else hold the interpreter for 5 ms at a time, which
    # shows in the time of every stage of the worker.
    sys.setswitchinterval(0.001)
    try:
        for option, path in itertools.pairwise(args):
            if option == "--params-file":  # rcl would wait for a FIFO, deaf to all signals
                check_regular(path, _MOST_BYTES)
        ending.wait_for_node()
        with _quiet_rcl():
            # rclpy's own handlers would shut its context down at once; nothing could be said then.
            rclpy.init(args=["vpr_node", *args], signal_handler_options=SignalHandlerOptions.NO)
        node = VprNode()
    except HashVprError as e:
        rclpy.try_shutdown()
        return _refuse(str(e))
    except Exception as e:  # arguments that rcl refuses, a name that is none, and the like
        rclpy.try_shutdown()
        return _refuse(_reason(e))
    ending.watch_over(node)
    log_library(node.get_logger())
    executor = LastingExecutor(_THREADS, node.failures)
    executor.add_node(node)
    code = _run(node, executor, ending)
    rclpy.try_shutdown()
    leave(code)


def _refuse(reason: str) -> int:
    print(f"vpr_node: {reason}", file=sys.stderr)
    return 2


def _reason(error: Exception) -> str:
    """What rclpy says, in one line, without where in C it was found, and what helps."""
    text = " ".join(str(error).split())
    text = text.split(", at /")[0].removeprefix("failed to initialize rcl: ")
    if type(error).__name__ == "UnknownROSArgsError":
        text = f"Unknown ROS argument {text}"
    helps = [remedy for sign, remedy in _REMEDIES.items() if sign in text]
    reason = text[:500] or type(error).__name__
    return f"cannot start: {reason}; {helps[0] if helps else 'correct it, or see --help'}"


@contextmanager
def _quiet_rcl() -> Iterator[None]:
    """Let rcl not log what is said in one sentence here."""
    from rclpy.logging import LoggingSeverity, get_logger_level, set_logger_level

    set_logger_level("rcl", LoggingSeverity.FATAL)
    try:
        yield
    finally:
        if get_logger_level("rcl") == LoggingSeverity.FATAL:  # no argument has set it
            set_logger_level("rcl", LoggingSeverity.UNSET)


def _run(node: Any, executor: Any, ending: Ending) -> int:
    """Spin until a signal, then let the node write its map and free what it has.

    Returns:
        the process's exit code.
    """
    fault = False
    if node.autostart:
        _start_soon(node)
    else:
        node.get_logger().info(
            "unconfigured: waits for `ros2 lifecycle set "
            f"{node.get_fully_qualified_name()} configure`, then `activate`; or start it with "
            "autostart:=true"
        )

    def spin() -> None:
        nonlocal fault
        try:
            _spin(node, executor, ending)
        except BaseException as e:
            node.failures.report(e, doing="the executor")
            fault = True
        finally:
            ending.begin()

    thread = threading.Thread(target=spin, name="vpr_executor", daemon=True)
    thread.start()
    ending.wait()
    try:
        saved = _end(node, executor, thread)
    except Exception as e:
        node.failures.report(e, doing="the end of the node")
        saved = False
    return int(fault or not saved)


def _end(node: Any, executor: Any, thread: threading.Thread) -> bool:
    """End all that goes on; returns whether the map is saved."""
    if node.end_soon():
        # TensorRT 8.6 cannot be told to stop. Nothing is lost: no map is open yet, and engines
        # are written under another name first.
        node.get_logger().info("ends while an engine is built; it will be built at the next start")
    executor.shutdown(timeout_sec=0.0)
    thread.join(0.3)
    # rclpy (7.1) does not wait for callbacks, whatever it is told.
    if node.transition_lock.acquire(timeout=_WAIT_S):
        if node.state_label() in ("unconfigured", "inactive", "active"):
            node.trigger_shutdown()
        node.destroy_node()
        return not node.has_lost_keyframes
    return bool(node.save_now(_WAIT_S))


def _spin(node: Any, executor: Any, ending: Ending) -> None:
    from rclpy.exceptions import InvalidHandle
    from rclpy.executors import ExternalShutdownException

    while not ending.begun:
        try:
            executor.spin()
            return
        except InvalidHandle:
            # A transition destroys subscriptions and publishers in another thread than the one
            # that waits for their events, and rclpy (7.1) then raises from the wait. What was
            # destroyed is no longer among what is waited for.
            continue
        except ExternalShutdownException:
            return
        except Exception as e:
            if not executor.context.ok():
                raise  # for ever
            node.failures.report(e, doing="the executor")
            time.sleep(0.05)  # it may be raised again at once


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
                node.failures.report(e, doing="autostart")

    timer = node.create_timer(
        0.001, start, node.transition_group, clock=Clock(clock_type=ClockType.STEADY_TIME)
    )


if __name__ == "__main__":
    sys.exit(main())
