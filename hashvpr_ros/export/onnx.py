"""A checkpoint to an engine file: trace, convert, write the metadata, check, move into place.

Nothing is left behind where a check fails. `onnx.checker` and shape inference go over every file,
and its outputs are compared with those of the PyTorch module before any folding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashvpr_ros.engine.onnx_file import with_digest
from hashvpr_ros.errors import ConfigError, EngineError
from hashvpr_ros.export import precision as conversion
from hashvpr_ros.export.folding import fold
from hashvpr_ros.file_io import replacing
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite
from hashvpr_ros.model.graph import EngineGraph, Normalise, fingerprint

OPSET = 17  # the first with LayerNormalization, which TensorRT 8.6 runs without overflow at fp16
PRECISIONS = ("fp32", "fp16", "int8")
# Smallest cosine of features and share of equal bits that an export must keep.
_LEAST = {"fp32": (0.999999, 0.999), "fp16": (0.999, 0.99), "int8": (0.95, 0.97)}
_LARGEST_ERROR = 1e-4  # of a feature's element, at fp32
_PROBES = 4  # images of the check where the batch is free
_SURE = 1e-4  # a bit may flip at fp32 where its logit is nearer to zero


@dataclass(frozen=True)
class Metadata:
    """What the file says of itself, besides size and fingerprint."""

    name: str
    version: str = "1"
    license: str = "not stated"
    probability_curve: tuple[float, float] | None = None  # see engine.base.EngineInfo


@dataclass(frozen=True)
class ExportReport:
    """How near the written file is to the PyTorch module."""

    path: Path
    precision: str
    fingerprint: str
    megabytes: float
    cosine: float  # least, of the features of one image
    bits_equal: float  # share of all bits
    largest_error: float  # of a feature's element
    images: int = 0
    operators: list[str] = field(default_factory=list)


def export_onnx(
    network: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    metadata: Metadata,
    *,
    precision: str = "fp32",
    batch: int = 0,
    images: Sequence[NDArray[np.uint8]] = (),
) -> ExportReport:
    """Write the engine's graph of a network.

    Args:
        network: with both branches, in evaluation.
        path: of the .onnx to write; replaced only by a file that passed.
        size: height and width in pixels.
        precision: fp32; fp16 with LayerNorm, softmax and pooling in float32; or int8.
        batch: images at a time; 0: any number.
        images: uint8 [H, W, 3] each, for the calibration of int8 and for the check. At least 12
            for int8, of which the last 4 (or a whole batch) are for the check alone; without any
            the check draws synthetic ones.

    Raises:
        CheckpointError: the network lacks a branch.
        ConfigError: an argument is out of range.
        EngineError: the graph disagrees with PyTorch, or cannot be written.
    """
    path = Path(path)
    _check_arguments(path, precision, batch, images)
    height, width = size
    reference = EngineGraph(network.eval())
    with replacing(path, error=EngineError) as temporary:
        graph = EngineGraph(fold(network, height, width))
        _trace(graph, temporary, size, batch, graph.outputs)
        model = onnx.load(str(temporary))
        _say_shapes(model, graph, size)
        if precision == "fp32":
            conversion.shrink(model)
        elif precision == "fp16":
            model = conversion.to_fp16(model)
        elif precision == "int8":
            # Those that calibrate would be too kind a test: the last are kept for it.
            model = conversion.to_int8(temporary, images[: -(batch or _PROBES)], batch)
        # Two calibrations of one network give codes that differ.
        constants = conversion.constants(model) if precision == "int8" else None
        mark = fingerprint(network, height, width, precision, constants)
        _describe(model, metadata, mark, precision)
        onnx.checker.check_model(model, full_check=True)
        temporary.write_bytes(with_digest(model.SerializeToString(deterministic=True)))
        probe = _probe(images, size, batch)
        cosine, bits, error = _compare(reference, temporary, probe, precision)
        least_cosine, least_bits = _LEAST[precision]
        if not (cosine >= least_cosine and bits >= least_bits) or (
            precision == "fp32" and error > _LARGEST_ERROR
        ):
            raise EngineError(
                f"{path}: not written, for the exported graph differs from PyTorch: cosine "
                f"{cosine:.6f} (at least {least_cosine}), {100 * bits:.2f} % of bits equal (at "
                f"least {100 * least_bits:g}), largest difference {error:.2g}; export with a "
                "higher precision"
            )
    return ExportReport(
        path,
        precision,
        mark,
        path.stat().st_size / 1e6,
        cosine,
        bits,
        error,
        len(probe),
        sorted({node.op_type for node in model.graph.node}),
    )


def _check_arguments(
    path: Path, precision: str, batch: int, images: Sequence[NDArray[np.uint8]]
) -> None:
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: the engine file must end in .onnx")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it or give another path")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if not 0 <= batch <= 256:
        raise ConfigError(f"batch must be from 1 to 256, or 0 for any number, not {batch}")
    least = (batch or _PROBES) + max(batch, conversion.LEAST_IMAGES)
    if precision == "int8" and len(images) < least:
        raise ConfigError(
            f"int8 needs at least {least} images to calibrate and to check, not "
            f"{len(images)}; give a folder of images from where the robot drives (--calibration)"
        )


class _Frozen(nn.Module):
    """uint8 [N, H, W, 3] to what the backbone alone says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.graph = EngineGraph(network)

    def forward(self, images: Tensor) -> Tensor:
        return self.graph.network.frozen(self.graph.normalise(images))


