"""Models by name, and the one function that builds them."""

import numpy as np
from torch import nn

from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.gmlp import GmlpBlock
from sparse_mlp_ds.models.layers import Dropout, DropPath, Mlp
from sparse_mlp_ds.models.mixer import MixerBlock
from sparse_mlp_ds.models.presets import PRESETS
from sparse_mlp_ds.models.sparse_mlp import MakeMoE, SparseBlock, mixing
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, MoESpec, PatchSpec, TransformerSpec, VitSpec, WideNetSpec
from sparse_mlp_ds.models.vit import TransformerBlock, VisionTransformer
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.rng import stream_id


def preset(name: str) -> PatchSpec:
    """Return the spec registered as `name`. Raises UserError with the nearest name."""
    if name not in PRESETS:
        raise UserError(f"unknown model '{name}'; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def local_moe(kind: str, dim: int, spec: MoESpec, dropout: float, routing: Routing = Routing()) -> MoELayer:
    """Build an MoE layer that holds all of its experts: the default of `build`."""
    make_expert = lambda: Mlp(dim, spec.hidden, dropout)  # noqa: E731
    return MoELayer(dim, spec.experts, spec.top_k, make_expert, routing, keyed_experts=dropout > 0)


def build(spec: PatchSpec, classes: int = 0, make_moe: MakeMoE = local_moe) -> Backbone:
    """Build a model; its weights are not initialised, see `layers.init_weights`.

    classes: outputs of the head, 0 for none. make_moe: builds each MoE layer; the trainer passes one that spreads the
    experts over ranks.
    """
    rates = np.linspace(0, spec.drop_path, spec.depth).tolist()
    blocks = _BLOCKS[type(spec)](spec, rates, make_moe)
    if isinstance(spec, TransformerSpec):
        side = spec.image_size // spec.patch_size
        token = spec.pool == "cls"
        model = VisionTransformer(side, spec.patch_size, spec.width, blocks, classes, token, spec.checkpoint_blocks)
    else:
        model = Backbone(spec.patch_size, spec.width, blocks, classes, spec.checkpoint_blocks)
    for name, module in model.named_modules():
        if isinstance(module, (Router, DropPath, Dropout)):
            module.stream = stream_id(name)
    return model


def _mixer_blocks(spec: MixerSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    tokens, width = spec.inner

    def block(number: int, rate: float) -> nn.Module:
        if not spec.is_sparse(number):
            return MixerBlock(spec.tokens, spec.width, spec.token_hidden, spec.channel_hidden, spec.dropout, rate)
        shape = ((spec.tokens, tokens), (spec.width, width))
        return SparseBlock(*shape, spec.moe_s, spec.moe_c, make_moe, spec.dropout, rate, spec.rerepresent)

    return [block(number, rate) for number, rate in enumerate(rates)]


def _gmlp_blocks(spec: GmlpSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    attention = spec.attention if spec.family == "amlp" else 0
    return [GmlpBlock(spec.tokens, spec.width, spec.hidden, attention, spec.dropout, rate) for rate in rates]


def _vit_blocks(spec: VitSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    def channels(number: int) -> nn.Module:
        if spec.is_sparse(number):
            return mixing("moe_c", spec.width, spec.moe_c, make_moe, spec.dropout)
        return Mlp(spec.width, spec.channel_hidden, spec.dropout)

    return [
        TransformerBlock(number, spec.width, _attention(spec), channels(number), rate)
        for number, rate in enumerate(rates)
    ]


def _widenet_blocks(spec: WideNetSpec, rates: list[float], make_moe: MakeMoE) -> list[nn.Module]:
    # The blocks hold the same two modules; their parameters go by the names that they have in the first block.
    shared = (_attention(spec), mixing("moe_c", spec.width, spec.moe_c, make_moe, spec.dropout))
    return [TransformerBlock(number, spec.width, *shared, rate) for number, rate in enumerate(rates)]


def _attention(spec: TransformerSpec) -> Attention:
    return Attention(spec.width, spec.heads, spec.width // spec.heads, spec.width)


_BLOCKS = {MixerSpec: _mixer_blocks, GmlpSpec: _gmlp_blocks, VitSpec: _vit_blocks, WideNetSpec: _widenet_blocks}
"""(spec, stochastic depth of each block, builder of MoE layers) -> blocks, by the spec's class."""
