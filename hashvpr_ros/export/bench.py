"""PyTorch and the exported graphs of one network, timed in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from hashvpr_ros.errors import EngineError
from hashvpr_ros.export.onnx import Metadata, export_backbone, export_lite0, export_onnx
from hashvpr_ros.model.graph import EngineGraph
from hashvpr_ros.model.lite import LiteNetwork

_WARM_UP = 2


def bench_export(
    network: nn.Module,
    size: tuple[int, int],
    images: Sequence[NDArray[np.uint8]],
    folder: Path,
    *,
    batches: Sequence[int],
    threads: int,
    repeats: int,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    """Milliseconds a batch of the PyTorch module and of its fp32 and int8 files.

    Args:
        network: with both branches.
        size: height and width in pixels.
        images: uint8 [H, W, 3] each, for calibration, comparison and timing.
        folder: for the files.
        repeats: timed rounds, after two that are not; in each the three take turns.
        progress: called with 1 after each round.

    Returns:
        rows: batch, and median and p95 of torch, fp32, int8 and, at fp32, the frozen backbone;
        for the lite network also of EfficientNet-Lite0 up to block 13 (lite0). fp32, int8: how
        near each is. An int8 that differs too much has no times.
    """
    torch.set_num_threads(threads)
    graph = EngineGraph(network.eval())
    result: dict[str, Any] = {"rows": []}
    sessions = {}
    for precision in ("fp32", "int8"):
        path = folder / f"{precision}.onnx"
        try:
            report = export_onnx(
                network, path, size, Metadata("bench"), precision=precision, images=images
            )
        except EngineError as e:
            if precision == "fp32":
                raise
            result[precision] = {"refused": str(e)}  # what is not fit to be used is not timed
            continue
        result[precision] = {k: v for k, v in asdict(report).items() if k != "path"}
        sessions[precision] = _session(path, threads)
    backbone = folder / "backbone.onnx"
    export_backbone(network, backbone, size)
    sessions["backbone"] = _session(backbone, threads)
    if isinstance(network, LiteNetwork):
        export_lite0(network, folder / "lite0.onnx", size)
        sessions["lite0"] = _session(folder / "lite0.onnx", threads)
    for batch in batches:
        pixels = np.stack([images[i % len(images)] for i in range(batch)])
        tensor = torch.from_numpy(pixels)

        def run_torch(tensor: torch.Tensor = tensor) -> None:
            with torch.inference_mode():
                graph(tensor)

        def run(precision: str, pixels: NDArray[np.uint8] = pixels) -> None:
            sessions[precision].run(None, {"images": pixels})

        sides: dict[str, Callable[[], None]] = {"torch": run_torch}
        sides |= {name: partial(run, name) for name in sessions}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(_WARM_UP + repeats):
            for name, call in sides.items():
                start = time.perf_counter()
                call()
                if round_ >= _WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - start))
            if round_ >= _WARM_UP:
                progress(1)
        row: dict[str, Any] = {"batch": batch}
        for name, values in times.items():
            median, p95 = np.percentile(values, [50, 95])
            row[name] = {"median": round(float(median), 2), "p95": round(float(p95), 2)}
        result["rows"].append(row)
    return result


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads of one runtime that spin take the cores from the next to be timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
