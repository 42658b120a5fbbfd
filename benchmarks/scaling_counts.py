"""Which collectives a training step of a Sparse-MLP has, with how many bytes: counted from the model's spec alone.

For one micro-batch per step, ZeRO 1 or 2 as DeepSpeed ships it, without dropout (whose draws would travel with the
rows). Held against what real ranks send by tests/ranks/test_scaling_counts.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import MixerSpec
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.ssl.moco import OnlineNet

FLOAT32, INT64 = 4, 8


@dataclass(frozen=True)
class Mixture:
    """One MoE layer."""

    kind: str
    """`moe_s`, which routes channels, or `moe_c`, which routes patches."""
    items: int
    """Items per image."""
    width: int
    """Length of an item."""
    experts: int
    top_k: int

    def row_bytes(self, images: int, size: int) -> int:
        """Return the bytes of all rows of a rank's images if nothing is dropped, one way; size: of a number."""
        return images * self.items * self.top_k * self.width * size

    def padded_bytes(self, images: int, size: int, factor: float) -> int:
        """Return the same for DeepSpeed's stock layer, which sends every expert a full buffer of its capacity."""
        capacity = max(math.ceil(images * self.items * self.top_k / self.experts * factor), 4)
        return self.experts * capacity * self.width * size


@dataclass(frozen=True)
class Collective:
    """Calls of one kind for one purpose."""

    what: str
    kind: str
    """`all_to_all`, `all_reduce` or `all_gather`."""
    ranks: int
    """Ranks of its group."""
    stride: int
    """Distance between neighbours of the group, in ranks: 1 for consecutive ones."""
    bytes: int
    """What one rank brings, over all calls."""
    calls: int = 1


def mixtures(spec: MixerSpec) -> list[Mixture]:
    """Return a model's MoE layers in the order in which a tensor meets them."""
    tokens, width = spec.inner
    sizes = {"moe_s": (width, tokens), "moe_c": (tokens, width)}
    block = [Mixture(kind, *sizes[kind], moe.experts, moe.top_k) for kind, moe in spec.experts.items()]
    return block * spec.sparse_blocks


def supervised(
    spec: MixerSpec, classes: int, world: int, ep: Mapping[str, int], images: int, size: int
) -> list[Collective]:
    """Return a supervised step's collectives on one of `world` ranks, those of a single rank left out.

    ep: ranks that share one set of experts, by kind. images: per rank. size: bytes of a number, 2 under bf16.
    """
    module = _on_meta(lambda: registry.build(spec, classes))
    return _real([*_mixing(spec, ep, images, size, backward=True), *_update(module, world, ep, size)])


def pretraining(
    spec: MixerSpec, hidden: int, dim: int, world: int, ep: Mapping[str, int], images: int, size: int
) -> list[Collective]:
    """Return a MoCo v3 step's collectives; its patch projection is frozen and its momentum net float32."""
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


def online_net(spec: MixerSpec, hidden: int, dim: int) -> OnlineNet:
    """Return MoCo's online net without memory behind it."""
    module = _on_meta(lambda: OnlineNet(registry.build(spec), hidden, dim))
    module.backbone.patch_embed.requires_grad_(False)
    return module


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _real(collectives: list[Collective]) -> list[Collective]:
    return [collective for collective in collectives if collective.ranks > 1]


def _mixing(spec: MixerSpec, ep: Mapping[str, int], images: int, size: int, backward: bool) -> list[Collective]:
    """Rows go to their experts and back, in the backward pass once more; ahead of them goes how many there are."""
    found = []
    for mixture in mixtures(spec):
        ranks, rows = ep[mixture.kind], mixture.row_bytes(images, size)
        calls = 4 if backward else 2
        found.append(Collective("row counts", "all_to_all", ranks, 1, mixture.experts * INT64))
        found.append(Collective("rows", "all_to_all", ranks, 1, calls * rows, calls))
    return found


