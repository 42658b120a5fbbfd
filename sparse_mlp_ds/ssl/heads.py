"""Projector and predictor of MoCo v3, with batch statistics over the global batch."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds import dist


class GlobalBatchNorm(nn.Module):
    """Batch norm over the batch of all ranks: [B, D] -> [B, D], differentiable through every rank's statistics.

    torch's SyncBatchNorm needs a GPU. Running statistics are not kept: the heads are dropped after pretraining.
    """

    def __init__(self, dim: int, affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Statistics are float32 under every precision; ranks may bring other numbers of rows."""
        rows = x.new_full((1,), len(x), dtype=torch.float32)
        sums, rows = dist.total(torch.cat([x.float().sum(dim=0), rows])).split([x.shape[1], 1])
        centred = x.float() - sums / rows
        variance = dist.total(centred.square().sum(dim=0)) / rows
        normal = (centred * (variance + self.eps).rsqrt()).to(x.dtype)
        return normal if self.weight is None else normal * self.weight + self.bias


def mlp_head(layers: int, dim: int, hidden: int, out: int) -> nn.Sequential:
    """`layers` bias-free linears, each followed by batch norm; ReLU between, no affine on the last (MoCo v3, 4.1)."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        width_in, width_out = dim if layer == 0 else hidden, out if last else hidden
        modules += [nn.Linear(width_in, width_out, bias=False), GlobalBatchNorm(width_out, affine=not last)]
        if not last:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)
