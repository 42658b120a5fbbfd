"""Counts the collectives of a training step, and their bytes, from the model's spec alone.

The counts hold for one micro-batch per step, ZeRO 1 or 2 as DeepSpeed ships it, and no dropout (whose keys would travel
with the rows). tests/ranks/test_step_collectives.py compares them with what real ranks send.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from sparse_mlp_ds.config.stages import FinetuneSpan, MaskedLM, Pretrain, Probe
from sparse_mlp_ds.distributed.network_model import Collective
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.language import MaskedModel
from sparse_mlp_ds.models.spec import MixerSpec
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.ssl.networks import OnlineNet
from sparse_mlp_ds.train.job import Job

FLOAT32, HALF, INT64 = 4, 2, 8
M = TypeVar("M", bound=nn.Module)
Members = list[tuple[nn.Parameter, int]]
"""Parameters, each with the number of ranks over which it is spread."""


@dataclass(frozen=True)
class Mixture:
    """The sizes of one MoE layer."""

    kind: str
    """`moe_s`, which routes channels or chunks of them, or `moe_c`, which routes patches or tokens."""
    items: int
    """Items per image."""
    width: int
    """Length of an item."""
    experts: int
    """Number of experts."""
    top_k: int
    """Experts per item."""

    def row_bytes(self, images: int, size: int) -> int:
        """Return the bytes of all rows of a rank's images, one way, if nothing is dropped. size: bytes of a number."""
        return images * self.items * self.top_k * self.width * size

    def padded_bytes(self, images: int, size: int, factor: float) -> int:
        """Return the bytes that DeepSpeed's own layer sends one way: a full buffer of its capacity to every expert.

        images: of a rank. size: bytes of a number. factor: capacity factor.
        """
        capacity = max(math.ceil(images * self.items * self.top_k / self.experts * factor), 4)
        return self.experts * capacity * self.width * size


