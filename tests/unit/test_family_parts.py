"""What is special to each family: gates, attention, placement, sharing, initialisation, bad specs."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import gelu

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.models.positions import sin_cos
from tests.helpers.tiny_families import TINY, batch, make

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


def test_positions_tell_patches_apart_by_row_and_column():
    positions = sin_cos(5, 24).view(5, 5, 24)  # row, column
    assert torch.equal(positions[0, 0], torch.tensor([0.0] * 6 + [1.0] * 6 + [0.0] * 6 + [1.0] * 6))
    assert torch.equal(positions[1, 3, :12], positions[1, 0, :12])
    assert torch.equal(positions[1, 3, 12:], positions[4, 3, 12:])
    assert positions[1, 0, 0] == pytest.approx(0.841471)  # sin 1
    assert positions[0, 2, 12 + 5] == pytest.approx(torch.tensor(2 * 10_000 ** (-5 / 6)).sin().item(), rel=1e-5)
    swapped = sin_cos(5, 24, swapped=True).view(5, 5, 24)
    assert torch.equal(swapped, positions.roll(12, dims=2))
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


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("with_keys", [False, True], ids=["evaluation", "training"])
def test_mixing_patches_is_the_mlp_on_transposed_axes(dropout, with_keys):
    mlp = Mlp(6, 10, dropout)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 8, generator=draw).requires_grad_()
    keys = torch.arange(4) if with_keys else None
    results = []
    for y in (mlp.mix_tokens(x, keys), mlp(x.transpose(1, 2), keys).transpose(1, 2)):
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *mlp.parameters()])))
    for ours, transposed in zip(*results, strict=True):
        torch.testing.assert_close(ours, transposed)


def test_the_skip_of_figure_1_starts_behind_the_norm():
    images = batch(2)[0]
    for after in (False, True):
        block = make("sparse_mlp", skip_after_norm=after).blocks[1]
        x = block.rerepresent1(make("sparse_mlp").embed(images))
        x = x + block.moe_s(block.norm1(x).transpose(1, 2))[0].transpose(1, 2)
        n = block.norm2(x)
        expected = block.rerepresent2((n if after else x) + block.moe_c(n)[0])
        torch.testing.assert_close(block(make("sparse_mlp").embed(images), None)[0], expected, rtol=1e-5, atol=1e-6)
    assert not make("sparse_mlp").blocks[1].skip_after_norm, "the default is that of dense blocks"


def test_a_skip_around_the_re_represent_layers():
    images = batch(2)[0]
    plain, skipped = make("sparse_mlp"), make("sparse_mlp", rerepresent_skip=True)
    skipped.load_state_dict(plain.state_dict())
    x = plain.embed(images)
    torch.testing.assert_close(skipped.blocks[1](x, None)[0], x + plain.blocks[1](x, None)[0])
    bare = [make("sparse_mlp", rerepresent=False, rerepresent_skip=skip).blocks[1](x, None)[0] for skip in (0, 1)]
    torch.testing.assert_close(*bare)


@pytest.mark.parametrize("family", ["vit", "vmoe", "widenet"])
def test_a_representation_layer_is_part_of_the_head(family):
    spec = model_spec(TINY[family] | {"representation": True})
    model, images = registry.build(spec, 5), batch(2)[0]
    init_weights(model, 0)
    torch.nn.init.normal_(model.head.weight)
    features = model.forward_features(images)[0]
    hidden = torch.tanh(features @ model.head_representation.weight.T + model.head_representation.bias)
    torch.testing.assert_close(model(images)[0], hidden @ model.head.weight.T + model.head.bias)
    assert not any("head" in name for name, _ in registry.build(spec).named_parameters())


def test_the_tail_of_all_blocks_has_experts():
    model = make("vmoe", depth=8, moe_placement="tail3")
    assert [number for number, block in enumerate(model.blocks) if block.moe_c is not None] == [5, 6, 7]
    with pytest.raises(ValueError, match="tail9 exceeds the 8 blocks"):
        make("vmoe", depth=8, moe_placement="tail9")


def test_resmlp_starts_as_its_authors_do():
    model = make("resmlp", width=96, channel_hidden=384)
    for block in model.blocks:
        for layer in (block.mlp_channels.fc1, block.mlp_channels.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (block.scale1.weight == 0.3).all() and (block.scale2.weight == 0.3).all()
        assert (block.norm1.weight == 1).all() and not block.norm1.bias.any() and not block.tokens.bias.any()
    starts = [registry.preset(f"resmlp_{size}").layer_scale for size in ("s12", "s24", "s36", "b24")]
    assert starts == [0.1, 1e-5, 1e-6, 1e-6]


def test_the_features_of_a_distilled_vit_are_the_mean_of_both_tokens():
    model, images = make("deit"), batch(2)[0]
    tokens, _ = model.forward_tokens(images)
    assert tokens.shape == (2, 18, 24)
    assert torch.equal(model.forward_features(images)[0], tokens[:, :2].mean(dim=1))
    assert torch.equal(model(images)[0], tokens[:, :2].mean(dim=1)), "without a head"
