"""`hashvpr engine`: build TensorRT engines, and say what an engine file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hashvpr_ros.cli.common import json_option, write_json
from hashvpr_ros.cli.outputs import PATH, TIMING_FILE
from hashvpr_ros.errors import EngineError


@click.group(name="engine")
def command() -> None:
    """Build TensorRT engines, and say what an engine file is."""


@command.command()
@click.argument("model", metavar="MODEL.onnx", type=PATH)
@click.argument("out", metavar="OUT.engine", type=PATH)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="TensorRT 11 takes it from the file instead.",
)
@click.option(
    "--workspace-mb",
    type=click.IntRange(1, 65536),
    default=1024,
    show_default=True,
    help="GPU memory that a layer's kernels may use for scratch.",
)
@click.option(
    "--timing-cache",
    type=TIMING_FILE,
    default=None,
    help="File of measured kernels, .timing or .cache: read if it fits, written back.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Batch size; the node needs 1.",
)
def build(
    model: Path,
    out: Path,
    precision: str,
    workspace_mb: int,
    timing_cache: Path | None,
    max_batch: int,
) -> None:
    """Build the engine OUT for the GPU of this machine; takes minutes.

    The engine runs only on this GPU type, with this version of TensorRT.

    \b
    hashvpr engine build vitb_322.onnx vitb_322.engine --timing-cache ~/.cache/vpr.timing
    """
    from hashvpr_ros.engine.tensorrt_build import BuildOptions
    from hashvpr_ros.engine.tensorrt_build import build as build_plan
    from hashvpr_ros.engine.tensorrt_file import write_engine

    if out.suffix.lower() not in (".engine", ".plan"):
        raise EngineError(f"{out}: the name must end in .engine, which says what runs the file")
    if not out.parent.is_dir():  # found out before the minutes, not after
        raise EngineError(f"{out.parent}: there is no such folder; make it first")
    header, plan = build_plan(
        model.expanduser(),
        BuildOptions(precision, workspace_mb, max_batch),
        timing_cache=timing_cache,
        progress=lambda sentence: click.echo(sentence, err=True),
    )
    header = write_engine(out, header, plan)
    click.echo(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {header.name} {header.fingerprint[:12]}, "
        f"TensorRT {header.tensorrt} {header.precision} on {header.gpu}, batches of 1 to "
        f"{header.max_batch}"
    )


@command.command()
@click.argument("path", metavar="FILE", type=PATH)
@json_option
def info(path: Path, json_path: Path | None) -> None:
    """Print the facts of an .onnx or .engine file; needs no GPU."""
    path = path.expanduser()
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        facts = _onnx_facts(path)
    elif suffix in (".engine", ".plan"):
        facts = _engine_facts(path)
    else:
        raise EngineError(f"{path}: the suffix must be .onnx, .engine or .plan")
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {_text(value)}")
    write_json(json_path, facts)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _onnx_facts(path: Path) -> dict[str, Any]:
    from hashvpr_ros.engine.base import runtime_errors
    from hashvpr_ros.engine.onnx_engine import model_info
    from hashvpr_ros.engine.onnx_file import read_onnx

    file = read_onnx(path)
    found = model_info(file)
    facts: dict[str, Any] = {
        "format": "ONNX",
        "name": found.name,
        "version": found.version,
        "fingerprint": found.fingerprint,
        "license": found.license,
        "height_px": found.height,
        "width_px": found.width,
        "feature_dim": found.feature_dim,
        "probability_curve": found.probability_curve,
        "file_bytes": len(file.content),
    }
    try:
        import onnx

        from hashvpr_ros.engine.tensorrt_operators import (
            cast_first,
            is_quantised,
            uint8_inside,
            unsupported_operators,
        )
    except ImportError:
        return facts
    with runtime_errors(path, "its operators cannot be listed", "export it again"):
        model = onnx.load_model_from_string(file.content)
        facts["operators"] = sorted({n.op_type for n in model.graph.node})
        facts["operators_tensorrt_8_lacks"] = unsupported_operators(model, major=8)
        facts["operators_tensorrt_10_lacks"] = unsupported_operators(model, major=10)
        facts["int8_that_tensorrt_refuses"] = is_quantised(model)
        facts["uint8_cast_is_moved_for_tensorrt"] = cast_first(model)
        facts["uint8_that_tensorrt_refuses"] = uint8_inside(model)
    return facts


def _engine_facts(path: Path) -> dict[str, Any]:
    from hashvpr_ros.engine.tensorrt_file import read_engine

    header, _ = read_engine(path)  # whole, so that damage is said
    return {
        "format": "TensorRT engine of hashvpr_ros",
        "name": header.name,
        "version": header.model_version,
        "fingerprint": header.fingerprint,
        "license": header.license,
        "height_px": header.height,
        "width_px": header.width,
        "feature_dim": header.feature_dim,
        "probability_curve": header.probability_curve,
        "file_bytes": path.stat().st_size,
        "tensorrt": header.tensorrt,
        "gpu": header.gpu,
        "compute_capability": header.compute_capability,
        "precision": header.precision,
        "max_batch": header.max_batch,
        "build_key": header.build_key,
    }
