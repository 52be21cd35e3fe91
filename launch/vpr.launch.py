"""Starts vpr_node and takes it to the state active.

    ros2 launch hashvpr_ros vpr.launch.py image_topics:=/camera/image_raw map:=/tmp/office.vprmap

An argument that is not given leaves what the parameter file says; `--show-args` lists them.
The launch ends with an error (exit code 1) where the node dies or cannot be configured.
"""

import asyncio
from pathlib import Path
from typing import List

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueCoroutine,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import Shutdown, matches_action
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import Transition

# Argument: (parameter, type, description). An empty value leaves the parameter file's.
OVERRIDES = {
    "map": ("map.path", str, "file of the map"),
    "engine": ("engine.path", str, "model file, .onnx or .engine"),
    "mode": ("mode", str, "mapping, localization or slam"),
    "image_topics": ("input.image_topics", List[str], "image topics, separated by commas"),
    "compressed": ("input.compressed", bool, "true: subscribe to <topic>/compressed"),
    "use_sim_time": ("use_sim_time", bool, "true: time comes from /clock, as with ros2 bag play"),
}


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"{name} must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


def _overrides(context: LaunchContext) -> dict:
    parameters = {}
    for argument, (parameter, kind, _) in OVERRIDES.items():
        text = LaunchConfiguration(argument).perform(context).strip()
        if not text:
            continue
        if kind is bool:
            value = _boolean(argument, text)
        elif kind is str:
            value = text
        else:
            value = [topic.strip() for topic in text.split(",") if topic.strip()]
        # Without the type, launch would make a number of a map called 5.
        parameters[parameter] = ParameterValue(value, value_type=kind)
    return parameters


def _node(context: LaunchContext) -> list:
    params_file = LaunchConfiguration("params_file").perform(context)
    if not Path(params_file).is_file():
        raise FileNotFoundError(f"params_file: there is no file {params_file}")
    parameters = _overrides(context)
    drive = _boolean("autostart", LaunchConfiguration("autostart").perform(context))
    respawn = _boolean("respawn", LaunchConfiguration("respawn").perform(context))
    # One of them drives the node. With respawn it is the node itself: the launch would call the
    # services of the dead process, which are known for some seconds after its end.
    parameters["autostart"] = drive and respawn
    node = LifecycleNode(
        package="hashvpr_ros",
        executable="vpr_node",
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[params_file, parameters],
        arguments=["--ros-args", *_log_levels(LaunchConfiguration("log_level").perform(context))],
        output="screen",
        emulate_tty=True,
        respawn=respawn,
        respawn_delay=2.0,
    )
    handlers = [] if respawn else [OnProcessExit(target_action=node, on_exit=_on_exit)]
    if drive and not respawn:
        handlers += _bring_up(node)
    return [*(RegisterEventHandler(handler) for handler in handlers), node]


def _log_levels(level: str) -> list:
    """ROS's own loggers say some hundred lines a second at debug, in which ours would be lost."""
    arguments = ["--log-level", level]
    if level.lower() == "debug":
        for name in ("rcl", "rmw_fastrtps_cpp", "rmw_cyclonedds_cpp", "rmw_zenoh_cpp"):
            arguments += ["--log-level", f"{name}:=info"]
    return arguments


def _on_exit(event: ProcessExited, context: LaunchContext) -> list:
    if context.is_shutdown:
        return []
    if event.returncode:
        return _fail(f"{event.process_name} ended with exit code {event.returncode}")
    return [EmitEvent(event=Shutdown(reason=f"{event.process_name} has ended"))]


def _fail(reason: str) -> list:
    """End the launch with exit code 1, which only an exception does."""

    def fail(context: LaunchContext) -> None:
        raise RuntimeError(f"{reason}; its log above says why")

    return [OpaqueFunction(function=fail)]


def _bring_up(node: LifecycleNode) -> list:
    """Take the node to active, and end the launch where that fails.

    Each once, so that what is done by hand later is left alone. By events, which every
    distribution has; LifecycleTransition came after Humble.
    """
    pending = [True]

    def change(transition: int) -> ChangeState:
        return ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)

    async def configure(context: LaunchContext) -> None:
        # Only when it can be: launch cannot end in good order while it waits for a service of a
        # process that has died. The second service is made after the parameters were accepted.
        services = {f"{node.node_name}/{name}" for name in ("change_state", "inspect_map")}
        while not services <= set(dict(get_ros_node(context).get_service_names_and_types())):
            await asyncio.sleep(0.1)
            if context.is_shutdown:
                return
        await context.emit_event(change(Transition.TRANSITION_CONFIGURE))

    def done(context: LaunchContext) -> None:
        pending[0] = False

    def fail(reason: str) -> OpaqueFunction:
        return OpaqueFunction(function=lambda context: _fail(reason) if pending[0] else [])

    activate = EmitEvent(event=change(Transition.TRANSITION_ACTIVATE))
    unconfigured = fail("vpr_node cannot be configured")
    return [
        OnProcessStart(target_action=node, on_start=[OpaqueCoroutine(coroutine=configure)]),
        _on_transition(node, "configuring", "inactive", activate),
        _on_transition(node, "configuring", "unconfigured", unconfigured),
        _on_transition(node, "errorprocessing", "unconfigured", unconfigured),
        _on_transition(node, "activating", "active", OpaqueFunction(function=done)),
        _on_transition(node, "activating", "inactive", fail("vpr_node cannot be activated")),
    ]


def _on_transition(
    node: LifecycleNode, start: str, goal: str, action: Action
) -> OnStateTransition:
    return OnStateTransition(
        target_lifecycle_node=node,
        start_state=start,
        goal_state=goal,
        entities=[action],
        handle_once=True,
    )


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` asks for."""
    share = Path(get_package_share_directory("hashvpr_ros"))
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument("name", default_value="vpr_node", description="name of the node"),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(share / "config" / "vpr.yaml"),
            description="parameter file; config/vpr.yaml lists every parameter",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            description="false: leave the node unconfigured, for a lifecycle manager",
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="false",
            description="true: start the node again when it dies. The launch goes on then, also "
            "where the node cannot be configured",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            description="debug (every decision), info, warn, error or fatal",
        ),
    ]
    for name, (parameter, _, description) in OVERRIDES.items():
        arguments.append(
            DeclareLaunchArgument(
                name,
                default_value="",
                description=f"{description} ({parameter}; empty: as in params_file)",
            )
        )
    return LaunchDescription([*arguments, OpaqueFunction(function=_node)])
