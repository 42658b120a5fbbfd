"""Networks and inputs on torch's meta device, as one rank of a run has them."""

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.sparse_mlp import MakeMoE, make_expert
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.moe.routes import Choices, Routes
from sparse_mlp_ds.train.job import Job

N = TypeVar("N", bound=nn.Module)


class EvenMoE(MoELayer):
    """An MoE layer with E / ep_size experts here, all of which get the same number of rows."""

    def __init__(self, ep_size: int, *args, **options) -> None:  # type: ignore[no-untyped-def]  # those of MoELayer
        self.ep_size = ep_size
        super().__init__(*args, **options)

    def local_ids(self) -> range:
        """Return the global ids of the first rank's experts."""
        return range(self.num_experts // self.ep_size)

    def _routes(self, choices: Choices, keys: Tensor | None, images: int, groups: int) -> Routes:
        routes = super()._routes(choices, keys, images, groups)
        rows, factor = len(routes.item), self.routing.capacity_factor
        if keys is not None and factor is not None and routes.choice is not None:
            slots = math.ceil(factor * rows / max(groups, 1) / self.num_experts)
            rows = min(rows, groups * self.num_experts * slots)
        return replace(routes, counts=_even(rows, self.num_experts))

    def run_experts(self, items: Tensor, routes: Routes, keys: Tensor | None) -> tuple[Tensor, Routes]:
        """Run the experts on as many rows as this rank sends away, copied as `ExpertParallelMoE` copies them."""
        routes = routes.first(sum(routes.counts.tolist()))
        rows = items.index_select(0, routes.item)
        counts = _even(len(rows), len(self.experts))
        keys = None if keys is None else keys[: len(rows)]
        if self.ep_size == 1:
            return self.local_experts(rows, counts, counts.tolist(), keys), routes
        order = torch.arange(len(rows), device=rows.device)
        done = self.local_experts(rows.clone().index_select(0, order), counts, counts.tolist(), keys)
        return torch.empty_like(done).index_copy(0, order, done).clone(), routes


def _even(rows: int, experts: int) -> Tensor:
    """Return the rows of each expert, [E] on the CPU, where they can be read."""
    return torch.tensor([rows // experts + (number < rows % experts) for number in range(experts)])


def make_moe_of(job: Job) -> MakeMoE:
    """Return a builder of MoE layers that are spread over the run's ranks."""

    def make(kind: str, dim: int, spec: MoESpec, dropout: float) -> EvenMoE:
        shape = (dim, spec.experts, spec.top_k, lambda: make_expert(dim, spec, dropout))
        return EvenMoE(job.ep_sizes[kind], *shape, job.recipe.moe.routing(kind), dropout > 0)

    return make


def make_whole(kind: str, dim: int, spec: MoESpec, dropout: float) -> EvenMoE:
    """Build an MoE layer with all experts here, as a teacher has."""
    return EvenMoE(1, dim, spec.experts, spec.top_k, lambda: make_expert(dim, spec, dropout), Routing(), dropout > 0)


def make_backbone(job: Job, classes: int = 0) -> Backbone:
    """Build the run's model, its experts spread over the ranks. classes: outputs of the head; 0 builds none."""
    return make_network(job.recipe.spec, classes, make_moe_of(job))


def make_network(spec: ModelSpec, classes: int, make_moe: MakeMoE) -> Backbone:
    """Build a model without memory for its numbers; for the arguments, see `registry.build`."""
    with torch.device("meta"):
        net = registry.build(spec, classes, make_moe)
    for module in net.modules():
        if isinstance(module, Attention):
            module.attend = _attend  # type: ignore[assignment]  # the arguments that are used here
    return net


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend as devices do, whose kernels keep no [S, S] scores; torch has no such kernel for the meta device."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def make_classifier(job: Job) -> Backbone:
    """Build the run's model with a head for its classes."""
    return make_backbone(job, job.recipe.data.class_count)


def cast(net: N, low: torch.dtype) -> N:
    """Cast a network to the run's type; its routers stay in float32."""
    net.to(low)
    for layer in net.modules():
        if isinstance(layer, EvenMoE):
            layer.router.float()
    return net


def make_inputs(job: Job, samples: int) -> tuple[Tensor, Tensor]:
    """Return the model's inputs, such as images [B, 3, H, W], and their random keys [B]."""
    with torch.device("meta"):
        inputs = registry.example(job.recipe.spec, samples)
    return inputs, torch.empty(samples, dtype=torch.int64, device="meta")
