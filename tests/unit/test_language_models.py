"""Models of text: the sizes of gMLP's paper, Toeplitz gates, how they start, the tied output, BERT's block."""

import math

import pytest
import scipy.linalg
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy, gelu

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.import_weights import import_file
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.gmlp import SpatialGatingUnit, ToeplitzProjection
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.spec import of_images
from sparse_mlp_ds.train import new_recipe
from sparse_mlp_ds.train.param_groups import layer_decay, parameter_groups
from tests.helpers.tiny_families import TEXT, batch, make, on_meta, size_of

EXACT = {
    # preset -> parameters with an output bias, which reproduce every size that the paper prints
    "gmlp_text_36": (101_641_948, 102),
    "gmlp_text_b": (130_105_552, 130),
    "amlp_text_b": (108_823_516, 109),
    "gmlp_text_l": (365_306_528, 365),
    "amlp_text_l": (315_659_960, 316),
    "gmlp_text_xl": (940_614_768, 941),
    "bert_b": (110_057_216, 110),
    "bert_l": (335_635_712, 336),
}
MILLIONS = {
    # the paper's depths, gates and Mixer, whose sizes it prints in millions
    "gmlp_text_18": 59,
    "gmlp_text_72": 187,
    "gmlp_text_144": 357,
    "bert_6": 67,
    "bert_12": 110,
    "bert_24": 195,
    "bert_48": 365,
    "gmlp_text_36_multiplicative": 92,
    "gmlp_text_36_additive": 92,
    "gmlp_text_36_linear": 92,
    "mixer_text_18": 112,
}
KINDS = ("split", "multiplicative", "additive", "linear")


def with_output_bias(name):
    return size_of(on_meta(name)) + registry.preset(name).vocabulary


