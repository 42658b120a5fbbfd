"""Models by name: presets of the papers and of the embedded recipe, and the one function that builds them."""

import numpy as np

from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.layers import DropPath, Mlp
from sparse_mlp_ds.models.mixer import MixerBlock, PatchMixer
from sparse_mlp_ds.models.sparse_mlp import MakeMoE, SparseBlock
from sparse_mlp_ds.models.spec import MixerSpec, MoESpec, PatchSpec
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.rng import stream_id


def _mixer(blocks: int, width: int, token_hidden: int, patch_size: int, image_size: int = 224) -> MixerSpec:
    """MLP-Mixer, table 1: the channel-mixing MLP is four times as wide as the model."""
    return MixerSpec(
        family="mixer",
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        token_hidden=token_hidden,
        channel_hidden=4 * width,
        dense_blocks=blocks,
    )


def _sparse(dense: MixerSpec, blocks: tuple[int, int], width: int, moe_s: MoESpec, moe_c: MoESpec) -> MixerSpec:
    """Sparse-MLP, table 2: blocks (L1, L2), twice the patches inside a sparse block."""
    return dense.model_copy(
        update={
            "family": "sparse_mlp",
            "dense_blocks": blocks[0],
            "sparse_blocks": blocks[1],
            "sparse_tokens": 2 * dense.tokens,
            "sparse_width": width,
            "moe_s": moe_s,
            "moe_c": moe_c,
        }
    )


def _presets() -> dict[str, PatchSpec]:
    s16, b16, l16 = _mixer(8, 512, 256, 16), _mixer(12, 768, 384, 16), _mixer(24, 1024, 512, 16)
    experts = MoESpec
    digits = _mixer(4, 96, 64, patch_size=4, image_size=16)
    return {
        "mixer_s16": s16,
        "mixer_b16": b16,
        "mixer_l16": l16,
        "sparse_mlp_s16": _sparse(s16, (6, 2), 512, experts(experts=4, hidden=512), experts(experts=0, hidden=2048)),
        "sparse_mlp_b16": _sparse(
            b16, (10, 2), 384, experts(experts=8, hidden=768), experts(experts=4, top_k=2, hidden=1536)
        ),
        "sparse_mlp_l16": _sparse(
            b16, (8, 6), 384, experts(experts=16, hidden=768), experts(experts=4, top_k=2, hidden=1536)
        ),
        "mixer_digits": digits,
        "sparse_mlp_digits": _sparse(
            digits, (3, 1), 48, experts(experts=4, hidden=128), experts(experts=4, top_k=2, hidden=192)
        ),
    }


PRESETS = _presets()


def preset(name: str) -> PatchSpec:
    """Return the spec registered as `name`. Raises UserError with the nearest name."""
    if name not in PRESETS:
        raise UserError(f"unknown model '{name}'; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def local_moe(kind: str, dim: int, spec: MoESpec) -> MoELayer:
    """Build an MoE layer that holds all of its experts: the default of `build`."""
    return MoELayer(dim, spec.experts, spec.top_k, lambda: Mlp(dim, spec.hidden))


def build(spec: PatchSpec, classes: int = 0, make_moe: MakeMoE = local_moe) -> PatchMixer:
    """Build a model; its weights are not initialised, see `layers.init_weights`.

    classes: outputs of the head, 0 for none. make_moe: builds each MoE layer; the trainer passes one that spreads the
    experts over ranks.
    """
    rates = np.linspace(0, spec.drop_path, spec.depth).tolist()
    blocks = [
        _sparse_block(spec, rate, make_moe) if spec.is_sparse(block) else _dense_block(spec, rate)
        for block, rate in enumerate(rates)
    ]
    model = PatchMixer(spec.patch_size, spec.width, blocks, classes)
    for name, module in model.named_modules():
        if isinstance(module, (Router, DropPath)):
            module.stream = stream_id(name)
    return model


def _dense_block(spec: MixerSpec, drop_path: float) -> MixerBlock:
    return MixerBlock(spec.tokens, spec.width, spec.token_hidden, spec.channel_hidden, drop_path)


def _sparse_block(spec: MixerSpec, drop_path: float, make_moe: MakeMoE) -> SparseBlock:
    tokens, width = spec.inner
    return SparseBlock(
        (spec.tokens, tokens), (spec.width, width), spec.moe_s, spec.moe_c, make_moe, drop_path, spec.rerepresent
    )
