"""Engines that were built for this machine, kept between runs.

A cached engine is used when it was made of the same .onnx for the same GPU, version of TensorRT,
precision and shape; else it is built again. Where the folder cannot be written, an engine is built
and used all the same, and built again the next time.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hashvpr_ros.engine import tensorrt_gpu
from hashvpr_ros.engine.base import EngineInfo
from hashvpr_ros.engine.onnx_engine import model_info
from hashvpr_ros.engine.onnx_file import read_onnx
from hashvpr_ros.engine.tensorrt_build import BuildOptions, build, build_key
from hashvpr_ros.engine.tensorrt_engine import TensorRtEngine
from hashvpr_ros.engine.tensorrt_file import read_engine, write_engine
from hashvpr_ros.engine.tensorrt_gpu import Gpu, GpuMemoryError
from hashvpr_ros.engine.tensorrt_progress import Progress, no_progress
from hashvpr_ros.errors import EngineError

_log = logging.getLogger(__name__)

_LOOK_S = 0.2


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/hashvpr_ros/engines`, or that in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative ones ignored.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "hashvpr_ros" / "engines"


def cached_engine(
    path: Path,
    options: BuildOptions,
    cache_dir: str | Path = "",
    progress: Progress = no_progress,
) -> TensorRtEngine:
    """The engine of an .onnx: from the cache, or built and put there.

    Of several processes that want the same one, one builds it and the others wait for it.

    Args:
        cache_dir: "" is `default_cache_dir()`.

    Raises:
        EngineError: no TensorRT or GPU, it cannot be built, or does not fit into the GPU's memory;
            not because of the cache.
    """
    model = read_onnx(path)
    info = model_info(model)
    gpu = tensorrt_gpu.require_gpu(str(path))
    key = build_key(info, model.content, gpu, options)
    folder = Path(cache_dir).expanduser() if str(cache_dir) else default_cache_dir()
    file = folder / f"{_plain(info.name)}-{info.fingerprint[:12]}-{key[:16]}.engine"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        _log.warning(
            "%s: cannot be made: %s; the engine is built now and again at each start, unless "
            "engine.cache_dir names another folder",
            folder,
            e.strerror,
        )
        return _build(path, options, None, None, progress)
    with _locked(file.with_suffix(".lock"), info, progress):
        found = _load(file, key)
        if found is not None:
            return found
        return _build(path, options, file, folder / _timing_cache_name(gpu), progress)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60] or "model"


def _timing_cache_name(gpu: Gpu) -> str:
    return f"{_plain(f'timing-{gpu.tensorrt}-{gpu.name}-{gpu.compute_capability}')}.cache"


def _load(file: Path, key: str) -> TensorRtEngine | None:
    if not os.path.lexists(file):
        return None
    try:
        header, plan = read_engine(file)
        if header.build_key != key:
            raise EngineError(f"{file}: is of another model, GPU, version or precision")
        return TensorRtEngine(header, plan, file)
    except GpuMemoryError:
        raise  # another one, minutes later, would not fit either
    except EngineError as e:
        _log.warning("the cached engine is built again: %s", str(e))
        return None


def _build(
    path: Path,
    options: BuildOptions,
    file: Path | None,
    timing_cache: Path | None,
    progress: Progress,
) -> TensorRtEngine:
    started_s = time.monotonic()
    header, plan = build(path, options, timing_cache=timing_cache, progress=progress)
    seconds = time.monotonic() - started_s
    _log.info("built the TensorRT engine of %s in %.0f s", header.name, seconds)
    if file is not None:
        try:
            header = write_engine(file, header, plan)
        except EngineError as e:
            _log.warning("the engine is not kept and will be built again: %s", str(e))
    return TensorRtEngine(header, plan, file or path)


@contextmanager
def _locked(lock: Path, info: EngineInfo, progress: Progress) -> Iterator[None]:
    """Hold a lock file, which ends with the process; without one where none can be made."""
    try:
        # Never removed: one who waits for it would lock a file that is no longer there.
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as e:
        _log.warning("%s: cannot be locked: %s; engines may be built twice", lock, e.strerror)
        yield
        return
    try:
        _wait_for(descriptor, lock, info, progress)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, lock: Path, info: EngineInfo, progress: Progress) -> None:
    started_s = last_s = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as e:  # as on some network file systems
            _log.warning("%s: cannot be locked: %s; engines may be built twice", lock, e.strerror)
            return
        now_s = time.monotonic()
        if not told or now_s - last_s >= 5.0:
            sentence = (
                f"waiting for another process that builds the TensorRT engine of {info.name}, "
                f"{now_s - started_s:.0f} s"
            )
            progress(sentence)  # first: it may refuse that this begins
            if not told:
                _log.info("%s", sentence)
            told, last_s = True, now_s
        time.sleep(_LOOK_S)
