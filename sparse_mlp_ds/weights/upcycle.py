"""Upcycling: fills a Sparse-MLP from a dense Mixer of the same depth, block by block.

Dense blocks and everything outside blocks are copied. A sparse block without re-represent layers gets the norms of the
dense block, and each of its experts gets the whole dense MLP; its routers keep their initial values. As all experts are
equal, such a layer returns sum_k g_k times the output of the dense MLP, which is the dense output itself where the kept
gate weights g_k sum to 1. The gate's softmax comes before its top-k (Sparse-MLP, eq. 2), so they sum to 1 if all
experts are kept, if there is only one expert, or if the layer renormalizes, but not where experts choose their items.
A dense model has nothing like re-represent layers: with them a sparse block keeps its initial values, and the sparse
model computes something different from the dense one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.spec import MixerSpec
from sparse_mlp_ds.moe.layer import MoELayer

_BLOCK = re.compile(r"blocks\.([0-9]+)\.(.+)")
_EXPERT = re.compile(r"(moe_[sc])\.(?:experts\.[0-9]+\.)?(fc[12]\.(?:weight|bias))")
_DENSE_MLP = {"moe_s": "mlp_tokens", "moe_c": "mlp_channels"}


@dataclass(frozen=True)
class Plan:
    """Which of the dense model's tensors fills each tensor of the sparse model."""

    sources: dict[str, str]
    """Name in the sparse model -> name in the dense model."""
    fresh: frozenset[str]
    """Names in the sparse model that keep their initial values."""
    differs: tuple[str, ...]
    """Why the sparse model does not compute what the dense model does; empty if it does."""


def plan(dense: dict[str, Tensor], spec: ModelSpec, model: nn.Module, names: Iterable[str], file: str | Path) -> Plan:
    """Decide what fills each tensor of the sparse model.

    Args:
        dense: Tensors of a dense Mixer under this package's names, on the patch grid of `spec`.
        spec: The sparse model.
        model: The sparse model itself, which knows how its layers route.
        names: Names of its tensors, with all experts, wherever they live.
        file: Where the dense tensors come from, for messages.

    Raises UserError if the two models do not belong together.
    """
    spec = _check(dense, spec, file)
    sources, fresh = {}, []
    for name in names:
        if not in_sparse_block(name, spec):
            sources[name] = name
            continue
        _, number, inner = name.split(".", 2)
        source = None if spec.rerepresent else _source(inner)
        if source is not None and _fits(f"blocks.{number}.{source}", inner, dense, spec):
            sources[name] = f"blocks.{number}.{source}"
        else:
            fresh.append(name)
    differs: dict[str, list[str]] = {}
    for block in filter(spec.is_sparse, range(spec.depth)):
        for kind in _DENSE_MLP:
            if why := _difference(block, kind, dense, spec, model):
                differs.setdefault(why, []).append(f"blocks.{block}.{kind}")
    return Plan(sources, frozenset(fresh), tuple(f"{', '.join(layers)}: {why}" for why, layers in differs.items()))


def in_sparse_block(name: str, spec: ModelSpec) -> bool:
    """Return whether a tensor belongs to a block that is sparse in `spec`."""
    block = _BLOCK.fullmatch(name)
    return block is not None and isinstance(spec, MixerSpec) and spec.is_sparse(int(block[1]))


def perturb(weight: Tensor, name: str, noise: float, seed: int) -> Tensor:
    """Return an expert's weight with noise, so that the experts of a layer differ; biases are returned unchanged.

    The noise is a standard normal draw, `noise` times as large as the root mean square of the weight. It depends only
    on (seed, name), so an expert gets the same noise on whichever rank it lives.
    """
    if noise == 0 or weight.ndim == 1:
        return weight
    generator = torch.Generator().manual_seed(rng.stream_id(f"{seed}/upcycle/{name}"))
    return weight + noise * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)


def _source(name: str) -> str | None:
    """Return which of the dense block's tensors fills one of the sparse block's, None if none does."""
    expert = _EXPERT.fullmatch(name)
    if expert:
        return f"{_DENSE_MLP[expert[1]]}.{expert[2]}"
    return name if name.startswith(("norm1.", "norm2.")) else None


def _fits(source: str, name: str, dense: dict[str, Tensor], spec: MixerSpec) -> bool:
    """Return whether an expert is as wide as the dense MLP; true for norms, and for what the file lacks.

    source: name of the dense tensor. name: name inside the sparse block.
    """
    expert = _EXPERT.fullmatch(name)
    return expert is None or _hidden(dense, source.rsplit(".", 2)[0]) in (getattr(spec, expert[1]).hidden, None)


def _hidden(dense: dict[str, Tensor], mlp: str) -> int | None:
    """Return the hidden width of a dense MLP, None if the file lacks it."""
    weight = dense.get(f"{mlp}.fc1.weight")
    return None if weight is None else weight.shape[0]


def _difference(block: int, kind: str, dense: dict[str, Tensor], spec: MixerSpec, model: nn.Module) -> str | None:
    """Return why a layer does not compute what the dense MLP does, None if it does.

    Args:
        block: Number of the sparse block.
        kind: Mixing type of the layer, `moe_s` or `moe_c`.
        dense: Tensors of the dense model.
        spec: The sparse model.
        model: The sparse model itself.
    """
    if spec.rerepresent:
        return "fresh, a dense model has no re-represent layers (model.rerepresent: false makes them copies)"
    moe: MoESpec = getattr(spec, kind)
    hidden = _hidden(dense, f"blocks.{block}.{_DENSE_MLP[kind]}")
    if hidden not in (moe.hidden, None):
        return f"fresh, experts are {moe.hidden} wide and the dense MLP {hidden} (set model.{kind}.hidden to {hidden})"
    if moe.experts == 0:
        return None
    layer = model.get_submodule(f"blocks.{block}.{kind}")
    assert isinstance(layer, MoELayer)
    if moe.shared:
        return f"a shared expert with new weights is added (model.{kind}.shared: 0 has none)"
    if layer.routing.priority == "expert_choice":
        return "experts choose their items, whose gate weights need not sum to 1"
    if layer.routing.gate_scale != 1:
        return f"gate weights are multiplied by {layer.routing.gate_scale:g}"
    if moe.top_k == moe.experts or layer.routing.renormalize:
        return None
    return f"{moe.top_k} of {moe.experts} experts are kept, whose gate weights sum to less than 1"


def _check(dense: dict[str, Tensor], spec: ModelSpec, file: str | Path) -> MixerSpec:
    """Return `spec`. Raises UserError unless it is sparse, and the file holds a dense Mixer of the same depth."""
    if not (isinstance(spec, MixerSpec) and spec.sparse_blocks):
        raise UserError(f"{file}: nothing to upcycle, the model has no sparse Mixer blocks; load it without upcycling")
    sparse = next((name for name in dense if re.match(r"blocks\.[0-9]+\.(moe_|rerepresent)", name)), None)
    if sparse:
        raise UserError(f"{file}: '{sparse}' belongs to a sparse model already; load it without upcycling")
    depth = 1 + max((int(block[1]) for name in dense if (block := _BLOCK.fullmatch(name))), default=-1)
    if depth != spec.depth:
        raise UserError(
            f"{file}: {depth} blocks, the model has {spec.depth}; set model.dense_blocks to "
            f"{max(depth - spec.sparse_blocks, 0)} and model.sparse_blocks to {min(depth, spec.sparse_blocks)}"
        )
    return spec
