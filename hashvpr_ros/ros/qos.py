"""Parameters `qos_overrides.…`, by which a user changes the QoS of a topic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.exceptions import ParameterException
from rclpy.qos_overriding_options import QoSOverridingOptions

from hashvpr_ros.errors import ConfigError

# How rclpy says that a value is none, is of another type, or was refused by the middleware.
_SIGNS = ("QoS override", "qos_overrides", "topic QoS")


@contextmanager
def overridable(topic: str) -> Iterator[QoSOverridingOptions]:
    """Options for a publisher or subscription that is made within.

    rclpy writes overrides into the profile that it is given: make each anew.

    Raises:
        ConfigError: an override has a value that is none.
    """
    try:
        yield QoSOverridingOptions.with_default_policies()
    except (RuntimeError, TypeError, ParameterException) as e:
        reason = str(e).split(", at ")[0].split("\n")[0]  # without where in C it was found
        if isinstance(e, TypeError):  # a number that does not fit
            reason = "a value is out of range"
        elif reason.startswith("Failed to create"):
            reason += "; check them, as a depth must not be negative"
        elif not any(sign in reason for sign in _SIGNS):
            raise
        raise ConfigError(f"qos_overrides of {topic}: {reason}") from None
