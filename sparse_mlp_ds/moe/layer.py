"""One mixture-of-experts layer on one process: MoE(x) = sum_k G(x)_k E_k(x) (Sparse-MLP, eq. 1).

A shared expert, if there is one, serves every item with weight 1 and is added (DeepSeekMoE, arXiv 2401.06066).

`expert_parallel.ExpertParallelMoE` is the same layer with its experts spread over ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe import dense, grouped, losses, stats
from sparse_mlp_ds.moe.capacity import place
from sparse_mlp_ds.moe.expert_choice import choose
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.moe.routes import Choices, Routes


@dataclass(frozen=True)
class Routing:
    """How an MoE layer routes; all layers of one mixing type (MoE_S or MoE_C) share these settings."""

    capacity_factor: float | None = 1.05
    """Slots per expert in training, as a multiple of the even share K N / (G E); None drops nothing."""
    evaluation_capacity: float | None = None
    """Slots per expert in evaluation, as a multiple of the even share within each image, so that no image's result
    depends on its batch; None drops nothing."""
    capacity_multiple: int = 1
    """Slots per expert and group are rounded up to a multiple of this number, in evaluation too."""
    priority: str = "position"
    """Which items get slots first: `position`, `importance` or `random` (see `capacity.place`); or `expert_choice`,
    where experts choose items (see `expert_choice`)."""
    group_images: int = 8
    """Images per routing group, within which slots are counted and balance losses computed."""
    noise: float = 1.0
    """Standard deviation of the gate noise, as a multiple of the paper's 1/E; 0 switches the noise off."""
    renormalize: bool = False
    """Whether to divide an item's K gate weights by their sum, as GShard does for K = 2 and the paper does not."""
    gate_scale: float = 1.0
    """Factor of all gate weights, after they are renormalized."""
    balance: str = "importance_load"
    """Balance loss: `importance_load`, as in the paper, or `switch`."""
    balance_weight: float = 0.01
    """Weight lambda of the balance loss in the objective."""
    z_weight: float = 0.0
    """Weight of the router z-loss in the objective."""


