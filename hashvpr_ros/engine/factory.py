"""Which engine runs a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.errors import EngineError

_DEFAULT_MODEL = "hashvpr_lite.onnx"


def _onnx(path: Path, providers: Sequence[str], threads: int) -> DescriptorEngine:
    from hashvpr_ros.engine.onnx_engine import OnnxEngine

    return OnnxEngine(path, providers, threads)


def _tensorrt(path: Path, providers: Sequence[str], threads: int) -> DescriptorEngine:
    raise EngineError(
        f"{path}: TensorRT engines are not supported by this version; give the .onnx file instead"
    )


_BY_SUFFIX: dict[str, Callable[[Path, Sequence[str], int], DescriptorEngine]] = {
    ".onnx": _onnx,
    ".engine": _tensorrt,
    ".plan": _tensorrt,
}


def default_model_path() -> Path:
    """Where the lite model lies: in a source tree, a pip installation or a ROS workspace.

    Raises:
        EngineError: in none of them.
    """
    package = Path(__file__).resolve().parent.parent
    # Beside the package in a source tree (symlinked builds resolve to it); inside it after pip.
    places = [package.parent / "resource", package / "resource"]
    # <prefix>/lib/python3.X/site-packages/hashvpr_ros in a ROS workspace; Debian's layout differs.
    places += [p / "share" / "hashvpr_ros" / "resource" for p in package.parents[:6]]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    places += [Path(p) / "share" / "hashvpr_ros" / "resource" for p in prefixes if p]
    for place in places:
        if (place / _DEFAULT_MODEL).is_file():
            return place / _DEFAULT_MODEL
    raise EngineError(
        f"the lite model {_DEFAULT_MODEL} was not found in {places[0]} or the installation; "
        "install the package again or set engine.path"
    )


def create_engine(
    path: str | Path = "", *, providers: Sequence[str] = (), threads: int = 0
) -> DescriptorEngine:
    """Load the engine that runs a file.

    Args:
        path: .onnx, .engine or .plan; "" is the lite model of the package.
        providers, threads: see `OnnxEngine`.

    Raises:
        EngineError: unknown suffix, or the file cannot be used.
    """
    path = Path(path).expanduser() if str(path) else default_model_path()
    make = _BY_SUFFIX.get(path.suffix.lower())
    if make is None:
        raise EngineError(
            f"{path}: the suffix must be one of {', '.join(_BY_SUFFIX)} to say what runs the file"
        )
    return make(path, providers, threads)
