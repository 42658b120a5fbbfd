"""Models by name, and the one function that builds them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.deit import DistilledVisionTransformer
from sparse_mlp_ds.models.gmlp import GmlpBlock
from sparse_mlp_ds.models.language import Bert, BertAttention, TextBackbone
from sparse_mlp_ds.models.layers import Affine, Dropout, DropPath, Mlp, PatchEmbed
from sparse_mlp_ds.models.mixer import MixerBlock
from sparse_mlp_ds.models.presets import PRESETS
from sparse_mlp_ds.models.resmlp import ResMlpBlock
from sparse_mlp_ds.models.sparse_mlp import MakeMoE, SparseBlock, make_expert, mixing
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, PatchSpec, ResMlpSpec, TransformerSpec, VitSpec, WideNetSpec
from sparse_mlp_ds.models.text_spec import BertSpec, GmlpTextSpec, MixerTextSpec, TextSpec
from sparse_mlp_ds.models.vit import TransformerBlock, VisionTransformer
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.rng import stream_id


def preset(name: str) -> ModelSpec:
    """Return the spec registered as `name`. Raises UserError, which suggests the nearest name."""
    if name not in PRESETS:
        raise UserError(f"unknown model '{name}'; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def local_moe(kind: str, dim: int, spec: MoESpec, dropout: float, routing: Routing = Routing()) -> MoELayer:
    """Build an MoE layer that holds all of its experts on this process; `build` uses it by default.

    Args:
        kind: mixing type, `moe_s` or `moe_c`.
        dim: item length D.
        spec: the experts.
        dropout: rate inside the experts.
        routing: how the layer routes.
    """
    shape = (dim, spec.experts, spec.top_k, lambda: make_expert(dim, spec, dropout))
    return MoELayer(*shape, routing, keyed_experts=dropout > 0)


def build(spec: ModelSpec, classes: int = 0, make_moe: MakeMoE = local_moe) -> Backbone:
    """Build a model, whose weights are not initialised yet (see `layers.init_weights`).

    Args:
        spec: what the model is.
        classes: outputs of the head; 0 builds no head.
        make_moe: builds each MoE layer. The trainer passes one that spreads the experts over ranks.
    """
    model = _frame(spec, classes, _blocks(spec, make_moe))
    for name, module in model.named_modules():
        if isinstance(module, DropPath):
            module.stream = stream_id(name)
        elif isinstance(module, (Router, Dropout)):
            module.stream = torch.tensor(stream_id(name))
    return model


def example(spec: ModelSpec, count: int = 1) -> Tensor:
    """Return `count` inputs of zeros, as the model takes them: images, or rows of tokens."""
    return torch.zeros(count, *spec.input_shape, dtype=torch.int64 if isinstance(spec, TextSpec) else torch.float32)


def _frame(spec: ModelSpec, classes: int, blocks: list[nn.Module]) -> Backbone:
    """Return a model around its blocks."""
    if isinstance(spec, TransformerSpec):
        side = spec.image_size // spec.patch_size
        frame = (side, spec.patch_size, spec.width, blocks)
        options: dict[str, Any] = {"checkpoint_blocks": spec.checkpoint_blocks, "positions": spec.positions}
        if spec.distillation_token:
            return DistilledVisionTransformer(*frame, classes=classes, **options)
        options |= {"tokens": spec.extra_tokens, "representation": spec.representation}
        return VisionTransformer(*frame, classes=classes, **options)
    if isinstance(spec, TextSpec):
        text = (spec.vocabulary, spec.width, blocks, classes, spec.checkpoint_blocks, spec.pool)
        return Bert(spec.length, *text) if isinstance(spec, BertSpec) else TextBackbone(*text)
    assert isinstance(spec, PatchSpec)
    stem = PatchEmbed(spec.patch_size, spec.width)
    options = {"norm": Affine} if isinstance(spec, ResMlpSpec) else {}
    return Backbone(stem, spec.width, blocks, classes, spec.checkpoint_blocks, **options)


def _blocks(spec: ModelSpec, make_moe: MakeMoE) -> list[nn.Module]:
    rates = np.linspace(0, spec.drop_path, spec.depth).tolist()  # stochastic depth of each block
    match spec:
        case MixerSpec():
            return _mixer_blocks(spec, rates, make_moe)
        case GmlpSpec():
            return _gmlp_blocks(spec, rates)
        case GmlpTextSpec():
            return _gmlp_text_blocks(spec, rates, make_moe)
        case BertSpec():
            return _vit_blocks(spec, rates, make_moe)
        case MixerTextSpec():
            shape = (spec.tokens, spec.width, spec.token_hidden, spec.channel_hidden, spec.dropout)
            return [MixerBlock(*shape, rate) for rate in rates]
        case ResMlpSpec():
            scaled = (spec.tokens, spec.width, spec.channel_hidden, spec.layer_scale, spec.dropout)
            return [ResMlpBlock(*scaled, rate) for rate in rates]
        case VitSpec():
            return _vit_blocks(spec, rates, make_moe)
        case WideNetSpec():
            return _widenet_blocks(spec, rates, make_moe)
    raise TypeError(f"no blocks for {type(spec).__name__}")


def _mixer_blocks(spec: MixerSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    tokens, width = spec.inner

    def block(number: int, rate: float) -> nn.Module:
        if not spec.is_sparse(number):
            return MixerBlock(spec.tokens, spec.width, spec.token_hidden, spec.channel_hidden, spec.dropout, rate)
        assert spec.moe_s and spec.moe_c  # of every spec with sparse blocks
        shape = ((spec.tokens, tokens), (spec.width, width))
        block = (*shape, spec.moe_s, spec.moe_c, make_moe, spec.dropout, rate)
        return SparseBlock(*block, spec.rerepresent, spec.skip_after_norm, spec.rerepresent_skip)

    return [block(number, rate) for number, rate in enumerate(rates)]


def _gmlp_blocks(spec: GmlpSpec, rates: list[float]) -> list[nn.Module]:
    attention = spec.attention if spec.family == "amlp" else 0
    return [GmlpBlock(spec.tokens, spec.width, spec.hidden, attention, spec.dropout, rate) for rate in rates]


def _gmlp_text_blocks(spec: GmlpTextSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    tokens, width = spec.tokens, spec.width
    attention = spec.attention if spec.family == "amlp_text" else 0

    def block(number: int, rate: float) -> nn.Module:
        if spec.is_sparse_block(number):
            assert spec.moe_s and spec.moe_c  # of every spec with sparse blocks
            experts = (spec.moe_s, spec.moe_c, make_moe)
            return SparseBlock((tokens, tokens), (width, width), *experts, spec.dropout, rate, rerepresent=False)
        channels = None
        if spec.moe_c and spec.is_sparse(number):
            channels = mixing("moe_c", width, spec.moe_c, make_moe, spec.dropout)
        shape = (tokens, width, spec.hidden, attention, spec.dropout, rate)
        return GmlpBlock(*shape, spec.gate, toeplitz=True, channels=channels)

    return [block(number, rate) for number, rate in enumerate(rates)]


def _vit_blocks(spec: VitSpec | BertSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    def channels(number: int) -> nn.Module:
        if spec.moe_c and spec.is_sparse(number):
            return mixing("moe_c", spec.width, spec.moe_c, make_moe, spec.dropout)
        return Mlp(spec.width, spec.channel_hidden, spec.dropout)

    return [TransformerBlock(spec.width, _attention(spec), channels(number), rate) for number, rate in enumerate(rates)]


def _widenet_blocks(spec: WideNetSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    # All blocks hold the same two modules, whose parameters have the names that they get in the first block.
    shared = (_attention(spec), mixing("moe_c", spec.width, spec.moe_c, make_moe, spec.dropout))
    return [TransformerBlock(spec.width, *shared, rate) for rate in rates]


def _attention(spec: TransformerSpec | BertSpec) -> Attention:
    kind = BertAttention if isinstance(spec, BertSpec) else Attention
    return kind(spec.width, spec.heads, spec.width // spec.heads, spec.width)