def drawn(module, seed=0):
    """The module with random numbers in every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


# ---- sizes


@pytest.mark.parametrize("name", EXACT)
def test_the_papers_sizes_are_exact(name):
    count, millions = EXACT[name]
    assert with_output_bias(name) == count
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_of_the_ablations(name):
    assert round(with_output_bias(name) / 1e6) == MILLIONS[name]


def test_small_models_are_of_one_size_and_the_sparse_one_has_as_much_to_do_per_token():
    dense = ("gmlp_text_speeches", "bert_speeches", "mixer_text_speeches")
    assert {round(size_of(on_meta(name)) / 1e5) for name in dense} == {11}
    sparse = on_meta("sparse_gmlp_text_speeches")
    idle = sum(p.numel() for name, p in sparse.named_parameters() if ".experts." in name) * 3 // 4
    assert size_of(sparse) - idle == pytest.approx(size_of(on_meta("gmlp_text_speeches")), rel=0.04)


# ---- Toeplitz


def test_the_matrix_is_that_of_scipy():
    layer = drawn(ToeplitzProjection(7).double())
    w = layer.weight.detach()[0].numpy()
    expected = scipy.linalg.toeplitz(w[6:], w[6::-1])  # first column, first row
    assert torch.equal(layer.matrix().detach(), torch.from_numpy(expected))
    v = torch.randn(3, 7, 5, dtype=torch.float64)
    mixed = torch.einsum("ts,bsc->btc", torch.from_numpy(expected), v) + layer.bias[None, :, None]
    torch.testing.assert_close(layer(v), mixed)


def test_gradients_are_those_of_gathering():
    layer, v = drawn(ToeplitzProjection(6).double()), torch.randn(2, 6, 3, dtype=torch.float64)
    places = torch.arange(6)[:, None] - torch.arange(6) + 5
    gathered = torch.einsum("ts,bsc->btc", layer.weight[0][places], v) + layer.bias[None, :, None]
    wanted = (layer.weight, layer.bias)
    found, expected = (torch.autograd.grad(y.sin().sum(), wanted) for y in (layer(v), gathered))
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_a_weight_is_summed_in_float32():
    """512 terms of one size: added up in bf16, the sum would stop growing at 256."""
    layer = ToeplitzProjection(512).bfloat16()
    init_weights(layer, 0)
    layer(torch.ones(1, 512, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad[0, 511] == 512
    assert layer.weight.grad[0, 0] == layer.weight.grad[0, -1] == 1


def test_the_matrix_decays_as_one_though_it_is_kept_as_a_row():
    groups = {group["name"].split()[0]: group["params"] for group in parameter_groups(make("gmlp_text"), 0.1)}
    weights = {name: p for name, p in make("gmlp_text").named_parameters() if "spatial" in name}
    assert {name.split(".")[-1]: p.ndim for name, p in weights.items()} == {"weight": 2, "bias": 1}
    assert sum(p.shape == (1, 31) for p in groups["decay"]) == 3
    assert not any(p.shape == (1, 31) for p in groups["no_decay"])


# ---- gates


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_the_papers_formulas(kind):
    gate, z = drawn(SpatialGatingUnit(6, 8, kind, toeplitz=True)), torch.randn(2, 6, 8)
    z1, z2 = z.chunk(2, dim=-1) if kind == "split" else (z, z)
    attended = torch.randn(2, 6, gate.width)
    f = torch.einsum("ts,bsc->btc", gate.spatial.matrix(), gate.norm(z2)) + gate.spatial.bias[None, :, None] + attended
    expected = {"additive": lambda: z + f, "linear": lambda: f}.get(kind, lambda: z1 * f)()
    torch.testing.assert_close(gate(z, attended), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_gates_let_what_they_gate_through(kind):
    gate, z = SpatialGatingUnit(64, 8, kind, toeplitz=True), torch.randn(4, 64, 8)
    init_weights(gate, 0)
    if kind == "linear":  # has nothing to let through but the mixed tokens, and begins without them
        torch.testing.assert_close(gate(z), torch.zeros_like(z), rtol=0, atol=1e-4)
    else:
        torch.testing.assert_close(gate(z), z[..., :4] if kind == "split" else z, rtol=0, atol=1e-4)


# ---- how they start, and the tied output


@pytest.mark.parametrize("name", ["gmlp_text", "sparse_gmlp_text", "bert", "mixer_text", "amlp_text"])
def test_an_untrained_model_knows_nothing(name):
    spec = registry.preset(f"{name}_speeches").model_copy(update={"depth": 3, "moe_placement": "tail1"})
    model = registry.build(spec)
    init_weights(model, 0)
    tokens = torch.randint(spec.vocabulary, (8, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.forward_tokens(tokens)[0].flatten(0, 1)
        others = torch.randint(spec.vocabulary, (len(hidden),), generator=torch.Generator().manual_seed(1))
        assert cross_entropy(model.tied_logits(hidden), others).item() == pytest.approx(math.log(4096), abs=0.05)


@pytest.mark.parametrize("family", TEXT)
def test_weights_start_as_documented(family):
    model = make(family, width=256, vocabulary=600, depth=3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "spatial" in name:
            continue
        bert = (family.startswith("bert") and "router" not in name) or name == "token_embed.weight"
        deviation = 0.02 * 0.88 if bert else parameter.shape[1] ** -0.5
        if ".attention." not in name or bert:  # that of aMLP is Xavier-uniform
            assert parameter.std().item() == pytest.approx(deviation, rel=0.1), name
        assert not bert or parameter.abs().max() <= 0.04


def test_the_output_is_the_embedding_and_its_gradient_adds_up():
    model, (tokens, _) = make("gmlp_text"), batch(family="gmlp_text")
    weight = model.token_embed.weight
    hidden = model.forward_tokens(tokens)[0][:, 3]
    torch.testing.assert_close(model.tied_logits(hidden), hidden @ weight.T)
    through_both = torch.autograd.grad(model.tied_logits(hidden).square().sum(), weight, retain_graph=True)[0]
    as_output = 2 * (hidden @ weight.T).T @ hidden
    as_input = torch.autograd.grad((hidden @ weight.detach().T).square().sum(), weight)[0]
    torch.testing.assert_close(through_both, as_input + as_output)


def test_features_are_the_first_token_or_the_mean():
    (tokens, _), by_pool = batch(family="gmlp_text"), {}
    for pool in ("cls", "mean"):
        model = make("gmlp_text", pool=pool)
        by_pool[pool] = model.forward_features(tokens)[0], model.forward_tokens(tokens)[0]
    torch.testing.assert_close(by_pool["cls"][0], by_pool["cls"][1][:, 0])
    torch.testing.assert_close(by_pool["mean"][0], by_pool["mean"][1].mean(dim=1))


def test_only_bert_has_positions_and_all_models_see_the_order_of_tokens():
    for family in TEXT:
        model, (tokens, _) = make(family, pool="mean"), batch(family=family)
        drawn(model)
        assert hasattr(model, "positions") == family.startswith("bert")
        turned = model.forward_features(tokens.flip(1))[0]
        assert not torch.allclose(model.forward_features(tokens)[0], turned, atol=1e-3), family


def test_embeddings_learn_as_slowly_as_patches_under_layer_decay():
    assert layer_decay(0.5, 3)("backbone.token_embed.weight") == 0.5**4


# ---- BERT


def test_a_block_of_bert_is_torchs_encoder_layer():
    block = drawn(make("bert").blocks[1])
    theirs = nn.TransformerEncoderLayer(24, 2, 32, 0.0, gelu, 1e-6, batch_first=True, norm_first=True)
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
        "attention.proj": "self_attn.out_proj",
    }
    with torch.no_grad():
        for own, their in names.items():
            for kind in ("weight", "bias"):
                theirs.get_parameter(f"{their}.{kind}").copy_(block.get_parameter(f"{own}.{kind}"))
        theirs.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(block.attention.qkv.bias)
    x = torch.randn(3, 16, 24)
    torch.testing.assert_close(block(x, None)[0], theirs(x), rtol=1e-4, atol=1e-4)


# ---- bad specs


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("gmlp_text", {"sparse_blocks": 1}, "sparse_blocks need moe_s and moe_c"),
        ("gmlp_text", {"moe_s": {"experts": 4, "hidden": 8}}, "set sparse_blocks"),
        ("gmlp_sparse", {"sparse_blocks": 4}, "sparse_blocks 4 exceeds depth 3"),
        ("gmlp_sparse", {"moe_s": {"chunk": 5}}, "moe_s.chunk 5 does not divide 24 channels"),
        ("gmlp_sparse", {"moe_s": {"experts": 0}}, "moe_s.chunk needs experts"),
        ("gmlp_sparse", {"moe_c": {"chunk": 2}}, "moe_c.chunk: only MoE_S"),
        ("gmlp_routed", {"moe_placement": "tail4"}, "moe_placement tail4 exceeds the 3 blocks"),
        ("gmlp_text", {"gate": "product"}, "gate"),
        ("bert", {"heads": 5}, "heads 5 do not divide width 24"),
    ],
)
def test_a_spec_that_fits_nothing_is_refused(family, changes, says):
    fields = TEXT[family] | changes
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(TEXT[family].get(key), dict):
            fields[key] = TEXT[family][key] | value
    with pytest.raises(ValidationError, match=says):
        model_spec(fields)


def test_a_model_of_text_where_images_go_in_is_refused_in_one_line():
    with pytest.raises(UserError, match="a gmlp_text takes text, and images were to go into it"):
        of_images(registry.preset("gmlp_text_b"))


def test_commands_of_images_refuse_models_of_text(tmp_path):
    with pytest.raises(UserError, match="takes text, and images were to go into it; choose a model of images"):
        import_file(tmp_path / "weights.safetensors", "bert_b")
    with pytest.raises(UserError, match="--model bert_b: no such model of images"):
        new_recipe.write(tmp_path, "bert_b", tmp_path / "new.yaml", pretrain=False)
