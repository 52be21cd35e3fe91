"""Builds the lite model: frozen EfficientNet-Lite0, classical whitening, iterative quantisation.

1. Outputs of two MBConv blocks are pooled by GeM (Radenovic et al., TPAMI 2019, section 3.2) and
   by the mean of a 3x4 grid; each part is L2-normalised, all are concatenated and normalised.
2. Learned whitening from matching pairs (the same, section 3.3): the covariance of the differences
   within places is whitened, then the principal axes of the result are kept.
3. The code is the sign of 512 projections of the leading dimensions of the feature, found by ITQ
   (Gong et al., TPAMI 2013), with a tight frame in the place of its rotation: more bits than
   dimensions, because the last dimensions are mostly noise.

Everything learned comes from the training places given to `build`, in float64 on one thread with
fixed seeds, and is rounded to float16, so that the same sources give the same file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.engine.preprocess import resize
from hashvpr_ros.errors import DatasetError, EngineError
from hashvpr_ros.model.efficientnet_lite import EfficientNetLite0
from hashvpr_ros.training.camera import random_camera
from hashvpr_ros.types import CODE_BITS

HEIGHT, WIDTH = 192, 256
TAPS = (6, 10)
GRID = (3, 4)
GEM_POWER = 3.0
FEATURE_DIM = 512
CODE_DIM = 384  # leading dimensions of the feature that the code is made of
SHRINKAGE = 0.3  # of the within-place covariance towards a multiple of the identity
_PRINCIPAL = 900  # axes kept before whitening
_CAMERAS = 4  # random cameras under which each training image is seen
_ITQ_ITERATIONS = 50
IMAGES_A_PAIR = 2 * (3 + _CAMERAS)  # plain, flipped, cropped, random cameras; of two sides
NAME, VERSION = "hashvpr_lite", "1"
LICENSE = "Apache-2.0"
OPSET = 17

Progress = Callable[[int], object]


class PooledBackbone(nn.Module):
    """uint8 NHWC images to the concatenated, L2-normalised pools, float32 [N, 2496]."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(state, TAPS)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images.permute(0, 3, 1, 2).float())
        parts = []
        for x in maps:
            gem = x.clamp(min=1e-6).pow(GEM_POWER).mean((2, 3)).pow(1.0 / GEM_POWER)
            kernel = (int(x.shape[2]) // GRID[0], int(x.shape[3]) // GRID[1])
            grid = functional.avg_pool2d(x, kernel).flatten(1)
            parts += [functional.normalize(gem), functional.normalize(grid)]
        return functional.normalize(torch.cat(parts, 1))


class LiteNetwork(nn.Module):
    """The engine's graph: uint8 [N, H, W, 3] to codes uint8 [N, 64], features float32 [N, D]."""

    def __init__(self, pooled: PooledBackbone, whitening: Whitening, code: Tensor) -> None:
        super().__init__()
        self.pooled = pooled
        # Kept as float16 and widened in the graph: half the file, and rounding hides the last
        # digits in which linear algebra libraries differ.
        self.register_buffer("projection", whitening.projection.half())
        self.register_buffer(
            "offset", (whitening.mean @ whitening.projection.half().double()).half()
        )
        self.register_buffer("code", code.half())
        self.register_buffer("bit_values", 2.0 ** torch.arange(7, -1, -1).reshape(8, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feature = functional.normalize(
            self.pooled(images) @ self.projection.float() - self.offset.float()
        )
        bits = (feature[:, :CODE_DIM] @ self.code.float() >= 0).float()
        packed = bits.reshape(-1, 64, 8) @ self.bit_values
        return packed.reshape(-1, 64).to(torch.uint8), feature


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection, float64."""

    mean: Tensor  # [P]
    projection: Tensor  # [P, D]

    def __call__(self, pooled: Tensor) -> Tensor:
        """Whitened and L2-normalised features, float64 [N, D]."""
        return functional.normalize((pooled - self.mean) @ self.projection)


def learn_whitening(first: Tensor, second: Tensor) -> Whitening:
    """Learned whitening from pairs of views of the same places.

    Args:
        first, second: pooled descriptors, float64 [n, P]; row i of both shows one place.
    """
    both = torch.cat([first, second])
    mean = both.mean(0)
    _, _, axes = torch.linalg.svd(both - mean, full_matrices=False)
    axes = axes[: min(_PRINCIPAL, len(both) - 1)].T
    difference = (first - second) @ axes
    values, vectors = torch.linalg.eigh(difference.T @ difference / len(difference))
    scale = (values.clamp(min=0) + SHRINKAGE * values.mean()).rsqrt()
    within = (vectors * scale) @ vectors.T
    _, _, principal = torch.linalg.svd((both - mean) @ axes @ within, full_matrices=False)
    projection = axes @ within @ principal[:FEATURE_DIM].T
    # The sign of an axis is arbitrary: fixed, so that every library gives the same.
    largest = projection.abs().argmax(0)
    signs = projection[largest, torch.arange(projection.shape[1])].sign()
    projection = projection * signs
    return Whitening(mean, projection / projection.norm(dim=0).mean())


def learn_code(features: Tensor) -> Tensor:
    """ITQ: the projection [CODE_DIM, 512] after whose signs least of the features is lost.

    Args:
        features: whitened, float64 [n, FEATURE_DIM]; the leading CODE_DIM dimensions are used.
    """
    generator = torch.Generator().manual_seed(0)
    x = functional.normalize(features[:, :CODE_DIM])
    start = torch.randn(CODE_BITS, CODE_DIM, generator=generator, dtype=torch.float64)
    projection = torch.linalg.qr(start)[0].T  # orthonormal rows
    for _ in range(_ITQ_ITERATIONS):
        signs = torch.where(x @ projection >= 0, 1.0, -1.0).double()
        u, _, vh = torch.linalg.svd(x.T @ signs, full_matrices=False)
        projection = u @ vh
    return projection


def fit_probability_curve(distinctness: Tensor, right: Tensor) -> tuple[float, float]:
    """Logistic regression of "right" on the distinctness by maximum likelihood.

    Returns:
        slope and intercept of P = 1 / (1 + exp(-(slope * distinctness + intercept))).
    """
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    design = torch.stack([distinctness, torch.ones_like(distinctness)], 1)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(design @ weights, right)
        value.backward()
        return value

    optimizer.step(loss)
    slope, intercept = (float(v) for v in weights.detach())
    return round(slope, 3), round(intercept, 3)


def _held_out_matches(views: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Best matches of places that the whitening has not seen, half of them absent from the map.

    Returns:
        distinctness of each query's best match (its cosine less the second best's, as every other
        reference is another place) and whether it is right, [m] each.
    """
    count = len(views["plain"][0])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    distinctness, right = [], []
    for fold in range(2):
        test, train = order[fold::2], torch.cat([order[f::2] for f in range(2) if f != fold])
        whitening = learn_whitening(
            torch.cat([v[0][train] for v in views.values()]),
            torch.cat([v[1][train] for v in views.values()]),
        )
        reference = whitening(views["plain"][1][test])
        for name in ("plain", "crop", "camera0"):
            present = whitening(views[name][0][test]) @ reference.T
            absent = present.clone().fill_diagonal_(-2.0)  # its place is not in the map
            for similarity in (present, absent):
                best, where = similarity.topk(2)
                distinctness.append(best[:, 0] - best[:, 1])
                right.append(where[:, 0] == torch.arange(len(test)))
            right[-1][:] = False
    return torch.cat(distinctness), torch.cat(right).double()


def _crop(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = rng.uniform(0.75, 0.95)
    h, w = int(height * scale), int(width * scale)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return image[y : y + h, x : x + w]


def _read_rgb(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{path}: cannot be read as an image; restore the folder")
    return np.ascontiguousarray(image[:, :, ::-1])


def training_pairs(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """The first `count` pairs of a folder in the VPR-Bench layout whose n-th images match.

    Raises:
        DatasetError: the folder lacks them.
    """
    first = sorted((folder / "query").glob("*.jpg"))
    second = sorted((folder / "ref").glob("*.jpg"))
    if min(len(first), len(second)) < count:
        raise DatasetError(
            f"{folder}: needs query/ and ref/ with at least {count} JPEG images each, has "
            f"{len(first)} and {len(second)}"
        )
    return list(zip(first[:count], second[:count], strict=True))


def _pool(
    network: PooledBackbone, images: Sequence[NDArray[np.uint8]], progress: Progress
) -> Tensor:
    outputs = []
    with torch.no_grad():
        for image in images:  # one by one: the result must not depend on a batch's size
            batch = torch.from_numpy(resize(image, HEIGHT, WIDTH))[None]
            outputs.append(network(batch).double())
            progress(1)
    return torch.cat(outputs)


def learn(
    state: Mapping[str, Tensor], pairs: Sequence[tuple[Path, Path]], progress: Progress
) -> tuple[LiteNetwork, tuple[float, float]]:
    """Learn the lite network from pairs of images of the same place.

    Args:
        state: weights of EfficientNet-Lite0.
        progress: called with the number of images done; IMAGES_A_PAIR in all.

    Returns:
        the network and its probability curve.
    """
    torch.set_num_threads(1)
    pooled = PooledBackbone(state).eval()
    rng = np.random.default_rng(0)
    images = [[_read_rgb(p[side]) for p in pairs] for side in (0, 1)]
    augmentations: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        "plain": lambda image: image,
        "flip": lambda image: np.ascontiguousarray(image[:, ::-1]),
        "crop": lambda image: _crop(image, rng),
    }
    for i in range(_CAMERAS):
        augmentations[f"camera{i}"] = lambda image: random_camera(
            resize(image, HEIGHT, WIDTH), rng
        )
    views = {
        name: tuple(_pool(pooled, [change(i) for i in side], progress) for side in images)
        for name, change in augmentations.items()
    }
    curve = fit_probability_curve(*_held_out_matches(views))  # type: ignore[arg-type]
    first = torch.cat([v[0] for v in views.values()])
    second = torch.cat([v[1] for v in views.values()])
    whitening = learn_whitening(first, second)
    code = learn_code(whitening(torch.cat([first, second])))
    return LiteNetwork(pooled, whitening, code).eval(), curve


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights: equal for the same model."""
    digest = hashlib.sha256(f"{NAME} {VERSION} {HEIGHT}x{WIDTH} {TAPS} {GRID}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_onnx(network: LiteNetwork, curve: tuple[float, float], path: Path) -> str:
    """Export, check against PyTorch, add the metadata and move into place.

    Returns:
        the model's fingerprint.

    Raises:
        EngineError: the exported graph disagrees with PyTorch; no file is left.
    """
    import onnx
    import onnxruntime

    temporary = path.with_name(f".{path.name}.new")
    example = torch.randint(
        0,
        256,
        (2, HEIGHT, WIDTH, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )
    try:
        torch.onnx.export(
            network,
            (example,),
            str(temporary),
            input_names=["images"],
            output_names=["codes", "features"],
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={"images": {0: "N"}, "codes": {0: "N"}, "features": {0: "N"}},
        )
        model = onnx.load(str(temporary))
        mark = fingerprint(network)
        metadata = {
            "hashvpr.name": NAME,
            "hashvpr.fingerprint": mark,
            "hashvpr.version": VERSION,
            "hashvpr.license": LICENSE,
            "hashvpr.probability_curve": f"{curve[0]} {curve[1]}",
        }
        onnx.helper.set_model_props(model, metadata)
        # The exporter writes the version of torch: not a property of the model.
        model.producer_name, model.producer_version = "hashvpr_ros", ""
        onnx.checker.check_model(model, full_check=True)
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        codes, features = session.run(None, {"images": example.numpy()})
        with torch.no_grad():
            want_codes, want_features = (t.numpy() for t in network(example))
        error = float(np.abs(features - want_features).max())
        wrong = int(np.unpackbits(codes ^ want_codes).sum())
        if error > 1e-4 or wrong > 4:  # a bit may flip where its logit is about zero
            raise EngineError(
                f"{path}: the exported graph differs from PyTorch by {error:.2g} and {wrong} bits"
            )
        os.replace(temporary, path)
        return mark
    finally:
        temporary.unlink(missing_ok=True)
