"""Every family of models: the papers' sizes, one contract, noise that belongs to samples, what is special to each."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import gelu

from sparse_mlp_ds import rng
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.layers import Dropout, DropPath, init_weights
from sparse_mlp_ds.models.vit import sin_cos_positions
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.recipe import model_spec

SMALL = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 3}
EXPERTS = {"moe_c": {"experts": 4, "hidden": 40}}
TINY = {
    "mixer": {"name": "mixer_digits", "dense_blocks": 2, "width": 24},
    "sparse_mlp": {"name": "sparse_mlp_digits", "dense_blocks": 1, "width": 24, "sparse_width": 20},
    "gmlp": {"name": "gmlp_ti16", **SMALL, "hidden": 48},
    "amlp": {"name": "amlp_ti16", **SMALL, "hidden": 48, "attention": 8},
    "vit": {"name": "vit_s16", **SMALL, "heads": 2, "channel_hidden": 32},
    "vmoe": {"name": "vmoe_s32_every2", **SMALL, "depth": 4, "heads": 2, "channel_hidden": 32, **EXPERTS},
    "widenet": {"name": "widenet_b16", **SMALL, "heads": 2, **EXPERTS},
}
REPORTS = {
    "sparse_mlp": {"1.moe_s", "1.moe_c"},
    "vmoe": {"1.moe_c", "3.moe_c"},
    "widenet": {"0.moe_c", "1.moe_c", "2.moe_c"},
}
families = pytest.mark.parametrize("family", TINY)
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
}
VIT_S = 12 * (12 * 384**2 + 13 * 384) + 768 * 384 + 384 + 384 + 2 * 384  # blocks, patches, class token, norm


def make(family, seed=0, **overrides):
    model = registry.build(model_spec(TINY[family] | overrides))
    init_weights(model, seed)
    return model


def batch(count=8, size=16, first=0):
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, rng.sample_keys(0, torch.arange(first, first + count), "test")


def on_meta(name, classes=0):
    with torch.device("meta"):
        return registry.build(registry.preset(name), classes)


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ---- sizes


@pytest.mark.parametrize("name", COUNTS)
def test_size(name):
    millions, classes, tolerance = COUNTS[name]
    assert size_of(on_meta(name, classes)) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_size_of_vit_s_by_hand():
    assert size_of(on_meta("vit_s16")) == VIT_S


@pytest.mark.parametrize(
    "name, dense, millions",
    [("vmoe_s32_every2", (8, 512), 296.9 - 36.5), ("vmoe_b16_every2", (12, 768), 979.0 - 100.5)],
)
def test_size_that_experts_add_to_a_vit(name, dense, millions):
    """The V-MoE paper's totals hold its JFT head, so only differences between its models can be compared."""
    depth, width = dense
    mlp = 8 * width**2 + 5 * width
    assert (size_of(on_meta(name)) - size_of_vit(name)) / 1e6 == pytest.approx(millions, abs=0.1)
    assert registry.preset(name).experts["moe_c"].experts == 32
    assert size_of(on_meta(name)) - size_of_vit(name) == depth // 2 * (31 * mlp + 32 * width)


def size_of_vit(name):
    spec = registry.preset(name).model_copy(update={"moe_c": None})
    with torch.device("meta"):
        return size_of(registry.build(spec))


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
    assert model.patch_embed.proj.weight.shape == (spec.width, 3, spec.patch_size, spec.patch_size)
    kinds = {n.split(".experts.")[0].rpartition(".")[2] for n, _ in model.named_parameters() if ".experts." in n}
    assert kinds == spec.experts.keys()


# ---- the contract


