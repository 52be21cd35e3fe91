"""Losses of the two branches (SelaVPR++, section III-D)."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor, nn

from hashvpr_ros.model.hashing import sign
from hashvpr_ros.training.config import LossSettings

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # anchors, positives; anchors, negatives


class FloatLoss(nn.Module):
    """Multi-similarity loss (Wang et al., CVPR 2019) of the features, over mined pairs."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.loss = MultiSimilarityLoss(
            alpha=settings.alpha,
            beta=settings.beta,
            base=settings.base,
            distance=DotProductSimilarity(),
        )
        self.miner = MultiSimilarityMiner(epsilon=settings.epsilon, distance=CosineSimilarity())

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Pairs]:
        """Features float32 [N, D], L2-normalised, and places [N]; returns loss and pairs."""
        pairs = self.miner(features, labels)
        return self.loss(features, labels, pairs), pairs


class HashLoss(nn.Module):
    """The same of the codes, and the constraint that keeps logits and codes alike.

    Codes are signs with a straight-through gradient. The constraint is the mean, over the miner's
    pairs, of (cosine of the logits - dot product of the codes / bits) squared.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.float_loss = FloatLoss(settings)
        self.weight = settings.constraint

    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Pairs]:
        """Logits float32 [N, bits], L2-normalised, and places [N]; returns loss and pairs."""
        codes = sign(logits)
        loss, pairs = self.float_loss(codes, labels)
        return loss + self.weight * similarity_constraint(logits, codes, pairs), pairs


def similarity_constraint(logits: Tensor, codes: Tensor, pairs: Pairs) -> Tensor:
    """See `HashLoss`; 0 without pairs."""
    first, second = torch.cat([pairs[0], pairs[2]]), torch.cat([pairs[1], pairs[3]])
    if not len(first):
        return logits.sum() * 0.0
    cosine = torch.cosine_similarity(logits[first], logits[second])
    agreement = (codes[first] * codes[second]).mean(1)
    return (cosine - agreement).square().mean()


def anchor_loss(output: Tensor, anchor: Tensor, *, binary: bool) -> Tensor:
    """Mean squared change of the similarities within a batch (distillation).

    Args:
        output: features [N, D], or logits [N, bits] whose signs count; L2-normalised.
        anchor: features that it began with, or that it stands for, [N, D'].
        binary: compare the codes' agreement with what random hyperplanes would give them,
            (2 / pi) asin(cosine).
    """
    wanted = anchor @ anchor.T
    if binary:
        codes = sign(output)
        wanted = torch.asin(wanted.clamp(-1, 1)) * (2 / math.pi)
        return (codes @ codes.T / codes.shape[1] - wanted).square().mean()
    return (output @ output.T - wanted).square().mean()


LOSSES: dict[str, Any] = {"float": FloatLoss, "hash": HashLoss}