def export_backbone(network: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Write the frozen backbone alone, for benchmarks to stand beside; see `export_onnx`."""
    _trace(_Frozen(fold(network, *size)), path, size, 0, ("frozen",))


class _Lite0(nn.Module):
    """uint8 [N, H, W, 3] to EfficientNet-Lite0's block 13, with random weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalise = Normalise(network)
        self.backbone = EfficientNetLite(0, (13,))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.backbone(self.normalise(images))[0]
        return output


def export_lite0(network: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Write EfficientNet-Lite0 up to block 13, the reference for the time of the lite model.

    Args:
        network: whose pixels it takes.
    """
    _trace(_Lite0(network), path, size, 0, ("frozen",))


def _trace(
    graph: nn.Module,
    path: Path,
    size: tuple[int, int],
    batch: int,
    outputs: Sequence[str],
) -> None:
    example = torch.zeros(batch or 2, *size, 3, dtype=torch.uint8)
    axes = {} if batch else {name: {0: "N"} for name in ("images", *outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer notes that shapes become constants: for one size of images they are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes=axes,
        )


def _say_shapes(model: onnx.ModelProto, graph: EngineGraph, size: tuple[int, int]) -> None:
    """Write the sizes of the outputs of one image, which tracing leaves open."""
    with torch.no_grad():
        answer = graph(torch.zeros(1, *size, 3, dtype=torch.uint8))
    for output, value in zip(model.graph.output, answer, strict=True):
        for dimension, length in zip(
            output.type.tensor_type.shape.dim[1:], value.shape[1:], strict=True
        ):
            dimension.dim_value = length


def _describe(model: onnx.ModelProto, metadata: Metadata, mark: str, precision: str) -> None:
    """Write the metadata, and take away what says nothing of the model."""
    values = {
        "hashvpr.name": metadata.name,
        "hashvpr.fingerprint": mark,
        "hashvpr.version": metadata.version,
        "hashvpr.license": metadata.license,
        "hashvpr.precision": precision,
    }
    image = model.graph.input[0].type.tensor_type.shape.dim
    values["hashvpr.size"] = f"{image[1].dim_value}x{image[2].dim_value}"
    if metadata.probability_curve:
        slope, intercept = metadata.probability_curve
        values["hashvpr.probability_curve"] = f"{slope} {intercept}"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, values)
    model.producer_name, model.producer_version = "hashvpr_ros", ""
    for node in model.graph.node:
        node.doc_string = ""


def _probe(
    images: Sequence[NDArray[np.uint8]], size: tuple[int, int], batch: int
) -> NDArray[np.uint8]:
    """Images for the check: the last given, else smooth synthetic ones; of a whole batch."""
    count = batch or _PROBES
    if images:
        chosen = [images[-1 - i % len(images)] for i in range(count)]
        return np.stack(chosen)
    rng = np.random.default_rng(1)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = []
    for _ in range(count):
        planes = np.zeros((height, width, 3))
        for _ in range(12):
            fy, fx, phase = rng.uniform(0.5, 40) / height, rng.uniform(0.5, 40) / width, 6.3
            wave = np.sin(6.283 * (fy * y + fx * x) + rng.uniform(0, phase))
            planes += wave[..., None] * rng.uniform(-1, 1, 3)
        noise = rng.normal(0, 8, planes.shape)
        waves.append(np.clip(127 + 30 * planes + noise, 0, 255).astype(np.uint8))
    return np.stack(waves)


def _compare(
    reference: EngineGraph, path: Path, images: NDArray[np.uint8], precision: str
) -> tuple[float, float, float]:
    """Least cosine of an image's float outputs, share of equal bits, and largest difference."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    codes, *floats = session.run(reference.outputs, {"images": images})
    with torch.no_grad():
        logits, *wanted = (t.numpy() for t in reference.unpacked(torch.from_numpy(images)))
    cosine, error = np.ones(len(images)), 0.0
    for given, want in zip(floats, wanted, strict=True):
        a, b = given.reshape(len(images), -1), want.reshape(len(images), -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.minimum(cosine, (a * b).sum(1) / np.maximum(norms, 1e-12))
        error = max(error, float(np.abs(a - b).max()))
    equal = np.unpackbits(codes, axis=1).astype(bool) == (logits >= 0)
    if precision == "fp32":
        equal |= np.abs(logits) < _SURE
    return float(cosine.min()), float(equal.mean()), error
