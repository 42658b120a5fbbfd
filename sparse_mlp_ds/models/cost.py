"""What a model costs: parameters stored, parameters that one item meets, multiply-accumulates of one input.

The classifier head is not counted, nor is the output layer of a model of text, whose matrix is the embedding. Counting
is done on torch's meta device, which allocates and computes nothing. `python -m sparse_mlp_ds.models.cost` counts all
registered models once and writes their figures into preset_costs.json, from which `sparse-mlp-ds models` prints them:
counting them takes much longer than that command may.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.preset_costs import FILE
from sparse_mlp_ds.models.presets import PRESETS
from sparse_mlp_ds.models.sparse_mlp import make_expert
from sparse_mlp_ds.moe.stats import MoEReport


@dataclass(frozen=True)
class Cost:
    """What one model costs, without its classifier head."""

    params: int
    """Number of parameters."""
    params_active: int
    """Number of parameters that are used for one item: of each MoE layer, the router and K of the experts."""
    macs: int
    """Multiply-accumulates of the forward pass of one image or row of text; only matrix products and convolutions are
    counted."""


def cost(spec: ModelSpec) -> Cost:
    """Return what a model costs. An MoE layer costs its router and K experts per item, without drops or padding."""
    with torch.device("meta"):
        whole = registry.build(spec)
        active = registry.build(spec, make_moe=_Active) if spec.experts else whole
        inputs = registry.example(spec)
    return Cost(_count(whole), _count(active), _macs(active, inputs))


class _Active(nn.Module):
    """The router and K experts, applied to every item: as much work as an MoE layer, whichever experts it chooses."""

    def __init__(self, kind: str, dim: int, spec: MoESpec, dropout: float):
        super().__init__()
        self.router = nn.Linear(dim, spec.experts, bias=False)
        self.experts = nn.ModuleList(make_expert(dim, spec, 0.0) for _ in range(spec.top_k))
        self.shared: nn.Module | None = None

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, MoEReport]:
        """x: [B, T, D] -> the same shape and an empty report."""
        self.router(x)
        y = torch.stack([expert(x) for expert in self.experts]).sum(dim=0)
        if self.shared is not None:
            y = y + self.shared(x)
        return y, MoEReport(x.new_zeros(()), lambda: x.new_zeros(0))


@torch.no_grad()
def _macs(model: Backbone, inputs: Tensor) -> int:
    """Return the multiply-accumulates of a model's features of one input, without its head.

    Blocks whose parameters have the same shapes cost the same, so one of them is counted for all.
    """
    with FlopCounterMode(display=False) as counter:
        x = model.embed(inputs)
        model.pool(model.norm(x))
    flops = counter.get_total_flops()
    of_block: dict[tuple[Any, ...], int] = {}
    for block in model.blocks:
        shapes = (type(block), *((name, p.shape) for name, p in block.named_parameters()))
        if shapes not in of_block:
            with FlopCounterMode(display=False) as counter:
                block(x, None)
            of_block[shapes] = counter.get_total_flops()
        flops += of_block[shapes]
    return flops // 2


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def of_presets() -> dict[str, dict[str, int]]:
    """Return what each registered model costs, counted now: name -> the fields of `Cost`."""
    return {name: asdict(cost(spec)) for name, spec in PRESETS.items()}


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in of_presets().items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
