"""gMLP and aMLP for images (Liu et al., arXiv 2105.08050): one gated MLP per block, without and with tiny attention."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.layers import LN_EPS, Dropout, DropPath
from sparse_mlp_ds.moe.stats import Reports


class SpatialProjection(nn.Linear):
    """f(v) = W v + b along the patch axis: [B, S, D] -> [B, S, D] (gMLP 2.1)."""

    def __init__(self, tokens: int):
        super().__init__(tokens, tokens)

    def forward(self, v: Tensor) -> Tensor:
        """Mix patches, each channel alike."""
        return super().forward(v.transpose(1, 2)).transpose(1, 2)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """W near 0 and b = 1, so that the gate starts open and a block as a plain MLP."""
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            nn.init.normal_(parameter, std=1e-6, generator=generator)


class SpatialGatingUnit(nn.Module):
    """s(z) = z1 * f(norm z2), where z1 and z2 are the halves of z's channels: [B, S, F] -> [B, S, F / 2]."""

    def __init__(self, tokens: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden // 2, eps=LN_EPS)
        self.spatial = SpatialProjection(tokens)

    def forward(self, z: Tensor, attended: Tensor | None = None) -> Tensor:
        """attended: [B, S, F / 2] of the tiny attention, added to the gate before it multiplies."""
        z1, z2 = z.chunk(2, dim=-1)
        gate = self.spatial(self.norm(z2))
        return z1 * (gate if attended is None else gate + attended)


class GmlpBlock(nn.Module):
    """y = x + W2 s(gelu(W1 norm x)), s the spatial gating unit (gMLP 2); in aMLP attention reads norm x, too (4.3)."""

    def __init__(self, tokens: int, width: int, hidden: int, attention: int, dropout: float, drop_path: float):
        """hidden: F. attention: size of the tiny attention's one head, 0 for none."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        self.attention = Attention(width, 1, attention, hidden // 2) if attention else None
        self.fc1 = nn.Linear(width, hidden)
        self.dropout1 = Dropout(dropout)
        self.gate = SpatialGatingUnit(tokens, hidden)
        self.fc2 = nn.Linear(hidden // 2, width)
        self.dropout2 = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        """x: [B, S, C] -> the same shape."""
        y = self.norm(x)
        attended = None if self.attention is None else self.attention(y)
        y = self.dropout1(nn.functional.gelu(self.fc1(y)), keys)
        y = self.dropout2(self.fc2(self.gate(y, attended)), keys)
        return x + self.drop_path(y, keys), {}