def mixtures(spec: ModelSpec) -> list[Mixture]:
    """Return a model's MoE layers in the order in which a tensor meets them."""
    tokens, width = spec.inner if isinstance(spec, MixerSpec) else (spec.tokens, spec.width)
    block = []
    for kind, moe in spec.experts.items():
        items, length = (width // moe.chunk, tokens * moe.chunk) if kind == "moe_s" else (tokens, width)
        block.append(Mixture(kind, items, length, moe.experts, moe.top_k))
    if not block:
        return []
    layers = sum(isinstance(module, MoELayer) for module in _on_meta(lambda: registry.build(spec)).modules())
    return block * (layers // len(block))


def of_first_stage(job: Job) -> list[Collective]:
    """Return the collectives of a step of the first stage of a run that trains the backbone.

    Raises UserError under ZeRO-3, whose collectives are different ones.
    """
    if job.ds_config.zero_stage == 3:
        raise UserError(f"{job.ds_config.path}: the collectives of ZeRO-3 are not known here; give one of ZeRO 1 or 2")
    spec, classes = job.recipe.spec, job.recipe.data.class_count
    size = FLOAT32 if job.ds_config.precision == "float32" else HALF
    for name, batch in job.batches.items():
        stage = job.recipe.stages[name]
        if isinstance(stage, Pretrain):
            return pretraining(spec, stage.hidden, stage.dim, job.world, job.ep_sizes, batch.micro, size)
        if isinstance(stage, MaskedLM):
            masked = _on_meta(lambda: MaskedModel(registry.build(spec), job.text.vocabulary))
            return training(masked, spec, job.world, job.ep_sizes, batch.micro, size)
        if not isinstance(stage, Probe):
            outputs = 2 if isinstance(stage, FinetuneSpan) else classes
            return supervised(spec, outputs, job.world, job.ep_sizes, batch.micro, size)
    return []


def supervised(
    spec: ModelSpec, classes: int, world: int, ep: Mapping[str, int], images: int, size: int
) -> list[Collective]:
    """Return the collectives of a supervised step on one rank, without those of groups that are a single rank.

    Args:
        spec: The model.
        classes: Outputs of the head.
        world: Number of ranks.
        ep: Ranks that share one set of experts, by mixing type.
        images: Images per rank.
        size: Bytes of a number: 2 under bf16, 4 under float32.
    """
    return training(_on_meta(lambda: registry.build(spec, classes)), spec, world, ep, images, size)


def training(
    module: nn.Module, spec: ModelSpec, world: int, ep: Mapping[str, int], samples: int, size: int
) -> list[Collective]:
    """Return the collectives of a step that trains a module whose one pass per sample goes through one model.

    Args:
        module: What is trained, on any device.
        spec: The model.
        world: Number of ranks.
        ep: Ranks that share one set of experts, by mixing type.
        samples: Samples per rank.
        size: Bytes of a number: 2 under bf16, 4 under float32.
    """
    return _real([*_mixing(spec, ep, samples, size, backward=True), *_update(module, world, ep, size)])


def pretraining(
    spec: ModelSpec, hidden: int, dim: int, world: int, ep: Mapping[str, int], images: int, size: int
) -> list[Collective]:
    """Return the collectives of a MoCo v3 step; the patch projection is frozen and the momentum net is float32.

    Args:
        spec: The model.
        hidden: Hidden width of projector and predictor.
        dim: Output width of projector and predictor.
        world: Number of ranks.
        ep: Ranks that share one set of experts, by mixing type.
        images: Images per rank.
        size: Bytes of a number: 2 under bf16, 4 under float32.
    """
    module = online_net(spec, hidden, dim)
    crops = 2 * images
    return _real(
        [
            *_masters(module, world, ep, size),
            *_mixing(spec, ep, crops, size, backward=True),
            *_mixing(spec, ep, crops, FLOAT32, backward=False),
            *_heads(hidden, dim, world, images),
            *_update(module, world, ep, size),
        ]
    )


def online_net(spec: ModelSpec, hidden: int, dim: int) -> OnlineNet:
    """Return MoCo's online net without allocating memory for it."""
    module = _on_meta(lambda: OnlineNet(registry.build(spec), hidden, dim))
    module.backbone.patch_embed.requires_grad_(False)
    return module


def _on_meta(build: Callable[[], M]) -> M:
    with torch.device("meta"):
        return build()


def _real(collectives: list[Collective]) -> list[Collective]:
    return [collective for collective in collectives if collective.ranks > 1]


def _mixing(spec: ModelSpec, ep: Mapping[str, int], images: int, size: int, backward: bool) -> list[Collective]:
    """Rows travel to their experts and back, in the backward pass again; the counts of rows travel ahead of them."""
    collectives = []
    for mixture in mixtures(spec):
        ranks, rows = ep[mixture.kind], mixture.row_bytes(images, size)
        calls = 4 if backward else 2
        collectives.append(Collective("row counts", "all_to_all", ranks, 1, mixture.experts * INT64))
        collectives.append(Collective("rows", "all_to_all", ranks, 1, calls * rows, calls))
    return collectives


def _kinds(module: nn.Module) -> dict[tuple[str, str], list[nn.Parameter]]:
    """Return the trained parameters by owner (`moe_s`, `moe_c` or `world`, all ranks) and optimizer group."""
    routers = {m.weight for m in module.modules() if isinstance(m, Router)}
    parameters: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            owner = name.split(".experts.")[0].rsplit(".", 1)[-1] if ".experts." in name else "world"
            group = "router" if parameter in routers else "no_decay" if parameter.ndim == 1 else "decay"
            parameters.setdefault((owner, group), []).append(parameter)
    return parameters


def _groups(module: nn.Module, world: int, ep: Mapping[str, int]) -> list[tuple[str, int, int, str, Members]]:
    """Return of each ZeRO group: what, ranks with the same parameters, stride, optimizer group, (parameter, share)."""
    merged: dict[tuple[int, str], Members] = {}
    for (owner, group), parameters in _kinds(module).items():
        share = 0 if owner == "world" else ep[owner]  # 0: every rank has the whole parameter
        merged.setdefault((share, group), []).extend((p, max(share, 1)) for p in parameters)
    return [
        ("experts" if share else "dense", world // max(share, 1), max(share, 1), group, members)
        for (share, group), members in merged.items()
    ]


def _update(module: nn.Module, world: int, ep: Mapping[str, int], size: int) -> list[Collective]:
    """In ZeRO's step: one all-reduce of all gradients per group of ranks, norms, one all-gather per optimizer group."""
    groups, collectives = _groups(module, world, ep), []
    gradients: dict[tuple[str, int, int], int] = {}
    for what, ranks, stride, _, members in groups:
        numbers = sum(parameter.numel() // share for parameter, share in members)
        gradients[what, ranks, stride] = gradients.get((what, ranks, stride), 0) + numbers
    for (what, ranks, stride), numbers in gradients.items():
        collectives.append(Collective(f"{what} gradients", "all_reduce", ranks, stride, numbers * size))
    for what, ranks, stride, group, members in groups:
        collectives.append(Collective("norm", "all_reduce", world, 1, FLOAT32))
        if what == "experts":
            collectives.append(Collective("norm", "all_reduce", ranks, stride, FLOAT32))
        item = FLOAT32 if group == "router" else size
        collectives.append(Collective(f"{what} weights", "all_gather", ranks, stride, _piece(ranks, members) * item))
    return collectives


def _masters(module: nn.Module, world: int, ep: Mapping[str, int], size: int) -> list[Collective]:
    """For the momentum net each bf16 parameter's float32 master is put together from the pieces of its ranks."""
    if size == FLOAT32:
        return []
    return [
        Collective(f"{what} masters", "all_gather", ranks, stride, _piece(ranks, members) * FLOAT32)
        for what, ranks, stride, group, members in _groups(module, world, ep)
        if group != "router"  # float32 already
    ]


def _piece(ranks: int, members: Members) -> int:
    """Return how many numbers of a group each of its ranks holds: ZeRO pads them to an even number."""
    return 2 * math.ceil(sum(parameter.numel() // share for parameter, share in members) / (2 * ranks))


def _heads(hidden: int, dim: int, world: int, images: int) -> list[Collective]:
    """Batch norms over each view's global batch (means, variances and their gradients), and the keys of all ranks."""
    projector, predictor = (hidden, hidden, dim), (hidden, dim)
    sizes = [(width, 4) for width in projector + predictor] + [(width, 2) for width in projector]
    # Two views have statistics of their own; the means bring the number of images along.
    norms = sum((4 * width + 1) * calls for width, calls in sizes) * FLOAT32 // 2
    return [
        Collective("batch norm", "all_reduce", world, 1, norms, sum(calls for _, calls in sizes)),
        Collective("keys", "all_gather", world, 1, 2 * images * dim * FLOAT32, 2),
    ]
