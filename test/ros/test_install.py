"""What others build on: a C++ consumer, `ros2 run`'s executables, the shared files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = """
cmake_minimum_required(VERSION 3.16)
project(consumer)
find_package(hashvpr_ros REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer ${hashvpr_ros_TARGETS})
"""
MAIN = """
#include <cstdio>
#include <hashvpr_ros/msg/loop_closure.hpp>
#include <hashvpr_ros/msg/place_hypotheses.hpp>
#include <hashvpr_ros/srv/recognize.hpp>
int main() {
  hashvpr_ros::msg::LoopClosure closure;
  closure.match_keyframe_id = 7;
  hashvpr_ros::srv::Recognize::Response response;
  response.hypotheses.reason = hashvpr_ros::msg::PlaceHypotheses::REASON_ACCEPTED;
  std::printf("%d %s\\n", closure.match_keyframe_id, response.hypotheses.reason.c_str());
}
"""


def installed(prefix: str = "") -> Path:
    """The install prefix of this package."""
    for folder in [prefix, *os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]:
        if folder and (Path(folder) / "share" / "hashvpr_ros" / "package.xml").exists():
            return Path(folder)
    pytest.fail("hashvpr_ros is not in AMENT_PREFIX_PATH")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_cpp_consumer_finds_the_messages(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "main.cpp").write_text(MAIN)
    prefixes = os.environ["AMENT_PREFIX_PATH"].replace(os.pathsep, ";")
    run("cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefixes}", cwd=tmp_path)
    run("cmake", "--build", "build", cwd=tmp_path)
    assert run("build/consumer", cwd=tmp_path) == "7 accepted\n"


@pytest.mark.parametrize("name", ["hashvpr", "vpr_node"])
def test_ros2_run_finds_the_executables(name, tmp_path):
    path = installed() / "lib" / "hashvpr_ros" / name
    assert os.access(path, os.X_OK)
    if name == "hashvpr":
        assert "evaluate" in run(sys.executable, path, "--help", cwd=tmp_path)


def test_the_shared_files_are_installed():
    share = installed() / "share" / "hashvpr_ros"
    for file in (
        "launch/vpr.launch.py", "config/vpr.yaml", "config/fastdds.xml",
        "resource/hashvpr_lite.onnx", "msg/LoopClosure.msg", "package.xml",
    ):  # fmt: skip
        assert (share / file).is_file(), file


def test_the_installed_package_is_whole_without_the_source_tree(tmp_path):
    """From another folder: our modules, the generated ones and the model, all of the install."""
    code = (
        "import hashvpr_ros, hashvpr_ros.msg, hashvpr_ros.srv\n"
        "from hashvpr_ros.engine.factory import default_model_path\n"
        "from hashvpr_ros.datasets.bag import typestore\n"
        "typestore()\n"
        "print(hashvpr_ros.__version__, default_model_path())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    prefix = installed()
    sites = [str(p) for p in prefix.glob("lib*/python3*/site-packages")]
    environment["PYTHONPATH"] = os.pathsep.join(sites)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT / "resource") in done.stdout or str(prefix) in done.stdout


@pytest.mark.slow
def test_a_symlinked_build_works_too(tmp_path):
    """Minutes: builds everything again."""
    run(
        "colcon", "--log-base", tmp_path / "log", "build", "--symlink-install",
        "--build-base", tmp_path / "build", "--install-base", tmp_path / "install",
        "--cmake-args", "-DBUILD_TESTING=OFF", cwd=ROOT,
    )  # fmt: skip
    prefix = tmp_path / "install" / "hashvpr_ros"
    (site,) = prefix.glob("lib/python3*/site-packages")
    assert (site / "hashvpr_ros" / "types.py").is_symlink()
    code = "import hashvpr_ros.msg, hashvpr_ros.types; print(hashvpr_ros.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
