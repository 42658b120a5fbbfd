"""What a model costs: weights it stores, weights that one item meets, multiply-accumulates of one image.

All without the classifier head, on the meta device: nothing is allocated and nothing computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.models.spec import MoESpec, PatchSpec
from sparse_mlp_ds.moe.stats import MoEReport


@dataclass(frozen=True)
class Cost:
    """The figures of one model."""

    params: int
    """Weights stored."""
    params_active: int
    """Weights that take part for one item of each MoE layer: its router and K of its experts."""
    macs: int
    """Multiply-accumulates of one image's forward pass, in matrix products and convolutions alone."""


def cost(spec: PatchSpec) -> Cost:
    """Count one model. An MoE layer costs its router and K experts per item: nothing dropped, nothing padded."""
    with torch.device("meta"):
        whole = registry.build(spec)
        active = registry.build(spec, make_moe=_Active) if spec.experts else whole
        image = torch.empty(1, 3, spec.image_size, spec.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        active(image)
    return Cost(_count(whole), _count(active), counter.get_total_flops() // 2)


class _Active(nn.Module):
    """What one item meets of an MoE layer, applied to every item; which experts they are does not matter here."""

    def __init__(self, kind: str, dim: int, spec: MoESpec, dropout: float):
        super().__init__()
        self.router = nn.Linear(dim, spec.experts, bias=False)
        self.experts = nn.ModuleList(Mlp(dim, spec.hidden) for _ in range(spec.top_k))

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, MoEReport]:
        """x: [B, T, D] -> the same shape and an empty report."""
        self.router(x)
        y = torch.stack([expert(x) for expert in self.experts]).sum(dim=0)
        return y, MoEReport(x.new_zeros(()), x.new_zeros(0))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
