"""The models of the papers and of the shipped recipes, by name.

A preset says what a model is, not how it is trained: `drop_path` and `dropout` are set by recipes (gMLP: drop_path 0.05
for S, 0.2 for B; WideNet: dropout 0.1).
"""

from typing import Literal

from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, PatchSpec, ResMlpSpec, VitSpec, WideNetSpec
from sparse_mlp_ds.models.text_presets import text_presets


def _mixer(blocks: int, width: int, token_hidden: int, patch_size: int, image_size: int = 224) -> MixerSpec:
    """Return an MLP-Mixer (its table 1), whose channel-mixing MLP is four times as wide as the model."""
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
    """Return a Sparse-MLP (its table 2): blocks (L1, L2), and twice as many patches inside a sparse block."""
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


def _nano() -> dict[str, MixerSpec]:
    """Return the three models of docs/small_models.md, for CIFAR on one core of a laptop; in none of the papers.

    They take the same multiply-accumulates to 1 %: the Mixer's dense MLPs make up for what the sparse ones add.
    """
    mixer = _mixer(4, 48, 16, patch_size=8, image_size=32).model_copy(update={"channel_hidden": 148})
    paper = mixer.model_copy(update={"channel_hidden": 96})
    plus = mixer.model_copy(update={"channel_hidden": 136, "rerepresent": False})
    return {
        "mixer_n8": mixer,
        "sparse_mlp_n8": _sparse(
            paper, (2, 2), 24, MoESpec(experts=8, hidden=32), MoESpec(experts=8, top_k=2, hidden=48)
        ),
        "sparse_mlp_plus_n8": _sparse(
            plus, (2, 2), 24, MoESpec(experts=0, hidden=16), MoESpec(experts=32, top_k=4, hidden=36)
        ),
    }


def _gmlp(family: Literal["gmlp", "amlp"], width: int) -> GmlpSpec:
    """Return a gMLP or aMLP (gMLP's table 1): 30 blocks, six times as wide inside as outside.

    The paper's sizes of gMLP, 5.9, 19.5 and 73.4 M, include a head for 1000 classes.
    """
    return GmlpSpec(family=family, image_size=224, patch_size=16, width=width, depth=30, hidden=6 * width)


def _vit(depth: int, width: int, heads: int, patch_size: int = 16) -> VitSpec:
    """Return a ViT with a class token, whose MLPs are four times as wide as the model.

    With a head for 1000 classes, ViT-B has 86 M parameters and ViT-L 304 M.
    """
    return VitSpec(
        family="vit",
        image_size=224,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        channel_hidden=4 * width,
        pool="cls",
    )


def _vmoe(dense: VitSpec, placement: str, experts: int) -> VitSpec:
    """Return a V-MoE with two experts per patch, each as wide as the MLP it replaces, and the mean as features."""
    moe = MoESpec(experts=experts, top_k=2, hidden=dense.channel_hidden)
    return dense.model_copy(update={"family": "vmoe", "pool": "mean", "moe_placement": placement, "moe_c": moe})


def _vit_moe(dense: VitSpec, placement: str) -> VitSpec:
    """Return a ViT-MoE, which WideNet's paper compares with; 128 M (B) and 406 M (L) with a head for 1000 classes.

    As in the authors' code, experts are 4096 wide, positions are learned, and the head has a representation layer.
    """
    moe = MoESpec(experts=4, top_k=2, hidden=4096)
    return _vmoe(dense, placement, 4).model_copy(update={"moe_c": moe, "positions": "learned", "representation": True})


def _resmlp(depth: int, width: int, layer_scale: float) -> ResMlpSpec:
    """Return a ResMLP (its table 1), whose MLPs are four times as wide as the model.

    With a head for 1000 classes, S12, S24, S36 and B24 have 15.4, 30.0, 44.7 and 115.7 M parameters. The authors'
    published weights of B24 have patches of 8 pixels instead, and 129 M.
    """
    return ResMlpSpec(
        family="resmlp",
        image_size=224,
        patch_size=16,
        width=width,
        depth=depth,
        channel_hidden=4 * width,
        layer_scale=layer_scale,
    )


def _widenet(depth: int, width: int, heads: int, patch_size: int) -> WideNetSpec:
    """Return WideNet-L or -H as in the authors' code, with learned positions and a representation layer.

    With a head for 1000 classes, they have 40.9 and 63.2 M parameters; the paper cuts them to 40 and 63 M.
    """
    return _widenet_b16().model_copy(
        update={
            "depth": depth,
            "width": width,
            "heads": heads,
            "patch_size": patch_size,
            "moe_c": MoESpec(experts=4, top_k=2, hidden=4 * width),
            "positions": "learned",
            "representation": True,
        }
    )


