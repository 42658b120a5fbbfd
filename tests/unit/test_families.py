"""Every family of models: the papers' sizes, one contract, noise that belongs to samples."""

import pytest
import torch
from torch import nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import Affine, Dropout, DropPath
from sparse_mlp_ds.models.text_spec import TextSpec
from sparse_mlp_ds.moe.router import Router
from tests.helpers.tiny_families import REPORTS, TEXT, TINY, batch, families, make, on_meta, size_of

COUNTS = {
    # preset -> millions of the paper, classes that it counts, how far off we may be
    "mixer_s32": (19, 0, 0.5),
    "mixer_b32": (60, 0, 0.5),
    "mixer_l32": (206, 0, 0.5),
    "mixer_s16": (18, 0, 0.5),
    "mixer_b16": (59, 0, 0.5),
    "mixer_l16": (207, 0, 0.5),
    "mixer_h14": (431, 0, 0.5),
    # Without their heads, the gMLPs would be 2.7, 1.7 and 1.1 % too small.
    "gmlp_ti16": (5.9, 1000, 0.05),  # the rounding of the paper's figure, which is more than 0.5 % of it
    "gmlp_s16": (19.5, 1000, 0.005 * 19.5),
    "gmlp_b16": (73.4, 1000, 0.005 * 73.4),
    "vit_b16": (86, 1000, 0.005 * 86),
    "vit_l16": (304, 1000, 0.005 * 304),
    "widenet_b16": (29, 1000, 0.005 * 29),
    # ResMLP's table 1
    "resmlp_s12": (15.4, 1000, 0.05),
    "resmlp_s24": (30.0, 1000, 0.05),
    "resmlp_s36": (44.7, 1000, 0.05),
    "resmlp_b24": (115.7, 1000, 0.05),
    # WideNet's table, with the authors' positions and representation layer; WideNet-L is cut to 40, not rounded
    "widenet_l16": (40.94, 1000, 0.005),
    "widenet_h14": (63, 1000, 0.5),
    "vit_moe_b16": (128, 1000, 0.5),
    "vit_moe_l16": (406, 1000, 0.5),
}
JFT = {
    # V-MoE's table of models with 32 experts: preset -> millions of the dense ViT, of the V-MoE
    "vmoe_s32_every2": ("36.5", "296.9"),
    "vmoe_b16_every2": ("100.5", "979.0"),
    "vmoe_l16_every2": ("323.1", "3446.0"),
    "vmoe_h14_last5": ("655.8", "2688.6"),
    "vmoe_h14_every2": ("655.8", "7160.8"),
}
VIT_S = 12 * (12 * 384**2 + 13 * 384) + 768 * 384 + 384 + 384 + 2 * 384  # blocks, patches, class token, norm


# ---- sizes


@pytest.mark.parametrize("name", COUNTS)
def test_size(name):
    millions, classes, tolerance = COUNTS[name]
    assert size_of(on_meta(name, classes)) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_size_of_vit_s_by_hand():
    assert size_of(on_meta("vit_s16")) == VIT_S


@pytest.mark.parametrize("name", JFT)
def test_sizes_of_v_moe_are_those_printed(name):
    """The paper's totals hold a head for JFT's 18,291 classes, a representation layer, learned positions, a token."""
    printed = {"pool": "cls", "positions": "learned", "representation": True}
    spec = registry.preset(name).model_copy(update=printed)
    assert spec.experts["moe_c"].experts == 32
    dense = spec.model_copy(update={"family": "vit", "moe_c": None})
    with torch.device("meta"):
        sizes = [size_of(registry.build(one, classes=18_291)) for one in (dense, spec)]
    assert tuple(f"{size / 1e6:.1f}" for size in sizes) == JFT[name]


def test_widenet_l_is_cut_in_print():
    assert size_of(on_meta("widenet_l16", 1000)) // 10**6 == 40


def test_size_of_widenet_without_its_classifier_is_not_what_the_paper_counts():
    assert size_of(on_meta("widenet_b16")) == 28_179_712
    assert size_of(on_meta("widenet_b16", 1000)) == 28_948_712


@pytest.mark.parametrize("name", registry.PRESETS)
def test_every_preset_is_valid_and_builds(name):
    spec = registry.preset(name)
    assert type(spec).model_validate(spec.model_dump()) == spec  # presets are partly made by copies, unchecked
    model = on_meta(name)
    assert len(model.blocks) == spec.depth
    assert model.width == spec.width
    if isinstance(spec, TextSpec):
        assert model.token_embed.weight.shape == (spec.vocabulary, spec.width)
    else:
        assert model.patch_embed.proj.weight.shape == (spec.width, 3, spec.patch_size, spec.patch_size)
    kinds = {n.split(".experts.")[0].rpartition(".")[2] for n, _ in model.named_parameters() if ".experts." in n}
    assert kinds == spec.experts.keys()


