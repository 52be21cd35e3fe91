"""Visual place recognition for ROS 2: binary retrieval, float re-ranking, loop closures."""

import pkgutil

# Run from a checkout, the source tree shadows the installed package that holds the generated
# messages of the same name: extending the path lets `hashvpr_ros.msg` be found there all the same.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
