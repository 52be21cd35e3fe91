"""Where the lite network's branches begin: learned whitening, and iterative quantisation.

Learned whitening (Radenovic et al., TPAMI 2019, section 3.3): the covariance of the differences
within places is whitened, here by half, then the principal axes of the result are kept. ITQ (Gong
et al., TPAMI 2013): the rotation after whose signs least is lost. In float64, with fixed seeds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from hashvpr_ros.model.lite import FEATURE_DIM, LiteNetwork, pool
from hashvpr_ros.types import CODE_BITS

SHRINKAGE = 1.0  # of the within-place covariance towards a multiple of the identity
# How far that covariance is undone: 1 whitens, 0 leaves it as it is. What differs between months
# at one place also tells the places of one building apart (docs/lite_model.md).
_WHITENING_POWER = 0.5
_PRINCIPAL = 900  # axes kept before whitening
_ITQ_ITERATIONS = 50


@torch.no_grad()
def learn_start(
    network: LiteNetwork, branch: str, stages: Iterable[list[Tensor]], labels: Tensor
) -> None:
    """Set the linear layer of a branch to what these images teach in closed form.

    Args:
        network: whose layer is set.
        branch: "float": whitening; "hash": the float branch's feature, rotated.
        stages: of the images, a list for each or for some.
        labels: place of each image, [n].
    """
    pooled = torch.cat([pool(network.float_branch.side(s)).cpu() for s in stages])
    feature_head = network.float_branch.head
    if branch == "float":
        head = feature_head
        weight, bias = learn_whitening(pooled, labels)
    else:
        assert network.hash_branch is not None
        head = network.hash_branch.head
        rotation = learn_code(network.float_branch(pooled.to(feature_head.weight.device)).cpu())
        weight, bias = rotation @ feature_head.weight.cpu(), rotation @ feature_head.bias.cpu()
    head.weight.copy_(weight)
    head.bias.copy_(bias)


def learn_whitening(
    pooled: Tensor, labels: Tensor, dim: int = FEATURE_DIM
) -> tuple[Tensor, Tensor]:
    """A linear layer that whitens, by half, what differs within places.

    Args:
        pooled: descriptors, [n, P].
        labels: place of each, [n].
        dim: of the result; fewer axes than that are filled up with zeros.

    Returns:
        weight float32 [dim, P] and bias float32 [dim]; outputs have a norm of about 1.
    """
    x = pooled.double()
    mean = x.mean(0)
    _, _, axes = torch.linalg.svd(x - mean, full_matrices=False)
    axes = axes[: min(_PRINCIPAL, len(x) - 1)].T
    differences = [
        x[i] - x[j]
        for label in labels.unique()
        for members in [torch.nonzero(labels == label)[:, 0].tolist()]
        for a, i in enumerate(members)
        for j in members[a + 1 :]
    ]
    within = torch.stack(differences) @ axes
    values, vectors = torch.linalg.eigh(within.T @ within / len(within))
    scale = (values.clamp(min=0) + SHRINKAGE * values.mean()).pow(-_WHITENING_POWER / 2)
    whiten = axes @ (vectors * scale) @ vectors.T
    _, _, principal = torch.linalg.svd((x - mean) @ whiten, full_matrices=False)
    weight = (whiten @ principal[:dim].T).T
    # The sign of an axis is arbitrary: fixed, so that every library gives the same.
    largest = weight.abs().argmax(1)
    weight = weight * weight[torch.arange(len(weight)), largest].sign()[:, None]
    weight = functional.pad(weight, (0, 0, 0, dim - len(weight)))
    weight = weight / ((x - mean) @ weight.T).norm(dim=1).mean()
    return weight.float(), -(weight @ mean).float()


def learn_code(features: Tensor) -> Tensor:
    """ITQ: the rotation [512, D] of centred features after whose signs least of them is lost.

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
