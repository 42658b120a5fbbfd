"""Costs: the figures of the papers, and the rule by which an MoE layer is counted."""

import json

import pytest

from sparse_mlp_ds import cli
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.macs import cost
from sparse_mlp_ds.recipe import model_spec

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


def test_a_shared_layer_counts_its_weights_once_and_its_work_every_time():
    one, three = (cost(model_spec({"name": "widenet_b16", "depth": depth})) for depth in (1, 3))
    norms = 4 * 768  # two per block, each a weight and a bias
    assert three.params - one.params == three.params_active - one.params_active == 2 * norms
    patches = 196 * 768 * 768
    assert three.macs - patches == 3 * (one.macs - patches)


def test_the_command_lists_every_model(monkeypatch, capsys):
    digits = {name: spec for name, spec in registry.PRESETS.items() if name.endswith("digits")}
    monkeypatch.setattr(registry, "PRESETS", digits)
    monkeypatch.setattr("sys.argv", ["sparse-mlp-ds", "models", "--json"])
    cli.main()
    rows = json.loads(capsys.readouterr().out)
    columns = ["name", "family", "params", "params_active", "macs", "depth", "width", "image_size", "patch_size"]
    assert [list(row) for row in rows] == [columns] * 2
    assert (rows[0]["name"], rows[0]["params"]) == ("mixer_digits", cost(digits["mixer_digits"]).params)

    monkeypatch.setattr("sys.argv", ["sparse-mlp-ds", "models"])
    cli.main()
    table = capsys.readouterr().out
    assert "sparse_mlp_digits" in table
    assert "0.35M" in table
