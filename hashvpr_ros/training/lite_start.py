"""The closed-form start of the lite network: k-means, learned whitening, ITQ.

K-means gives the centres of NetVLAD. Learned whitening (Radenovic et al., TPAMI 2019, section
3.3) gives the linear layer behind it: the covariance of the differences within places is
whitened, then the principal axes of the normalised result are kept, and their spectrum is
flattened. ITQ (Gong et al., TPAMI 2013) gives the binary descriptor: the rotation whose signs lose
least. Everything is computed in float64 with fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hashvpr_ros.model.lite import FEATURE_DIM, LOCAL_DIM, LiteLocalBranch, LiteNetwork
from hashvpr_ros.model.pooling import NetVlad
from hashvpr_ros.types import CODE_BITS

_LOCAL_FEATURES = 60_000  # of each map, for k-means
_KMEANS_ITERATIONS = 15
SHRINKAGE = 0.3  # of the within-place covariance towards a multiple of the identity
_PRINCIPAL = 900  # axes kept before whitening
_FLATTENING = 1e-3  # of the largest variance: axes with less than that stay small
_ITQ_ITERATIONS = 50


@torch.no_grad()
def learn_start(
    network: LiteNetwork,
    branch: str,
    stages: Callable[[], Iterable[list[Tensor]]],
    sample: Sequence[int],
    pairs: Tensor,
) -> None:
    """Set what of a branch is learned in closed form.

    Args:
        network: whose layers are set.
        branch: "float": centres, whitening, and the projection of local descriptors; "hash": the
            rotation of the feature.
        stages: gives the backbone's maps of all images in order, some images at a time.
        sample: numbers of the images whose local features k-means takes.
        pairs: numbers of two images of one place each, [n, 2].
    """
    if branch == "hash":
        assert network.hash_branch is not None
        features = torch.cat([network.float_branch(s).cpu() for s in stages()])
        head = network.hash_branch.head
        head.weight.copy_(learn_code(features))
        head.bias.zero_()
        return
    chosen = _chosen(stages(), sample)
    learn_projection(network.local_branch, chosen)
    for pool, maps in zip(network.float_branch.pools, chosen, strict=True):
        learn_centres(pool, maps)
    pooled = torch.cat([network.float_branch.pool(s).cpu() for s in stages()])
    weight, bias = learn_whitening(pooled, pairs)
    network.float_branch.head.weight.copy_(weight)
    network.float_branch.head.bias.copy_(bias)


def _chosen(stages: Iterable[list[Tensor]], sample: Sequence[int]) -> list[Tensor]:
    """The maps of some images, [n, C, h, w] for each stage."""
    wanted, first = set(sample), 0
    kept: list[list[Tensor]] = []
    for part in stages:
        count = len(part[0])
        rows = [i for i in range(count) if first + i in wanted]
        if rows:
            kept.append([s[rows].cpu() for s in part])
        first += count
    return [torch.cat(parts) for parts in zip(*kept, strict=True)]


@torch.no_grad()
def learn_centres(pool: NetVlad, maps: Tensor) -> None:
    """Set mean and centres of a NetVLAD by k-means over local features of maps [n, C, h, w]."""
    rng = np.random.default_rng(0)

    def some(x: Tensor) -> Tensor:
        x = x.reshape(-1, x.shape[-1])
        return x[torch.from_numpy(rng.permutation(len(x))[:_LOCAL_FEATURES])]

    pool.mean.copy_(some(maps.double().flatten(2).transpose(1, 2)).mean(0))
    x = some(pool.local(maps.to(pool.mean.device)).cpu().double())
    generator = torch.Generator().manual_seed(0)
    count = len(pool.centres)
    centres = x[torch.randperm(len(x), generator=generator)[:count]].clone()
    for _ in range(_KMEANS_ITERATIONS):
        nearest = (x @ centres.T - 0.5 * centres.square().sum(1)).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    pool.centres.copy_(centres)


@torch.no_grad()
def learn_projection(branch: LiteLocalBranch, maps: Sequence[Tensor]) -> None:
    """Set the projection of local descriptors: principal axes, their spectrum half flattened.

    Args:
        maps: of some images, the first [n, C, h, w].
    """
    x = branch.cells([maps[0].double()]).flatten(0, 2)
    mean = x.mean(0)
    x = x - mean
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, vectors = values.flip(0)[:LOCAL_DIM], vectors.flip(1)[:, :LOCAL_DIM]
    weight = (vectors * values.clamp(min=1e-12) ** -0.25).T
    weight = weight * _signs(weight)
    branch.weight.copy_(weight)
    branch.bias.copy_(-(weight @ mean))


def _signs(rows: Tensor) -> Tensor:
    """The sign of each row's largest element, [n, 1].

    The sign of an axis is arbitrary: fixed by this, every library gives the same.
    """
    largest = rows.abs().argmax(1)
    return rows[torch.arange(len(rows)), largest].sign()[:, None]


def learn_whitening(
    pooled: Tensor, pairs: Tensor, dim: int = FEATURE_DIM
) -> tuple[Tensor, Tensor]:
    """A linear layer that whitens what differs within places.

    Args:
        pooled: descriptors, [n, P]; also of images without a partner.
        pairs: numbers of two descriptors of one place each, [m, 2].
        dim: of the result; missing axes are filled with zeros.

    Returns:
        weight float32 [dim, P] and bias float32 [dim]; outputs have a norm of about 1.
    """
    x = pooled.double()
    mean = x.mean(0)
    x = x - mean
    # Principal axes from the products of the images with one another: n is less than P.
    values, vectors = torch.linalg.eigh(x @ x.T)
    count = min(_PRINCIPAL, len(x) - 1, x.shape[1])
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    axes = (x.T @ vectors) / values.clamp(min=1e-12).sqrt()
    y = x @ axes
    differences = y[pairs[:, 0]] - y[pairs[:, 1]]
    values, vectors = torch.linalg.eigh(differences.T @ differences / len(differences))
    scale = (values.clamp(min=0) + SHRINKAGE * values.mean()).rsqrt()
    whiten = (vectors * scale) @ vectors.T
    z = functional.normalize(y @ whiten)
    z = z - z.mean(0)
    values, principal = torch.linalg.eigh(z.T @ z)
    values, principal = values.flip(0)[:dim], principal.flip(1)[:, :dim]
    flat = (values / values[0] + _FLATTENING).rsqrt()
    weight = (axes @ whiten @ (principal * flat)).T
    weight = weight * _signs(weight)
    weight = functional.pad(weight, (0, 0, 0, dim - len(weight)))
    weight = weight / (x @ weight.T).norm(dim=1).mean()
    # Half precision holds the weights exactly, so the exported file stores them so.
    weight = weight.half().double()
    return weight.float(), -(weight @ mean).float()


def learn_code(features: Tensor) -> Tensor:
    """ITQ: the rotation [512, D] of features whose signs lose least.

    Args:
        features: [n, D].
    """
    x = functional.normalize(features.double())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(CODE_BITS, x.shape[1], generator=generator, dtype=torch.float64)
    # Orthonormal along the shorter of its sides, [D, 512].
    rotation = (
        torch.linalg.qr(start)[0].T if len(start) >= x.shape[1] else torch.linalg.qr(start.T)[0]
    )
    for _ in range(_ITQ_ITERATIONS):
        signs = torch.where(x @ rotation >= 0, 1.0, -1.0).double()
        u, _, vh = torch.linalg.svd(x.T @ signs, full_matrices=False)
        rotation = u @ vh
    return rotation.T.float()