class MoELayer(nn.Module):
    """Route the items of each image to experts and add up what these return, weighted by the gate."""

    runs_all = False
    """Whether, in evaluation, every expert runs on every item (see `dense`), as a graph that is exported needs it."""

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        make_expert: Callable[[], nn.Module],
        routing: Routing = Routing(),
        keyed_experts: bool = False,
    ):
        """Build router and experts.

        Args:
            dim: item length D.
            experts: number of experts E.
            top_k: experts per item, K.
            make_expert: builds one expert, a module (rows [n, D], keys [n] or None) -> [n, D].
            routing: how to route.
            keyed_experts: whether experts get their rows' random keys in training, as dropout inside them needs.
                Without, the keys are None and do not travel between ranks.
        """
        # Called by name, not through super(): DeepSpeed's MoE is also a base of the expert-parallel subclass, and its
        # constructor would build DeepSpeed's own gate and experts.
        nn.Module.__init__(self)
        self.num_experts = experts
        self.routing = routing
        self.keyed_experts = keyed_experts
        self.router = Router(dim, experts, top_k, routing.noise)
        # Keyed by global id, so that a parameter's name does not depend on the rank that holds its expert.
        self.experts = nn.ModuleDict({str(i): make_expert() for i in self.local_ids()})
        self.shared: nn.Module | None = None
        """The shared expert, a module (items [B, T, D], keys [B] or None) -> [B, T, D]; every rank has all of it."""

    def local_ids(self) -> range:
        """Return the global ids of the experts that this process holds: all of them."""
        return range(self.num_experts)

    def never_waits(self) -> bool:
        """Return whether no pass of this layer, as it is now, makes the host wait for the device.

        That is so if all experts are here, take no keys, and run in grouped products.
        """
        experts = list(self.experts.values())
        here = len(experts) == self.num_experts
        return here and not self.keyed_experts and grouped.applies(next(experts[0].parameters()), experts)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, stats.MoEReport]:
        """Route the items x [B, T, D]; return y [B, T, D] and the layer's report.

        keys: [B] random keys of the images in training, where noise, capacity and balance losses apply. None in
        evaluation: routing is then deterministic, and an image's result does not depend on its batch.
        Raises ValueError if, in training, B is not a multiple of `group_images`.
        """
        y, report = self._forward_routed(x, keys)
        return (y if self.shared is None else y + self.shared(x, keys)), report

    def _forward_routed(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, stats.MoEReport]:
        choices = self.router(x, keys)
        if self.runs_all and keys is None:
            return self._forward_dense(x, choices)
        groups = x.shape[0] // self.routing.group_images if keys is not None else 1
        routes = self._routes(choices, keys, x.shape[0], groups)

        y = self._mix(x.flatten(0, 1), choices, routes, self._row_keys(x, routes, keys)).view_as(x)

        balance = self._balance(choices, groups) if keys is not None else x.new_zeros(())
        expert_choice = self.routing.priority == "expert_choice"
        measure = lambda: stats.measure(choices, routes, expert_choice)  # noqa: E731
        return y, stats.MoEReport(balance, measure, (choices, routes))

    def _forward_dense(self, x: Tensor, choices: Choices) -> tuple[Tensor, stats.MoEReport]:
        items = x.shape[1]
        y = dense.mix(x.flatten(0, 1), self.experts.values(), self._gates(choices, items))
        routes = lambda: self._routes(choices, None, x.shape[0], 1)  # noqa: E731
        measure = lambda: stats.measure(choices, routes(), self.routing.priority == "expert_choice")  # noqa: E731
        return y.unflatten(0, (-1, items)), stats.MoEReport(x.new_zeros(()), measure)

    def run_experts(self, items: Tensor, routes: Routes, keys: Tensor | None) -> tuple[Tensor, Routes]:
        """Return what the experts make of the items [N, D], and the routes that got a slot: a row [D] for each.

        The host waits for the device once, for the number of rows of each expert, unless nobody needs it.
        keys: [R] random keys of the routes, or None.
        """
        sizes = None
        if routes.choice is not None and not self._is_in_graph(keys):
            sizes = routes.counts.tolist()
            routes = routes.first(sum(sizes))
        rows = items.index_select(0, routes.item)
        return self.local_experts(rows, routes.counts, sizes, None if keys is None else keys[: len(rows)]), routes

    def local_experts(self, rows: Tensor, counts: Tensor, sizes: list[int] | None, keys: Tensor | None) -> Tensor:
        """Run each expert of this process on its rows: [R, D] -> [R, D], sorted by expert.

        counts: [E] rows of each expert. sizes: the same numbers, if the host knows them. keys: [R] random keys of the
        rows, or None.
        """
        experts = list(self.experts.values())
        if keys is None and grouped.applies(rows, experts):
            return type(experts[0]).together(experts, rows, grouped.segments(counts, len(rows)))  # type: ignore[attr-defined]
        if self._is_in_graph(keys):
            return type(experts[0]).in_turn(experts, rows, counts)  # type: ignore[attr-defined]
        sizes = counts.tolist() if sizes is None else sizes
        if hasattr(type(experts[0]), "in_turn"):
            return type(experts[0]).in_turn(experts, rows, sizes, keys)  # type: ignore[attr-defined]
        keys_by_expert = [None] * len(sizes) if keys is None else keys.split(sizes)
        # Experts without rows run too, on zero rows: they stay in the graph and get a zero gradient instead of none.
        parts = zip(experts, rows.split(sizes), keys_by_expert, strict=True)
        return torch.cat([expert(part, part_keys) for expert, part, part_keys in parts])

    def _is_in_graph(self, keys: Tensor | None) -> bool:
        """Return whether the experts run as one operation of a compiled graph, which is for passes without gradients.

        keys: of the routes, or None.
        """
        able = keys is None and hasattr(type(next(iter(self.experts.values()))), "in_turn")
        return able and torch.compiler.is_compiling() and not torch.is_grad_enabled()

    def _mix(self, items: Tensor, choices: Choices, routes: Routes, keys: Tensor | None) -> Tensor:
        """Return what the experts make of the items [N, D], weighted and added up: [N, D]."""
        experts = list(self.experts.values())
        here = len(experts) == self.num_experts
        if here and keys is None and routes.choice is not None and grouped.applies(items, experts):
            by_item = routes.by_item(choices.expert.shape[1])
            segments = grouped.segments(routes.counts, len(routes.item))
            rows = grouped.first(grouped.to_experts(items, routes.item, by_item), segments)
            rows = type(experts[0]).together(experts, rows, segments)  # type: ignore[attr-defined]
            rows = grouped.first(rows, segments)
            weighted = (rows * self._weight(choices, routes)).to(items.dtype)
            return grouped.from_experts(weighted, routes.item, by_item)
        rows, routes = self.run_experts(items, routes, keys)
        weighted = (rows * self._weight(choices, routes)).to(items.dtype)
        return torch.zeros_like(items).index_add(0, routes.item, weighted)

    def _weight(self, choices: Choices, routes: Routes) -> Tensor:
        """Return the routes' gate weights as a column [R, 1]."""
        weight = routes.weight
        if self.routing.renormalize:
            weight = weight / choices.weight.sum(dim=1).index_select(0, routes.item)
        if self.routing.gate_scale != 1:
            weight = weight * self.routing.gate_scale
        return weight[:, None]

    def _row_keys(self, x: Tensor, routes: Routes, keys: Tensor | None) -> Tensor | None:
        if keys is None or not self.keyed_experts:
            return None
        items = x.shape[1]
        return rng.fold(keys[routes.item // items], routes.item % items)

    def _routes(self, choices: Choices, keys: Tensor | None, images: int, groups: int) -> Routes:
        routing = self.routing
        if keys is not None and images % routing.group_images:
            raise ValueError(f"{images} images do not divide into routing groups of {routing.group_images}")
        if routing.priority == "expert_choice":
            groups = groups if keys is not None else images
            return choose(choices, groups, routing.capacity_factor or 1.0, routing.capacity_multiple)
        if keys is None:
            # V-MoE's batch prioritized routing at inference (3.4), with every image as a group.
            by_gate = routing.evaluation_capacity is not None and routing.priority == "importance"
            priority = "importance" if by_gate else "position"
            factor, multiple = routing.evaluation_capacity, routing.capacity_multiple
            return place(choices, self.num_experts, images, factor, priority, multiple=multiple)
        if routing.capacity_factor is None:
            return place(choices, self.num_experts, groups, None, "position")
        draws = None
        if routing.priority == "random":
            items = len(choices.expert) // max(images, 1)
            draws = rng.uniform(keys, self.router.stream + 1, items).flatten()
        factor, multiple = routing.capacity_factor, routing.capacity_multiple
        return place(choices, self.num_experts, groups, factor, routing.priority, draws, multiple)

    def _gates(self, choices: Choices, items: int) -> Tensor:
        """Return each expert's weight for each item [N, E] in evaluation, as `_routes` and `_weight` have them."""
        routing, multiple = self.routing, self.routing.capacity_multiple
        if routing.priority == "expert_choice":
            gate = dense.experts_choose(choices, items, routing.capacity_factor or 1.0, multiple)
        else:
            by_weight = routing.priority == "importance"
            gate = dense.items_choose(choices, items, routing.evaluation_capacity, by_weight, multiple)
        if routing.renormalize:
            gate = gate / choices.weight.sum(dim=1, keepdim=True)
        return gate if routing.gate_scale == 1 else gate * routing.gate_scale

    def _balance(self, choices: Choices, groups: int) -> Tensor:
        routing = self.routing
        total = routing.z_weight * losses.z_loss(choices) if routing.z_weight else choices.logits.new_zeros(())
        if routing.priority == "expert_choice":  # its load is even by construction
            return total
        if routing.balance == "switch":
            return total + routing.balance_weight * losses.switch_loss(choices, groups)
        if routing.noise > 0:
            loss = losses.importance_and_load_loss(choices, groups, routing.noise / self.num_experts)
        else:
            loss = losses.importance_loss(choices, groups)
        return total + routing.balance_weight * loss / 2