@families
@pytest.mark.parametrize("shape", [(16, 4), (24, 8)], ids=str)
@pytest.mark.parametrize("with_keys", [True, False], ids=["with keys", "without keys"])
def test_forward_and_backward(family, shape, with_keys):
    model = make(family, image_size=shape[0], patch_size=shape[1], dropout=0.1, drop_path=0.1)
    images, keys = batch(size=shape[0])
    features, reports = model.forward_features(images, keys if with_keys else None)
    assert features.shape == (8, 24)
    assert set(reports) == REPORTS.get(family, set())
    assert all((report.balance > 0) == with_keys for report in reports.values())
    (features * torch.randn(24)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.reset_head(5)
    assert model(images)[0].shape == model.forward_head(features).shape == (8, 5)


@families
def test_without_keys_an_image_does_not_depend_on_its_batch(family):
    model, (images, _) = make(family, dropout=0.5, drop_path=0.5), batch()
    whole = model.forward_features(images)[0]
    torch.testing.assert_close(model.forward_features(images[2:3])[0], whole[2:3], rtol=0, atol=1e-5)


# ---- noise


@families
@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_noise_belongs_to_the_sample(family, kind):
    model, (images, keys) = make(family, **{kind: 0.5}), batch(16)
    whole = model.forward_features(images, keys)[0]
    part = slice(8, 16)  # a whole routing group, for families with experts
    torch.testing.assert_close(model.forward_features(images[part], keys[part])[0], whole[part])
    assert not torch.allclose(whole, make(family).forward_features(images, keys)[0])
    assert not torch.allclose(whole, model.forward_features(images, batch(16, first=16)[1])[0])


@families
def test_no_two_modules_share_a_stream(family):
    modules = [m for m in make(family).modules() if isinstance(m, (Dropout, DropPath, Router))]
    assert len({module.stream for module in modules}) == len(modules)
    assert 0 not in {module.stream for module in modules}


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
    norm = next(m for m in model.blocks[1].modules() if isinstance(m, nn.LayerNorm))
    norm.register_forward_hook(lambda *_: passes.append(1))
    features, reports = model.forward_features(*batch())
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


# ---- gMLP


@pytest.mark.parametrize("family", ["gmlp", "amlp"])
def test_the_gate_starts_as_the_identity_on_the_first_half(family):
    gate = make(family).blocks[0].gate
    z = torch.randn(2, 16, 48)
    torch.testing.assert_close(gate(z), z[..., :24], rtol=0, atol=1e-4)
    assert (gate.spatial.bias == 1).all()
    assert 0 < gate.spatial.weight.std() < 2e-6


def test_the_gate_mixes_patches():
    gate = make("gmlp").blocks[0].gate
    nn.init.normal_(gate.spatial.weight)
    nn.init.normal_(gate.spatial.bias)
    z = torch.randn(2, 16, 48)
    mixed = torch.einsum("ts,bsc->btc", gate.spatial.weight, gate.norm(z[..., 24:])) + gate.spatial.bias[None, :, None]
    torch.testing.assert_close(gate(z), z[..., :24] * mixed)


def test_a_block_of_amlp_is_the_gated_mlp_with_attention_added_to_the_gate():
    block, x = make("amlp").blocks[0], torch.randn(2, 16, 24)
    nn.init.normal_(block.gate.spatial.weight)
    y = block.norm(x)
    z1, z2 = gelu(block.fc1(y)).chunk(2, dim=-1)
    expected = x + block.fc2(z1 * (block.gate.spatial(block.gate.norm(z2)) + block.attention(y)))
    torch.testing.assert_close(block(x, None)[0], expected)
    assert block.attention.heads == 1
    assert make("gmlp").blocks[0].attention is None


# ---- transformers


def test_attention_is_the_formula():
    layer, x = Attention(24, 3, 5, 7), torch.randn(2, 16, 24)
    init_weights(layer, 0)
    q, k, v = (part.view(2, 16, 3, 5).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    mixed = (q @ k.transpose(-2, -1) / 5**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(layer(x), layer.proj(mixed.transpose(1, 2).reshape(2, 16, 15)))


@pytest.mark.parametrize("pool, tokens", [("cls", 17), ("mean", 16)])
def test_features_are_the_class_token_or_the_mean(pool, tokens):
    model, (images, _) = make("vit", pool=pool), batch(2)
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = model.forward_features(images)[0]
    assert seen[0].shape == (2, tokens, 24)
    assert torch.equal(features, seen[0][:, 0] if pool == "cls" else seen[0].mean(dim=1))
    assert ("class_token" in dict(model.named_parameters())) == (pool == "cls")


def test_positions_tell_patches_apart_by_column_and_row():
    positions = sin_cos_positions(5, 24).view(5, 5, 24)  # row, column
    assert torch.equal(positions[0, 0], torch.tensor([0.0] * 6 + [1.0] * 6 + [0.0] * 6 + [1.0] * 6))
    assert torch.equal(positions[1, 3, :12], positions[4, 3, :12])
    assert torch.equal(positions[1, 3, 12:], positions[1, 0, 12:])
    assert positions[0, 1, 0] == pytest.approx(0.841471)  # sin 1
    assert positions[2, 0, 12 + 5] == pytest.approx(torch.tensor(2 * 10_000 ** (-5 / 6)).sin().item(), rel=1e-5)
    model = make("vit")
    assert "positions" not in model.state_dict()
    assert not any(name.endswith("positions") for name, _ in model.named_parameters())


@pytest.mark.parametrize("placement, expected", [("every2", {1, 3, 5, 7}), ("last1", {7}), ("last3", {3, 5, 7})])
def test_placement_of_experts(placement, expected):
    model = make("vmoe", depth=8, moe_placement=placement)
    assert {number for number, block in enumerate(model.blocks) if block.moe_c is not None} == expected
    assert {number for number, block in enumerate(model.blocks) if block.mlp is None} == expected


@pytest.mark.parametrize("family", ["vmoe", "widenet"])
def test_zero_experts_are_one_dense_mlp(family):
    model = make(family, moe_c={"experts": 0, "hidden": 40})
    assert model.forward_features(*batch())[1] == {}
    assert model.blocks[1].mlp.fc1.out_features == 40


def test_widenet_shares_all_but_its_norms():
    model = make("widenet")
    for name, _ in model.named_parameters():
        assert name.startswith("blocks.0.") or not name.startswith("blocks.") or ".norm" in name, name
    assert len({id(block.attention) for block in model.blocks}) == 1
    assert len({id(block.norm2) for block in model.blocks}) == 3


def test_each_call_of_a_shared_layer_draws_its_own_noise():
    model = make("widenet")
    noise = []
    model.blocks[0].moe_c.router.register_forward_hook(
        lambda module, inputs, choices: noise.append(choices.noisy_logits - choices.logits)
    )
    _, reports = model.forward_features(*batch())
    assert len(noise) == len(reports) == 3
    correlation = torch.corrcoef(torch.stack([draws.flatten() for draws in noise]))
    assert correlation.fill_diagonal_(0).abs().max() < 0.15


# ---- initialisation


def bound(weight):
    """The largest absolute value relative to Xavier-uniform's bound; close to 1 where that was drawn."""
    return (weight.abs().max() / (6 / (weight[0].numel() + len(weight))) ** 0.5).item()


@pytest.mark.parametrize("family", ["vit", "vmoe", "widenet"])
def test_transformers_start_xavier_uniform(family):
    model = make(family)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            assert [bound(third) for third in parameter.chunk(3)] == pytest.approx([1, 1, 1], abs=0.02)
        elif name == "class_token":
            assert 0 < parameter.abs().max() < 1e-5
        elif parameter.ndim == 1:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif "router" in name:
            assert parameter.std().item() == pytest.approx(24**-0.5, rel=0.3)
        else:
            assert bound(parameter) == pytest.approx(1, abs=0.02), name


class Wrapped(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projector = nn.Sequential(nn.Linear(24, 500, bias=False))


@pytest.mark.parametrize("family", ["vit", "gmlp"])
def test_a_model_starts_alike_inside_a_wrapper_and_leaves_the_rest_of_it_alone(family):
    wrapped = Wrapped(make(family))
    init_weights(wrapped, 0)
    if family == "vit":
        assert bound(wrapped.backbone.blocks[0].mlp.fc1.weight) == pytest.approx(1, abs=0.02)
        assert 0 < wrapped.backbone.class_token.abs().max() < 1e-5
    else:
        assert (wrapped.backbone.blocks[2].gate.spatial.bias == 1).all()
        assert wrapped.backbone.blocks[2].gate.spatial.weight.abs().max() < 1e-5
    assert wrapped.projector[0].weight.std().item() == pytest.approx(24**-0.5, rel=0.05)
    assert bound(wrapped.projector[0].weight) > 1.5


# ---- bad specs


@pytest.mark.parametrize(
    "family, overrides, said",
    [
        ("vit", {"heads": 5}, "heads 5 do not divide width 24"),
        ("vit", {"width": 22}, "width 22 is not a multiple of 4"),
        ("vmoe", {"moe_placement": "last3"}, "moe_placement last3 exceeds the 2 odd blocks"),
        ("vmoe", {"moe_placement": "first2"}, "moe_placement"),
        ("vmoe", {"moe_c": None}, "family vmoe needs moe_c"),
        ("gmlp", {"hidden": 49}, "multiple of 2"),
        ("amlp", {"attention": 0}, "attention"),
        ("mixer", {"dropout": 1.0}, "dropout"),
    ],
)
def test_a_bad_spec_is_refused(family, overrides, said):
    with pytest.raises(ValidationError, match=said):
        model_spec(TINY[family] | overrides)
