"""Starts vpr_node and takes it to the state active.

    ros2 launch hashvpr_ros vpr.launch.py image_topics:=/camera/image_raw map:=/tmp/office.vprmap

An argument that is not given leaves what the parameter file says; `--show-args` lists them.
"""

from pathlib import Path
from typing import List

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
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
    if drive:
        parameters["autostart"] = False  # not both: the second one's transitions would be refused
    node = LifecycleNode(
        package="hashvpr_ros",
        executable="vpr_node",
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[params_file, parameters],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )
    if not drive:
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(node), transition_id=transition
            )
        )

    # By events, which every distribution has; LifecycleTransition came after Humble.
    configure = OnProcessStart(
        target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)]
    )
    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
        handle_once=True,
    )
    return [RegisterEventHandler(configure), RegisterEventHandler(activate), node]


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
            "log_level", default_value="info", description="debug, info, warn, error or fatal"
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
