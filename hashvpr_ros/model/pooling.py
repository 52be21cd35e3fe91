"""Aggregation of a map of local features into one descriptor.

GeM, BoQ and SALAD take the patch map [N, D, h, w] and the class token [N, D] of a vision
transformer, and return [N, output_dim]. NetVLAD takes the map of a convolutional network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashvpr_ros.errors import ConfigError


class GeM(nn.Module):
    """Generalised mean with a learned exponent (Radenovic et al., TPAMI 2019, eq. 3).

    (mean x^p)^(1/p) over the map, of channels that were L2-normalised at each position and are
    clamped to at least 1e-6.
    """

    def __init__(self, width: int, p: float = 3.0) -> None:
        super().__init__()
        self.output_dim = width
        self.p = nn.Parameter(torch.full((1,), p))

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        x = functional.normalize(patches, dim=1).clamp(min=1e-6)
        # A mean rather than a pooling operator: the same value, and any exporter knows it.
        return x.pow(self.p).mean((2, 3)).pow(1.0 / self.p)


def _for_each(parameter: Tensor, like: Tensor) -> Tensor:
    """The parameter for each of a batch; `expand` would make its size a constant of a trace."""
    return 0.0 * like + parameter


class _BoQBlock(nn.Module):
    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        heads = width // 64
        self.encoder = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(x)
        q = _for_each(self.queries, x[:, :1, :1])
        q = self.norm_q(q + self.self_attn(q, q, q, need_weights=False)[0])
        seen = self.cross_attn(q, x, x, need_weights=False)[0]
        return x, self.norm_out(seen)


class BoQ(nn.Module):
    """Bag of learnable queries (Ali-bey et al., CVPR 2024, section 3). L2-normalised.

    Args:
        width: D, of the map.
        channels: width after the first convolution.
        queries: learned queries a layer.
        layers: of encoder and cross-attention.
        rows: to which the outputs of all queries are mixed; output_dim = channels * rows.
    """

    def __init__(
        self, width: int, channels: int = 384, queries: int = 64, layers: int = 2, rows: int = 32
    ) -> None:
        super().__init__()
        self.output_dim = channels * rows
        self.proj_c = nn.Conv2d(width, channels, 3, padding=1)
        self.norm_input = nn.LayerNorm(channels)
        self.boqs = nn.ModuleList(_BoQBlock(channels, queries) for _ in range(layers))
        self.fc = nn.Linear(layers * queries, rows)

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        x = self.norm_input(self.proj_c(patches).flatten(2).transpose(1, 2))
        outputs = []
        for block in self.boqs:
            x, seen = block(x)
            outputs.append(seen)
        mixed = self.fc(torch.cat(outputs, 1).transpose(1, 2))
        return functional.normalize(mixed.flatten(1))


class Salad(nn.Module):
    """Sinkhorn algorithm for locally aggregated descriptors (Izquierdo and Civera, CVPR 2024).

    Patches are assigned to clusters, and to a dust bin, by optimal transport (section 3.2); the
    clusters' sums stand beside a feature of the class token. L2-normalised.

    Args:
        width: D, of the map.
        clusters: m; the map must hold more patches.
        cluster_dim, token_dim: output_dim = clusters * cluster_dim + token_dim.
    """

    def __init__(
        self, width: int, clusters: int = 64, cluster_dim: int = 128, token_dim: int = 256
    ) -> None:
        super().__init__()
        self.clusters = clusters
        self.output_dim = clusters * cluster_dim + token_dim
        hidden, dropout = 512, 0.3
        self.token_features = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, token_dim)
        )
        self.cluster_features = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Conv2d(hidden, cluster_dim, 1),
        )
        self.score = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Conv2d(hidden, clusters, 1),
        )
        self.dust_bin = nn.Parameter(torch.tensor(1.0))

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        features = self.cluster_features(patches).flatten(2)  # [N, C, n]
        assignment = self._transport(self.score(patches).flatten(2))  # [N, m, n]
        clusters = features @ assignment.transpose(1, 2)  # [N, C, m]
        token = functional.normalize(self.token_features(class_token))
        parts = [token, functional.normalize(clusters, dim=1).flatten(1)]
        return functional.normalize(torch.cat(parts, 1))

    def _transport(self, scores: Tensor) -> Tensor:
        """Sinkhorn in the log domain, 3 iterations, the dust bin taking n - m patches' worth."""
        m, n = self.clusters, int(scores.shape[2])
        if n <= m:
            raise ConfigError(
                f"SALAD needs more than {m} patches, not {n}; give a larger input size"
            )
        dust = _for_each(self.dust_bin, scores[:, :1])
        scores = torch.cat([scores, dust], 1)
        norm = -math.log(n + m)
        rows = torch.full((m + 1,), norm, dtype=scores.dtype, device=scores.device)
        rows[-1] += math.log(n - m)
        v = 0.0 * scores[:, 0]
        for _ in range(3):
            u = rows - torch.logsumexp(scores + v[:, None], 2)
            v = norm - torch.logsumexp(scores + u[:, :, None], 1)
        return (scores + u[:, :, None] + v[:, None] - norm).exp()[:, :-1]


