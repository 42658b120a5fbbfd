"""Weights of models of text: known by their embedding, cut to shorter rows, refused where they fit nothing."""

import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.tiny_families import TEXT, batch


def built(family, seed, classes=0, **overrides):
    spec = model_spec(TEXT[family] | overrides)
    model = registry.build(spec, classes)
    init_weights(model, seed)
    return spec, model


@pytest.fixture
def filled(tmp_path):
    """Write a drawn model's weights, and load them into a model with overrides; returns both and what was loaded."""

    def fill(family, prefix="", extra=None, **overrides):
        _, model = built(family, 1, 3)
        for number, parameter in enumerate(model.parameters()):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
        tensors = {prefix + name: p.detach().clone() for name, p in model.named_parameters()} | (extra or {})
        save_file(tensors, tmp_path / "model.safetensors")
        spec, other = built(family, 2, 3, **overrides)
        return model, other, load_into(other, spec, tmp_path / "model.safetensors", seed=0)

    return fill


@pytest.mark.parametrize("family", TEXT)
def test_own_weights_come_back(family, filled):
    model, other, coverage = filled(family)
    tokens, _ = batch(family=family)
    assert torch.equal(other(tokens)[0], model(tokens)[0])
    assert coverage.exact and not coverage.resized


def test_what_a_training_stage_wrote_is_taken_without_its_output_bias(filled):
    model, other, coverage = filled("gmlp_text", "backbone.", {"bias": torch.zeros(50)})
    assert torch.equal(other.token_embed.weight, model.token_embed.weight)
    assert coverage.skipped == ("bias",)


@pytest.mark.parametrize("family", ["gmlp_text", "amlp_text", "gmlp_routed", "bert"])
def test_shorter_rows_keep_the_distances_and_the_first_positions(family, filled):
    model, other, coverage = filled(family, length=10)
    assert not coverage.exact and coverage.resized
    if family == "bert":
        assert torch.equal(other.positions, model.positions[:10])
    else:
        for short, long in zip(other.blocks, model.blocks, strict=True):
            assert torch.equal(short.gate.spatial.matrix(), long.gate.spatial.matrix()[:10, :10])
            assert torch.equal(short.gate.spatial.bias, long.gate.spatial.bias[:10])
    same = {name for name, p in other.named_parameters() if torch.equal(p, model.get_parameter(name))}
    cut = {name for name, _ in other.named_parameters() if name == "positions" or ".spatial." in name}
    assert {name for name, _ in other.named_parameters()} - same == cut == set(coverage.resized)


@pytest.mark.parametrize(
    ("family", "overrides", "says"),
    [
        ("gmlp_text", {"length": 20}, "rows of 16 tokens, the model's have 20, and they can only become shorter"),
        ("bert", {"length": 20}, "set model.length: 16"),
        ("mixer_text", {"length": 10}, "set model.length and model.token_hidden"),
        ("gmlp_sparse", {"length": 10}, "fits one length alone"),
        ("gmlp_text", {"vocabulary": 60}, "set model.vocabulary and model.width"),
        ("gmlp_routed", {"moe_c": {"experts": 4, "hidden": 32}}, "set model.moe_c"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family, overrides, says, filled):
    with pytest.raises(UserError, match=says) as caught:
        filled(family, **overrides)
    assert "\n" not in str(caught.value)


def test_nothing_of_text_is_upcycled(tmp_path):
    spec, model = built("gmlp_routed", 1)
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="nothing to upcycle, the model has no sparse Mixer blocks"):
        load_into(model, spec, tmp_path / "model.safetensors", upcycle=True)
