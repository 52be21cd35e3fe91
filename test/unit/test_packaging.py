"""The package's descriptions agree with one another and with the tree."""

import re
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