def _kinds(module: nn.Module) -> dict[tuple[str, bool], list[nn.Parameter]]:
    """Trained parameters by where they live (`world`, `moe_s` or `moe_c`) and optimizer group."""
    routers = {m.weight for m in module.modules() if isinstance(m, Router)}
    found: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            place = name.split(".experts.")[0].rsplit(".", 1)[-1] if ".experts." in name else "world"
            group = "router" if parameter in routers else "no_decay" if parameter.ndim == 1 else "decay"
            found.setdefault((place, group), []).append(parameter)
    return found


def _groups(
    module: nn.Module, world: int, ep: Mapping[str, int]
) -> list[tuple[str, int, int, str, list[nn.Parameter]]]:
    """(what, ranks that hold the same, stride, optimizer group, one rank's numbers) of each ZeRO group."""
    merged: dict[tuple[int, str], list[tuple[nn.Parameter, int]]] = {}
    for (place, group), parameters in _kinds(module).items():
        share = 0 if place == "world" else ep[place]  # 0: not spread
        merged.setdefault((share, group), []).extend((p, max(share, 1)) for p in parameters)
    return [
        ("experts" if share else "dense", world // max(share, 1), max(share, 1), group, members)
        for (share, group), members in merged.items()
    ]


def _update(module: nn.Module, world: int, ep: Mapping[str, int], size: int) -> list[Collective]:
    """ZeRO's step: one all-reduce of all gradients per group of ranks, norms, one all-gather per optimizer group."""
    groups, found, gradients = _groups(module, world, ep), [], {}
    for what, ranks, stride, _, members in groups:
        numbers = sum(parameter.numel() // share for parameter, share in members)
        gradients[what, ranks, stride] = gradients.get((what, ranks, stride), 0) + numbers
    for (what, ranks, stride), numbers in gradients.items():
        found.append(Collective(f"{what} gradients", "all_reduce", ranks, stride, numbers * size))
    found.append(Collective("overflow", "all_reduce", world, 1, 1))
    for what, ranks, stride, group, members in groups:
        found.append(Collective("norm", "all_reduce", world, 1, FLOAT32))
        if what == "experts":
            found.append(Collective("norm", "all_reduce", ranks, stride, FLOAT32))
        numbers = sum(parameter.numel() // share for parameter, share in members)
        own = 2 * math.ceil(numbers / (2 * ranks))  # ZeRO pads every group to an even number per rank
        item = FLOAT32 if group == "router" else size
        found.append(Collective(f"{what} weights", "all_gather", ranks, stride, own * item))
    return found


def _masters(module: nn.Module, world: int, ep: Mapping[str, int], size: int) -> list[Collective]:
    """What the momentum net follows: each bf16 parameter's float32 master, put together from its ranks' pieces."""
    if size == FLOAT32:
        return []
    found = []
    for what, ranks, stride, group, members in _groups(module, world, ep):
        if group != "router":  # float32 already
            # A spread layer's tensors are spread whole: a rank holds one in `share` of them.
            tensors = sum(1 / share for _, share in members)
            numbers = sum(parameter.numel() // share for parameter, share in members)
            found.append(Collective(f"{what} masters", "all_reduce", ranks, stride, numbers * FLOAT32, round(tensors)))
    return found


def _heads(hidden: int, dim: int, world: int, images: int) -> list[Collective]:
    """Batch norms over the global batch (mean, then variance, and both gradients), and the keys of all ranks."""
    projector, predictor = (hidden, hidden, dim), (hidden, dim)
    sizes = [(width, 4) for width in projector + predictor] + [(width, 2) for width in projector]
    norms = sum((width + 0.5) * calls for width, calls in sizes) * FLOAT32  # the mean brings a number of rows along
    return [
        Collective("batch norm", "all_reduce", world, 1, norms, sum(calls for _, calls in sizes)),
        Collective("keys", "all_gather", world, 1, 2 * images * dim * FLOAT32, 2),
    ]
