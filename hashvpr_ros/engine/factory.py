"""Which engine runs a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hashvpr_ros.config import EngineConfig
from hashvpr_ros.engine.base import DescriptorEngine
from hashvpr_ros.errors import EngineError

_log = logging.getLogger(__name__)

_DEFAULT_MODEL = "hashvpr_lite.onnx"


def _onnx(path: Path, providers: Sequence[str], threads: int) -> DescriptorEngine:
    from hashvpr_ros.engine.onnx_engine import OnnxEngine

    return OnnxEngine(path, providers, threads)


def _tensorrt(path: Path, providers: Sequence[str], threads: int) -> DescriptorEngine:
    from hashvpr_ros.engine.tensorrt_engine import TensorRtEngine

    return TensorRtEngine.open(path)


def _torch(path: Path, providers: Sequence[str], threads: int) -> DescriptorEngine:
    try:
        from hashvpr_ros.engine.torch_engine import TorchEngine
    except ImportError as e:
        raise EngineError(
            f"{path}: a checkpoint needs {e.name}, which is not installed; pip install "
            "'hashvpr_ros[train]', or export it where that is (`hashvpr export`)"
        ) from e
    return TorchEngine(path, threads=threads)


_BY_SUFFIX: dict[str, Callable[[Path, Sequence[str], int], DescriptorEngine]] = {
    ".onnx": _onnx,
    ".engine": _tensorrt,
    ".plan": _tensorrt,
    ".pth": _torch,
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
        path: .onnx, .engine, .plan or .pth; "" is the lite model of the package.
        providers, threads: see `OnnxEngine`.

    Raises:
        EngineError: unknown suffix, or the file cannot be used.
    """
    path = Path(os.path.expanduser(path)) if str(path) else default_model_path()
    make = _BY_SUFFIX.get(path.suffix.lower())
    if make is None:
        raise EngineError(
            f"{path}: the suffix must be one of {', '.join(_BY_SUFFIX)} to say what runs the file"
        )
    return make(path, providers, threads)


def open_engine(
    config: EngineConfig, progress: Callable[[str], None] = lambda sentence: None
) -> DescriptorEngine:
    """Load the engine of a configuration, warmed up; an .onnx may run by TensorRT.

    Args:
        config: its `tensorrt` says whether an .onnx is built for the GPU: "auto" where tensorrt,
            pycuda and a GPU are there and no `providers` are chosen, and by ONNX Runtime where
            that fails; "require" by TensorRT alone; "off" never.
        progress: told every few seconds what a build does, which takes minutes; from any thread.

    Raises:
        EngineError: unknown suffix, the file cannot be used, or TensorRT is required and fails.
    """
    path = Path(os.path.expanduser(config.path)) if config.path else default_model_path()
    if path.suffix.lower() == ".onnx" and _wants_tensorrt(config, path):
        from hashvpr_ros.engine.tensorrt_build import BuildOptions
        from hashvpr_ros.engine.tensorrt_cache import cached_engine

        options = BuildOptions(config.precision, config.workspace_mb)
        engine = None
        try:
            engine = cached_engine(path, options, config.cache_dir, progress)
            engine.warm_up()  # one that fails at its first image is as good as none
            return engine
        except EngineError as e:
            if engine is not None:
                engine.close()
            if config.tensorrt == "require":
                raise
            _log.warning("runs by ONNX Runtime instead of TensorRT: %s", str(e))
    plain = create_engine(path, providers=config.providers, threads=config.threads)
    plain.warm_up()
    return plain


def _wants_tensorrt(config: EngineConfig, path: Path) -> bool:
    if config.tensorrt != "auto":
        return config.tensorrt == "require"
    if config.providers:
        return False
    from hashvpr_ros.engine.tensorrt_gpu import why_not

    reason = why_not()
    if reason:
        # Most machines have none, and nobody asked for it.
        _log.debug("%s runs by ONNX Runtime: %s", path.name, reason)
    return not reason
