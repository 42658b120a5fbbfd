"""One mixture-of-experts layer on one process: MoE(x) = sum_k G(x)_k E_k(x) (Sparse-MLP, eq. 1).

`expert_parallel.ExpertParallelMoE` is the same layer with its experts spread over ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_mlp_ds.moe import losses, stats
from sparse_mlp_ds.moe.capacity import place
from sparse_mlp_ds.moe.router import Router


@dataclass(frozen=True)
class Routing:
    """How a layer routes; the same for every layer of one mixing type."""

    capacity_factor: float | None = 1.05
    """Training slots per expert over the even share; None drops nothing. Evaluation never drops."""
    priority: str = "position"
    """`position` or `importance`, see `capacity.place`."""
    group_images: int = 8
    """Images per routing group."""
    noise: float = 1.0
    """Gate noise in units of the paper's standard deviation 1/E."""
    balance_weight: float = 0.01
    """lambda of the balance losses."""


class MoELayer(nn.Module):
    """Routes the items of a batch to experts and adds up what they return, weighted by the gate."""

    def __init__(
        self, dim: int, experts: int, top_k: int, make_expert: Callable[[], nn.Module], routing: Routing = Routing()
    ):
        """dim: item length D. make_expert: builds one expert, a module [*, D] -> [*, D]."""
        # Called by name, not through super(): the expert-parallel subclass also has DeepSpeed's MoE among its bases,
        # whose constructor would build DeepSpeed's own gate and experts.
        nn.Module.__init__(self)
        self.num_experts = experts
        self.routing = routing
        self.router = Router(dim, experts, top_k, routing.noise)
        # Keyed by global id, so that a parameter has the same name wherever its expert lives.
        self.experts = nn.ModuleDict({str(i): make_expert() for i in self.local_ids()})

    def local_ids(self) -> range:
        """Return the global ids of the experts held here."""
        return range(self.num_experts)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, stats.MoEReport]:
        """Mix the items of each image.

        x: [B, T, D]. keys: [B] sample keys in training (noise, capacity and balance losses apply), None for a
        deterministic pass that drops nothing, in which an image's result does not depend on its batch.
        Returns y [B, T, D] and the layer's report. Raises ValueError if B is not a multiple of the routing group.
        """
        training = keys is not None
        groups = self._groups(x.shape[0]) if training else 1
        choices = self.router(x, keys)
        factor = self.routing.capacity_factor if training else None
        routes = place(choices, self.num_experts, groups, factor, self.routing.priority)

        rows = x.flatten(0, 1).index_select(0, routes.item)  # [R, D], sorted by expert
        rows = self.run_experts(rows, routes.counts)
        weighted = (rows * routes.weight[:, None]).to(x.dtype)
        y = torch.zeros_like(x).flatten(0, 1).index_add(0, routes.item, weighted).view_as(x)

        balance = self._balance(choices, groups) if training else x.new_zeros(())
        return y, stats.MoEReport(balance, stats.measure(choices, routes))

    def run_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Send each expert its rows: rows [R, D] sorted by expert, counts [E] -> [R, D] in the same order."""
        parts = rows.split(counts.tolist())
        # Idle experts run on zero rows: they stay in the graph and get a zero gradient instead of none.
        return torch.cat([expert(part) for expert, part in zip(self.experts.values(), parts, strict=True)])

    def _groups(self, images: int) -> int:
        if images % self.routing.group_images:
            raise ValueError(f"{images} images do not divide into routing groups of {self.routing.group_images}")
        return images // self.routing.group_images

    def _balance(self, choices, groups: int) -> Tensor:
        loss = losses.importance_loss(choices, groups)
        if self.routing.noise > 0:
            loss = loss + losses.load_loss(choices, groups, self.routing.noise / self.num_experts)
        return self.routing.balance_weight * loss / 2
