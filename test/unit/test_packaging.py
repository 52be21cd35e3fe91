"""The package's descriptions agree with one another and with the tree."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import hashvpr_ros

ROOT = Path(__file__).resolve().parents[2]
XML = ElementTree.parse(ROOT / "package.xml").getroot()


def test_one_version_everywhere():
    assert XML.findtext("version") == hashvpr_ros.__version__
    assert hashvpr_ros.__version__ in (ROOT / "CHANGELOG.rst").read_text()


def test_no_subpackage_has_the_name_of_a_generated_one():
    # rosidl installs msg, srv and action into the package of the same name, over ours.
    for name in ("msg", "srv", "action"):
        assert not (ROOT / "hashvpr_ros" / name).exists()
        assert not (ROOT / "hashvpr_ros" / f"{name}.py").exists()


def test_package_xml_is_filled_in():
    assert XML.get("format") == "3"
    assert XML.findtext("license") == "Apache-2.0"
    assert XML.find("maintainer").get("email")
    assert (ROOT / "resource" / "hashvpr_ros").exists()


def test_every_message_package_that_is_imported_is_depended_on():
    imported = set()
    for path in (ROOT / "hashvpr_ros" / "ros").glob("*.py"):
        imported |= set(
            re.findall(r"^from (\w+_msgs|\w+_interfaces|rclpy)\b", path.read_text(), re.M)
        )
    declared = {e.text for e in XML if e.tag.endswith("depend")}
    assert imported <= declared, imported - declared


def test_requirements_and_cmake_name_what_is_there():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for script in (ROOT / "scripts").glob("[!.]*"):
        if script.is_file() and not script.suffix:
            assert f"scripts/{script.name}" in cmake, f"{script.name} is not installed"


def test_the_model_is_small():
    assert (ROOT / "resource" / "hashvpr_lite.onnx").stat().st_size <= 20e6


def test_no_test_module_skips_itself_while_it_is_imported():
    """The pytest plugin of launch_testing imports the modules of a folder, and then a module that
    skips itself takes the whole folder along: a mark skips that module's tests only."""
    skips = ("pytest.importorskip(", "allow_module_level=True")
    for path in (ROOT / "test").rglob("test_*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            at_module_level = not line.startswith(" ") or "allow_module_level" in line
            if path != Path(__file__) and at_module_level:
                assert not any(s in line for s in skips), f"{path.name}:{number}"


def test_pytest_runs_where_the_plugins_of_launch_testing_are_installed(tmp_path):
    """Every pytest loads them where ROS is installed. Humble's hook has an argument that pytest no
    longer has, which ends pytest before any test runs. Doubles with that hook stand for them."""
    (tmp_path / "double_of_a_plugin.py").write_text(
        "def pytest_pycollect_makemodule(path, parent):\n    raise AssertionError('was loaded')\n"
    )
    for plugin in ("launch_testing", "launch_ros", "launch_pytest"):
        info = tmp_path / f"{plugin}_double-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {plugin}-double\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[pytest11]\n{plugin} = double_of_a_plugin\n")
    environment = dict(os.environ, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-m", "pytest", "--collect-only", __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_one_version_everywhere" in done.stdout
