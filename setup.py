"""pip install of the library and the command `hashvpr`, for machines without ROS.

In a ROS workspace colcon builds by CMakeLists.txt and does not look here. The node is installed
too, and says what it misses when it is started without rclpy.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Requirement lines of a file, those it includes first."""
    found = []
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found += requirements(line[3:])
        elif line:
            found.append(line)
    return found


class BuildWithData(build_py):
    """Puts the model, the configuration and the interfaces inside the package."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "hashvpr_ros"
        for folder, pattern in (
            ("resource", "*.onnx"),
            ("config", "*.yaml"),
            ("config/train", "*.yaml"),
            ("interfaces", "*"),
        ):
            sources = [ROOT / "msg", ROOT / "srv"] if folder == "interfaces" else [ROOT / folder]
            for source in sources:
                sub = f"/{source.name}" if folder == "interfaces" else ""
                destination = target / f"{folder}{sub}"
                destination.mkdir(parents=True, exist_ok=True)
                for path in source.glob(pattern):
                    shutil.copy(path, destination)


version = re.search(r'__version__ = "(.+)"', (ROOT / "hashvpr_ros" / "__init__.py").read_text())
setup(
    name="hashvpr_ros",
    version=version.group(1),
    description="Visual place recognition for ROS 2: binary retrieval, float re-ranking",
    license="Apache-2.0",
    maintainer="hashvpr_ros maintainers",
    maintainer_email="hashvpr_ros@users.noreply.github.com",
    python_requires=">=3.10",
    packages=find_packages(include=["hashvpr_ros", "hashvpr_ros.*"]),
    package_data={"hashvpr_ros": ["**/*.j2", "py.typed"]},
    install_requires=requirements("base.txt"),
    extras_require={
        # The file pins the torch that the tests run with.
        "train": [r for r in requirements("train.txt") if not r.startswith("torch==")]
        + ["torch>=2.5"],
        "dev": requirements("dev.txt"),
    },
    entry_points={"console_scripts": ["hashvpr = hashvpr_ros.cli.main:main"]},
    cmdclass={"build_py": BuildWithData},
    zip_safe=False,
)
