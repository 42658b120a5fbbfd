"""One mixture-of-experts layer on one process: MoE(x) = sum_k G(x)_k E_k(x) (Sparse-MLP, eq. 1).

`expert_parallel.ExpertParallelMoE` is the same layer with its experts spread over ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe import losses, stats
from sparse_mlp_ds.moe.capacity import place
from sparse_mlp_ds.moe.expert_choice import choose
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.moe.routes import Choices, Routes


@dataclass(frozen=True)
class Routing:
    """How a layer routes; the same for every layer of one mixing type."""

    capacity_factor: float | None = 1.05
    """Training slots per expert over the even share; None drops nothing."""
    evaluation_capacity: float | None = None
    """The same in deterministic passes, counted within each image, so that none depends on its batch."""
    priority: str = "position"
    """`position`, `importance` or `random`, see `capacity.place`; or `expert_choice`, see that file."""
    group_images: int = 8
    """Images per routing group."""
    noise: float = 1.0
    """Gate noise in units of the paper's standard deviation 1/E."""
    renormalize: bool = False
    """Divide an item's K weights by their sum, as GShard does for K = 2 and the paper does not."""
    balance: str = "importance_load"
    """Which balance loss: the paper's `importance_load`, or `switch`."""
    balance_weight: float = 0.01
    """lambda of the balance loss."""
    z_weight: float = 0.0
    """Weight of the z-loss."""


class MoELayer(nn.Module):
    """Routes the items of a batch to experts and adds up what they return, weighted by the gate."""

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        make_expert: Callable[[], nn.Module],
        routing: Routing = Routing(),
        keyed_experts: bool = False,
    ):
        """dim: item length D.

        make_expert: builds one expert, a module (rows [n, D], keys [n] or None) -> [n, D]. keyed_experts: in training
        give experts their rows' keys, by which they draw (dropout); without, keys are None and need not travel.
        """
        # Called by name, not through super(): the expert-parallel subclass also has DeepSpeed's MoE among its bases,
        # whose constructor would build DeepSpeed's own gate and experts.
        nn.Module.__init__(self)
        self.num_experts = experts
        self.routing = routing
        self.keyed_experts = keyed_experts
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
        choices = self.router(x, keys)
        groups = x.shape[0] // self.routing.group_images if keys is not None else 1
        routes = self._routes(choices, keys, x.shape[0], groups)

        rows = x.flatten(0, 1).index_select(0, routes.item)  # [R, D], sorted by expert
        row_keys = None
        if keys is not None and self.keyed_experts:
            items = x.shape[1]
            row_keys = rng.fold(keys[routes.item // items], routes.item % items)
        rows = self.run_experts(rows, routes.counts, row_keys)
        weight = routes.weight
        if self.routing.renormalize:
            weight = weight / choices.weight.sum(dim=1)[routes.item]
        weighted = (rows * weight[:, None]).to(x.dtype)
        y = torch.zeros_like(x).flatten(0, 1).index_add(0, routes.item, weighted).view_as(x)

        balance = self._balance(choices, groups) if keys is not None else x.new_zeros(())
        sums = stats.measure(choices, routes, self.routing.priority == "expert_choice")
        return y, stats.MoEReport(balance, sums)

    def run_experts(self, rows: Tensor, counts: Tensor, keys: Tensor | None) -> Tensor:
        """Send each expert its rows: [R, D] -> [R, D], sorted by expert; counts: [E]; keys: [R] or None."""
        sizes = counts.tolist()
        own_keys = [None] * len(sizes) if keys is None else keys.split(sizes)
        # Idle experts run on zero rows: they stay in the graph and get a zero gradient instead of none.
        parts = zip(self.experts.values(), rows.split(sizes), own_keys, strict=True)
        return torch.cat([expert(part, part_keys) for expert, part, part_keys in parts])

    def _routes(self, choices: Choices, keys: Tensor | None, images: int, groups: int) -> Routes:
        routing = self.routing
        if keys is not None and images % routing.group_images:
            raise ValueError(f"{images} images do not divide into routing groups of {routing.group_images}")
        if routing.priority == "expert_choice":
            return choose(choices, groups if keys is not None else images, routing.capacity_factor or 1.0)
        if keys is None:
            # V-MoE's batch prioritized routing at inference (3.4), every image a group of its own.
            by_gate = routing.evaluation_capacity is not None and routing.priority == "importance"
            priority = "importance" if by_gate else "position"
            return place(choices, self.num_experts, images, routing.evaluation_capacity, priority)
        if routing.capacity_factor is None:
            return place(choices, self.num_experts, groups, None, "position")
        draws = None
        if routing.priority == "random":
            items = len(choices.expert) // max(images, 1)
            draws = rng.uniform(keys, self.router.stream + 1, items).flatten()
        return place(choices, self.num_experts, groups, routing.capacity_factor, routing.priority, draws)

    def _balance(self, choices: Choices, groups: int) -> Tensor:
        routing = self.routing
        total = routing.z_weight * losses.z_loss(choices) if routing.z_weight else choices.logits.new_zeros(())
        if routing.priority == "expert_choice":  # even by construction
            return total
        if routing.balance == "switch":
            return total + routing.balance_weight * losses.switch_loss(choices, groups)
        loss = losses.importance_loss(choices, groups)
        if routing.noise > 0:
            loss = loss + losses.load_loss(choices, groups, routing.noise / self.num_experts)
        return total + routing.balance_weight * loss / 2
