"""What the library logs, in the node's log: console, file and /rosout."""

from __future__ import annotations

import logging
from typing import Any

LIBRARY = "hashvpr_ros"


class RosHandler(logging.Handler):
    """Hands records on to a ROS logger.

    Args:
        ros: what `node.get_logger()` gives.
    """

    def __init__(self, ros: Any) -> None:
        super().__init__()
        self._ros = ros

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; what is not to be logged is no reason to fail."""
        try:
            text = record.getMessage()
            # rclpy wants a line of its own for each severity.
            if record.levelno >= logging.ERROR:
                self._ros.error(text)
            elif record.levelno >= logging.WARNING:
                self._ros.warning(text)
            elif record.levelno >= logging.INFO:
                self._ros.info(text)
            else:
                self._ros.debug(text)
        except Exception:  # also after the context's end
            self.handleError(record)


def log_library(ros: Any) -> None:
    """Let this process's library log to a ROS logger, whose level decides what is shown."""
    logger = logging.getLogger(LIBRARY)
    logger.addHandler(RosHandler(ros))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
