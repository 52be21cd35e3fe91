"""Parameters `qos_overrides.…`, by which a user changes the QoS of a topic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.exceptions import ParameterException
from rclpy.qos_overriding_options import QoSOverridingOptions

from hashvpr_ros.errors import ConfigError


@contextmanager
def overridable(topic: str) -> Iterator[QoSOverridingOptions]:
    """Options for a publisher or subscription that is made within.

    rclpy writes overrides into the profile that it is given: make each anew.

    Raises:
        ConfigError: an override has a value that is none.
    """
    try:
        yield QoSOverridingOptions.with_default_policies()
    except (RuntimeError, ParameterException) as e:
        if "QoS override" in str(e):
            raise ConfigError(f"qos_overrides of {topic}: {e}") from None
        raise