# ---- the contract


SHAPES = [(family, shape) for family in TINY for shape in ((16, 4), (24, 8))] + [(family, None) for family in TEXT]


@pytest.mark.parametrize(("family", "shape"), SHAPES, ids=str)
@pytest.mark.parametrize("with_keys", [True, False], ids=["with keys", "without keys"])
def test_forward_and_backward(family, shape, with_keys):
    sizes = {"image_size": shape[0], "patch_size": shape[1]} if shape else {}
    model = make(family, dropout=0.1, drop_path=0.1, **sizes)
    inputs, keys = batch(size=shape[0] if shape else 0, family=family)
    features, reports = model.forward_features(inputs, keys if with_keys else None)
    assert features.shape == (8, 24)
    assert set(reports) == REPORTS.get(family, set())
    assert all((report.balance > 0) == with_keys for report in reports.values())
    (features * torch.randn(24)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.reset_head(5)
    assert model(inputs)[0].shape == model.forward_head(features).shape == (8, 5)
    model.reset_head(0)
    assert [name for name, _ in model.named_parameters() if name.startswith("head")] == []


@families
def test_without_keys_a_sample_does_not_depend_on_its_batch(family):
    model, (inputs, _) = make(family, dropout=0.5, drop_path=0.5), batch(family=family)
    whole = model.forward_features(inputs)[0]
    torch.testing.assert_close(model.forward_features(inputs[2:3])[0], whole[2:3], rtol=0, atol=1e-5)


# ---- noise


@families
@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_noise_belongs_to_the_sample(family, kind):
    model, (inputs, keys) = make(family, **{kind: 0.5}), batch(16, family=family)
    whole = model.forward_features(inputs, keys)[0]
    part = slice(8, 16)  # a whole routing group, for families with experts
    torch.testing.assert_close(model.forward_features(inputs[part], keys[part])[0], whole[part])
    assert not torch.allclose(whole, make(family).forward_features(inputs, keys)[0])
    assert not torch.allclose(whole, model.forward_features(inputs, batch(16, first=16)[1])[0])


@families
def test_no_two_modules_share_a_stream(family):
    modules = [m for m in make(family).modules() if isinstance(m, (Dropout, DropPath, Router))]
    streams = {int(module.stream) for module in modules}
    assert len(streams) == len(modules)
    assert 0 not in streams


def test_dropout_drops_single_elements_and_rescales_the_rest():
    layer, keys = Dropout(0.3), rng.sample_keys(0, torch.arange(500), "test")
    x = torch.rand(500, 4, 25) + 1
    result = layer(x, keys)
    kept = result != 0
    assert kept.float().mean() == pytest.approx(0.7, abs=0.01)
    assert kept.float().mean(dim=(1, 2)).std() == pytest.approx((0.21 / 100) ** 0.5, rel=0.15)  # each for itself
    torch.testing.assert_close(result[kept], x[kept] / 0.7)
    assert torch.equal(layer(x, None), x)


def one_step(family, **overrides):
    """How often block 1 was computed, and every tensor that a training step makes."""
    model, passes = make(family, dropout=0.2, drop_path=0.2, **overrides), []
    norm = next(m for m in model.blocks[1].modules() if isinstance(m, (nn.LayerNorm, Affine)))
    norm.register_forward_hook(lambda *_: passes.append(1))
    features, reports = model.forward_features(*batch(family=family))
    objective = features.square().sum() + sum(report.balance for report in reports.values())
    objective.backward()
    made = {"features": features, "objective": objective} | {name: report.sums for name, report in reports.items()}
    return len(passes), made | {name: parameter.grad for name, parameter in model.named_parameters()}


@families
def test_checkpointed_blocks_give_the_same_bits(family):
    passes, made = one_step(family)
    passes_checkpointed, made_checkpointed = one_step(family, checkpoint_blocks=True)
    assert (passes, passes_checkpointed) == (1, 2)
    assert made.keys() == made_checkpointed.keys() > REPORTS.get(family, set())
    assert [name for name in made if not torch.equal(made[name], made_checkpointed[name])] == []


def test_folded_keys_are_other_keys():
    keys = rng.sample_keys(0, torch.arange(1000), "test")
    folded = torch.stack([keys, *(rng.fold(keys, number) for number in range(12))])
    assert len(folded.unique()) == folded.numel()
    assert torch.equal(rng.fold(keys[[5, 2]], 7), folded[8][[5, 2]])
    draws = torch.stack([rng.uniform(row, 3, 20).flatten() for row in folded])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.04