class NetVlad(nn.Module):
    """NetVLAD (Arandjelovic et al., CVPR 2016) that knows the height of a feature in the image.

    Each local feature is centred and L2-normalised; its row, from -1 (top) to 1 (bottom), is
    appended. It is assigned to the centres by a softmax, and the sums of the differences to each
    centre are normalised, first for each centre and then as a whole. The column of a feature does
    not count, so a camera that turned or moved sideways sees nearly the same.

    Args:
        width: C, channels of the map.
        centres: K.
        position: weight of the row.
        sharpness: of the assignment: alpha in 2 * alpha * (f . c - |c|^2 / 2).
    """

    def __init__(
        self, width: int, centres: int = 32, position: float = 0.3, sharpness: float = 10.0
    ) -> None:
        super().__init__()
        self.output_dim = centres * (width + 1)
        self.position, self.sharpness = position, sharpness
        self.mean = nn.Parameter(torch.zeros(width))
        self.centres = nn.Parameter(functional.normalize(torch.randn(centres, width + 1)))

    def local(self, x: Tensor) -> Tensor:
        """The map [N, C, h, w] to its local features [N, h * w, C + 1]."""
        rows, columns = int(x.shape[2]), int(x.shape[3])
        features = x.flatten(2).transpose(1, 2) - self.mean
        features = features / features.norm(dim=2, keepdim=True).clamp_min(1e-6)
        heights = self.position * torch.linspace(-1, 1, rows, dtype=x.dtype, device=x.device)
        heights = heights.repeat_interleave(columns)[None, :, None]
        return torch.cat([features, _for_each(heights, features[:, :, :1])], 2)

    def assignment_layer(self) -> tuple[Tensor, Tensor]:
        """Weight [C + 1, K] and bias [K] of the logits of the assignment."""
        squares = self.centres.square().sum(1)
        return 2 * self.sharpness * self.centres.T, -self.sharpness * squares

    def forward(self, x: Tensor) -> Tensor:
        """The map [N, C, h, w] to [N, K * (C + 1)], L2-normalised."""
        features = self.local(x)
        weight, bias = self.assignment_layer()
        assignment = torch.softmax(features @ weight + bias, 2)
        residuals = assignment.transpose(1, 2) @ features
        residuals = residuals - assignment.sum(1)[:, :, None] * self.centres
        residuals = residuals / residuals.norm(dim=2, keepdim=True).clamp_min(1e-8)
        # Every centre now has a norm of 1.
        return residuals.flatten(1) * len(self.centres) ** -0.5


AGGREGATIONS: dict[str, type[nn.Module]] = {"gem": GeM, "boq": BoQ, "salad": Salad}
