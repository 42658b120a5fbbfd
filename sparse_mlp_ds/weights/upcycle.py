"""From a dense Mixer to a Sparse-MLP of the same depth: block i of the one fills block i of the other.

Dense blocks and everything outside blocks are copied. A sparse block without re-represent layers gets the dense block's
norms, and every expert the whole dense MLP; its routers are drawn fresh. All experts being equal, the layer returns
sum_k g_k times the dense MLP's output, the dense output itself where the kept gate weights g_k sum to 1. Since the
gate's softmax comes before its top-k (Sparse-MLP, eq. 2), that holds if all experts are kept, if there is one expert,
or if the layer renormalizes, but not where experts choose their items. Re-represent layers have no counterpart in a
dense model: with them a sparse block starts fresh, and the sparse model is another function than the dense one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.spec import MixerSpec

_BLOCK = re.compile(r"blocks\.([0-9]+)\.(.+)")
_EXPERT = re.compile(r"(moe_[sc])\.(?:experts\.[0-9]+\.)?(fc[12]\.(?:weight|bias))")
_DENSE_MLP = {"moe_s": "mlp_tokens", "moe_c": "mlp_channels"}


@dataclass(frozen=True)
class Plan:
    """Where the sparse model's tensors come from."""

    sources: dict[str, str]
    """The sparse model's name -> the dense model's."""
    fresh: frozenset[str]
    """The sparse model's names that stay as drawn."""
    differs: tuple[str, ...]
    """Why step 0 is not the dense model; empty if it is."""


def plan(dense: dict[str, Tensor], spec: MixerSpec, model: nn.Module, names: Iterable[str], file: str | Path) -> Plan:
    """Decide what fills each tensor of the sparse model.

    dense: a dense Mixer's tensors by our names, on the grid of `spec`. model: the sparse model, asked how it routes.
    names: its tensors, with all experts. file: for messages. Raises UserError if the two do not belong together.
    """
    _check(dense, spec, file)
    sources, fresh, differs = {}, [], {}
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
    for number in filter(spec.is_sparse, range(spec.depth)):
        for kind, moe in {"moe_s": spec.moe_s, "moe_c": spec.moe_c}.items():
            why = _difference(number, kind, moe, dense, spec, model)
            if why:
                differs.setdefault(why, []).append(f"blocks.{number}.{kind}")
    return Plan(sources, frozenset(fresh), tuple(f"{', '.join(layers)}: {why}" for why, layers in differs.items()))


def in_sparse_block(name: str, spec: MixerSpec) -> bool:
    """Say whether a tensor belongs to a block that is sparse in `spec`."""
    block = _BLOCK.fullmatch(name)
    return block is not None and spec.is_sparse(int(block[1]))


def perturb(weight: Tensor, name: str, noise: float, seed: int) -> Tensor:
    """Return an expert's weight plus `noise` times its root mean square times a standard normal draw.

    Drawn from a stream keyed by (seed, name): experts differ, and each is the same wherever it lives. Biases are kept.
    """
    if noise == 0 or weight.ndim == 1:
        return weight
    generator = torch.Generator().manual_seed(rng.stream_id(f"{seed}/upcycle/{name}"))
    return weight + noise * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)


def _source(name: str) -> str | None:
    """Return the dense block's tensor that fills a sparse block's, None if there is none."""
    expert = _EXPERT.fullmatch(name)
    if expert:
        return f"{_DENSE_MLP[expert[1]]}.{expert[2]}"
    return name if name.startswith(("norm1.", "norm2.")) else None


def _fits(source: str, name: str, dense: dict[str, Tensor], spec: MixerSpec) -> bool:
    """Say whether an expert is as wide as the dense MLP; norms always fit, and what the file lacks is found later."""
    expert = _EXPERT.fullmatch(name)
    return expert is None or _hidden(dense, source.rsplit(".", 2)[0]) in (getattr(spec, expert[1]).hidden, None)


def _hidden(dense: dict[str, Tensor], mlp: str) -> int | None:
    """Return the hidden width of a dense MLP, None if the file lacks it."""
    weight = dense.get(f"{mlp}.fc1.weight")
    return None if weight is None else weight.shape[0]


def _difference(number: int, kind: str, moe, dense, spec: MixerSpec, model: nn.Module) -> str | None:
    """Say why a layer does not return what the dense MLP does; None if it does."""
    if spec.rerepresent:
        return "fresh, a dense model has no re-represent layers (model.rerepresent: false makes them copies)"
    hidden = _hidden(dense, f"blocks.{number}.{_DENSE_MLP[kind]}")
    if hidden not in (moe.hidden, None):
        return f"fresh, experts are {moe.hidden} wide and the dense MLP {hidden} (set model.{kind}.hidden to {hidden})"
    if moe.experts == 0:
        return None
    routing = model.get_submodule(f"blocks.{number}.{kind}").routing
    if routing.priority == "expert_choice":
        return "experts choose their items, whose gate weights need not sum to 1"
    if moe.top_k == moe.experts or routing.renormalize:
        return None
    return f"{moe.top_k} of {moe.experts} experts are kept, whose gate weights sum to less than 1"


def _check(dense: dict[str, Tensor], spec: MixerSpec, file: str | Path) -> None:
    if not (isinstance(spec, MixerSpec) and spec.sparse_blocks):
        raise UserError(
            f"{file}: nothing to upcycle, the model is no Mixer with sparse blocks; load it without upcycling"
        )
    sparse = next((name for name in dense if re.match(r"blocks\.[0-9]+\.(moe_|rerepresent)", name)), None)
    if sparse:
        raise UserError(f"{file}: '{sparse}' is of a sparse model already; load it without upcycling")
    depth = 1 + max((int(block[1]) for name in dense if (block := _BLOCK.fullmatch(name))), default=-1)
    if depth != spec.depth:
        raise UserError(
            f"{file}: {depth} blocks, the model has {spec.depth}; set model.dense_blocks to "
            f"{max(depth - spec.sparse_blocks, 0)} and model.sparse_blocks to {min(depth, spec.sparse_blocks)}"
        )
