"""The models of the papers and of the embedded recipe, by name.

They hold what a model is, not how it was trained: `drop_path` and `dropout` are left to recipes (gMLP: drop_path 0.05
for S, 0.2 for B; WideNet: dropout 0.1).
"""

from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, MoESpec, PatchSpec, VitSpec, WideNetSpec


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


def _gmlp(family: str, width: int) -> GmlpSpec:
    """GMLP, table 1: 30 blocks, six times as wide inside as outside. With its 1000-way head: 5.9 / 19.5 / 73.4 M."""
    return GmlpSpec(family=family, image_size=224, patch_size=16, width=width, depth=30, hidden=6 * width)


def _vit(depth: int, width: int, heads: int, patch_size: int = 16) -> VitSpec:
    """ViT with a class token, MLPs four times as wide as the model. With a 1000-way head, B is 86 M and L 304 M."""
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
    """V-MoE: two experts per patch, each as wide as the MLP it replaces; the mean over patches."""
    moe = MoESpec(experts=experts, top_k=2, hidden=dense.channel_hidden)
    return dense.model_copy(update={"family": "vmoe", "pool": "mean", "moe_placement": placement, "moe_c": moe})


def _widenet_b16() -> WideNetSpec:
    """WideNet-B, 29 M: that counts the 1000-way classifier, 28.95 M here, 28.18 M without it.

    The experts are 4096 wide, as in the authors' code, not 3072 as ViT-B's MLP: with 3072 it would be 22.7 M. Their
    code also has learned positions and a 768 x 768 representation layer before the classifier, which this has not.
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


def _presets() -> dict[str, PatchSpec]:
    s16, b16, l16 = _mixer(8, 512, 256, 16), _mixer(12, 768, 384, 16), _mixer(24, 1024, 512, 16)
    s32, b32, l32 = (dense.model_copy(update={"patch_size": 32}) for dense in (s16, b16, l16))
    experts = MoESpec
    tiny = _mixer(5, 96, 48, patch_size=4, image_size=32)  # not of the papers: fits a laptop, for CIFAR
    digits = _mixer(4, 96, 64, patch_size=4, image_size=16)
    vit_b16, vmoe_s32 = _vit(12, 768, 12), _vit(8, 512, 8, patch_size=32)  # V-MoE's S has 8 wide blocks, ViT-S 12
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
        "vit_l16": _vit(24, 1024, 16),
        "vmoe_s32_every2": _vmoe(vmoe_s32, "every2", 32),
        "vmoe_s32_last2": _vmoe(vmoe_s32, "last2", 8),
        "vmoe_b16_every2": _vmoe(vit_b16, "every2", 32),
        "vmoe_b16_last2": _vmoe(vit_b16, "last2", 32),
        "widenet_b16": _widenet_b16(),
        "mixer_t4": tiny,
        "sparse_mlp_t4": _sparse(
            tiny, (4, 1), 48, experts(experts=4, hidden=128), experts(experts=4, top_k=2, hidden=192)
        ),
        "mixer_digits": digits,
        "sparse_mlp_digits": _sparse(
            digits, (3, 1), 48, experts(experts=4, hidden=128), experts(experts=4, top_k=2, hidden=192)
        ),
    }


PRESETS = _presets()
