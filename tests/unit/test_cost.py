"""Costs: the figures of the papers, and the rule by which an MoE layer is counted."""

import json

import pytest

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.cost import cost, of_presets
from sparse_mlp_ds.models.preset_costs import read

WITHOUT_REREPRESENT = {"rerepresent": False, "moe_s": {"hidden": 384}, "moe_c": {"hidden": 3072}}
GMACS = {
    # preset, changes -> multiply-accumulates of the forward pass, in 10^9
    "Mixer-S": ("mixer_s16", {}, 3.78),
    "Mixer-B": ("mixer_b16", {}, 12.60),
    "Mixer-L": ("mixer_l16", {}, 44.55),
    "Sparse-S": ("sparse_mlp_s16", {}, 5.48),
    "Sparse-B": ("sparse_mlp_b16", {}, 13.53),
    "Sparse-L": ("sparse_mlp_l16", {}, 17.49),
    "Sparse-B, K_S = 2": ("sparse_mlp_b16", {"moe_s": {"top_k": 2}}, 14.00),
    "Sparse-B, K_C = 1": ("sparse_mlp_b16", {"moe_c": {"top_k": 1}}, 12.61),
    "Sparse-B without re-represent": ("sparse_mlp_b16", WITHOUT_REREPRESENT, 14.45),
}


def test_the_costs_that_are_printed_are_those_that_are_counted():
    assert read() == of_presets(), "write them again: python -m sparse_mlp_ds.models.cost"


@pytest.mark.parametrize("name, changes, giga", GMACS.values(), ids=GMACS.keys())
def test_multiply_accumulates(name, changes, giga):
    assert cost(model_spec({"name": name, **changes})).macs / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize("name, giga", [("gmlp_ti16", 2.7 / 2), ("gmlp_s16", 8.9 / 2), ("gmlp_b16", 31.6 / 2)])
def test_multiply_accumulates_of_gmlp(name, giga):
    """The paper counts additions of norms and gates too, which weigh more in narrow models."""
    assert cost(registry.preset(name)).macs / 1e9 == pytest.approx(giga, rel=0.02)


def test_multiply_accumulates_of_attention_by_hand():
    tokens, width, hidden = 197, 768, 3072
    block = tokens * width * 3 * width + 2 * tokens**2 * width + tokens * width**2 + 2 * tokens * width * hidden
    assert cost(registry.preset("vit_b16")).macs == 12 * block + 196 * 768 * width


@pytest.mark.parametrize("name, millions", [("sparse_mlp_b16", 56.8), ("sparse_mlp_l16", 61.9)])
def test_weights_that_one_item_meets(name, millions):
    assert int(cost(registry.preset(name)).params_active / 1e5) / 10 == millions  # the paper's figures are cut off


def test_without_experts_all_weights_are_active():
    for name in ("mixer_digits", "amlp_ti16", "vit_s16"):
        figures = cost(registry.preset(name))
        assert figures.params_active == figures.params


def test_an_expert_more_costs_its_weights_and_its_row_of_the_router():
    few, many = (cost(model_spec({"name": "sparse_mlp_digits", "moe_c": {"experts": e}})) for e in (4, 5))
    dim, hidden, items = 48, 192, 32
    assert many.params - few.params == 2 * dim * hidden + dim + hidden + dim
    assert many.params_active - few.params_active == dim
    assert many.macs - few.macs == items * dim


def test_a_shared_expert_costs_an_mlp_that_every_item_passes():
    without, shared = (cost(model_spec({"name": "sparse_mlp_digits", "moe_c": {"shared": width}})) for width in (0, 20))
    dim, items = 48, 32
    mlp = 2 * dim * 20 + 20 + dim
    assert shared.params - without.params == shared.params_active - without.params_active == mlp
    assert shared.macs - without.macs == items * 2 * dim * 20


def test_a_shared_layer_counts_its_weights_once_and_its_work_every_time():
    one, three = (cost(model_spec({"name": "widenet_b16", "depth": depth})) for depth in (1, 3))
    norms = 4 * 768  # two per block, each a weight and a bias
    assert three.params - one.params == three.params_active - one.params_active == 2 * norms
    patches = 196 * 768 * 768
    assert three.macs - patches == 3 * (one.macs - patches)


def test_multiply_accumulates_of_a_row_of_text_by_hand():
    tokens, width, hidden = 128, 512, 3072
    block = tokens * width * hidden + tokens**2 * hidden // 2 + tokens * hidden // 2 * width
    assert cost(registry.preset("gmlp_text_36")).macs == 36 * block
    bert = tokens * (12 * 768**2) + 2 * tokens**2 * 768
    assert cost(registry.preset("bert_12")).macs == 12 * bert


def test_what_a_token_meets_of_experts_behind_a_block():
    figures, experts = cost(registry.preset("sparse_gmlp_text_speeches")), 2 * 128 * 256 + 128 + 256
    assert figures.params - figures.params_active == 2 * 3 * experts


def test_the_command_lists_every_model(monkeypatch, capsys):
    digits = {name: spec for name, spec in registry.PRESETS.items() if name.endswith(("digits", "_speeches"))}
    monkeypatch.setattr("sparse_mlp_ds.models.presets.PRESETS", digits)
    monkeypatch.setattr("sys.argv", ["sparse-mlp-ds", "models", "--json"])
    main.main()
    rows = json.loads(capsys.readouterr().out)
    columns = ["name", "family", "params", "params_active", "macs", "depth", "width"]
    of_images, of_text = [*columns, "image_size", "patch_size"], [*columns, "length", "vocabulary"]
    assert [list(row) for row in rows] == [of_images] * 2 + [of_text] * 5
    assert (rows[0]["name"], rows[0]["params"]) == ("mixer_digits", cost(digits["mixer_digits"]).params)

    monkeypatch.setattr("sys.argv", ["sparse-mlp-ds", "models"])
    main.main()
    table = capsys.readouterr().out
    assert "sparse_mlp_digits" in table
    assert "0.35M" in table
    assert "of images" in table and "of text" in table
    assert "sparse_gmlp_text_speeches" in table and "vocabulary" in table