def _widenet_b16() -> WideNetSpec:
    """Return WideNet-B. The paper's 29 M parameters include a head for 1000 classes: 28.95 M here, 28.18 M without it.

    The experts are 4096 wide, as in the authors' code. With the 3072 of ViT-B's MLP, it would have 22.7 M. The authors'
    code also has learned positions and a 768 x 768 representation layer before the head, which `positions: learned` and
    `representation: true` add: 29.7 M, which the paper cuts to 29 M as it does the sizes of L and H.
    """
    return WideNetSpec(
        family="widenet",
        image_size=224,
        patch_size=16,
        width=768,
        depth=12,
        heads=12,
        pool="mean",
        moe_c=MoESpec(experts=4, top_k=2, hidden=4096),
    )


def _image_presets() -> dict[str, PatchSpec]:
    s16, b16, l16 = _mixer(8, 512, 256, 16), _mixer(12, 768, 384, 16), _mixer(24, 1024, 512, 16)
    s32, b32, l32 = (dense.model_copy(update={"patch_size": 32}) for dense in (s16, b16, l16))
    experts = MoESpec
    tiny = _mixer(5, 96, 48, patch_size=4, image_size=32)  # for CIFAR on a laptop; in none of the papers
    digits = _mixer(4, 96, 64, patch_size=4, image_size=16)
    vit_b16, vmoe_s32 = _vit(12, 768, 12), _vit(8, 512, 8, patch_size=32)  # V-MoE's S has 8 wide blocks, ViT-S 12
    vit_l16, vit_h14 = _vit(24, 1024, 16), _vit(32, 1280, 16, patch_size=14)
    return {
        "mixer_s32": s32,
        "mixer_s16": s16,
        "mixer_b32": b32,
        "mixer_b16": b16,
        "mixer_l32": l32,
        "mixer_l16": l16,
        "mixer_h14": _mixer(32, 1280, 640, 14),
        "sparse_mlp_s16": _sparse(s16, (6, 2), 512, experts(experts=4, hidden=512), experts(experts=0, hidden=2048)),
        "sparse_mlp_b16": _sparse(
            b16, (10, 2), 384, experts(experts=8, hidden=768), experts(experts=4, top_k=2, hidden=1536)
        ),
        "sparse_mlp_l16": _sparse(
            b16, (8, 6), 384, experts(experts=16, hidden=768), experts(experts=4, top_k=2, hidden=1536)
        ),
        "gmlp_ti16": _gmlp("gmlp", 128),
        "gmlp_s16": _gmlp("gmlp", 256),
        "gmlp_b16": _gmlp("gmlp", 512),
        "amlp_ti16": _gmlp("amlp", 128),
        "amlp_s16": _gmlp("amlp", 256),
        "amlp_b16": _gmlp("amlp", 512),
        "vit_s16": _vit(12, 384, 12),
        "vit_b16": vit_b16,
        "vit_l16": vit_l16,
        "vit_h14": vit_h14,
        "vmoe_s32_every2": _vmoe(vmoe_s32, "every2", 32),
        "vmoe_s32_last2": _vmoe(vmoe_s32, "last2", 8),
        "vmoe_b16_every2": _vmoe(vit_b16, "every2", 32),
        "vmoe_b16_last2": _vmoe(vit_b16, "last2", 32),
        "vmoe_l16_every2": _vmoe(vit_l16, "every2", 32),
        "vmoe_h14_last5": _vmoe(vit_h14, "last5", 32),
        "vmoe_h14_every2": _vmoe(vit_h14, "every2", 32),
        "vit_moe_b16": _vit_moe(vit_b16, "tail2"),
        "vit_moe_l16": _vit_moe(vit_l16, "tail4"),
        "widenet_b16": _widenet_b16(),
        "widenet_l16": _widenet(24, 1024, 16, 16),
        "widenet_h14": _widenet(32, 1280, 16, 14),
        "resmlp_s12": _resmlp(12, 384, 0.1),
        "resmlp_s24": _resmlp(24, 384, 1e-5),
        "resmlp_s36": _resmlp(36, 384, 1e-6),
        "resmlp_b24": _resmlp(24, 768, 1e-6),
        "mixer_t4": tiny,
        "sparse_mlp_t4": _sparse(
            tiny, (4, 1), 48, experts(experts=4, hidden=128), experts(experts=4, top_k=2, hidden=192)
        ),
        **_nano(),
        "mixer_digits": digits,
        "sparse_mlp_digits": _sparse(
            digits, (3, 1), 48, experts(experts=4, hidden=128), experts(experts=4, top_k=2, hidden=192)
        ),
    }


IMAGE_PRESETS = _image_presets()
"""The models of images by name."""
PRESETS: dict[str, ModelSpec] = {**IMAGE_PRESETS, **text_presets()}
"""All models by name."""
