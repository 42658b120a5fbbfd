"""From a dense Mixer to a Sparse-MLP: where equality at step 0 holds it holds in the logits, elsewhere it is denied."""

from dataclasses import replace

import pytest
import torch

from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.weights.load import load_into
from sparse_mlp_ds.weights.upcycle import perturb
from tests.helpers.weight_files import DENSE, SPARSE, as_google, logits, make, refused, weights, write

FLAT = SPARSE.model_copy(update={"rerepresent": False})


def sparse(moe_s, moe_c, **update):
    """A spec whose sparse blocks keep the dense shape. moe_s, moe_c: (experts, top_k)."""
    return FLAT.model_copy(
        update={
            "moe_s": MoESpec(experts=moe_s[0], top_k=moe_s[1], hidden=DENSE.token_hidden),
            "moe_c": MoESpec(experts=moe_c[0], top_k=moe_c[1], hidden=DENSE.channel_hidden),
        }
        | update
    )


@pytest.fixture
def dense(tmp_path):
    model = make(DENSE)
    return model, write(tmp_path, "timm", weights(model))


@pytest.mark.parametrize(
    "spec",
    [
        sparse((1, 1), (1, 1)),
        sparse((4, 4), (3, 3)),
        sparse((0, 1), (4, 4)),
        sparse((4, 4), (2, 2), sparse_position="first"),
        sparse((2, 2), (2, 2), dense_blocks=0, sparse_blocks=3),
    ],
    ids=["one-expert", "all-kept", "one-mlp", "first", "all-blocks"],
)
def test_the_logits_are_the_dense_ones(dense, spec):
    model = make(spec, seed=1)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert coverage.exact, coverage.reason
    assert (logits(model) - logits(dense[0])).abs().max() <= 1e-6
    assert all(".router." in name for name in coverage.fresh)
    assert coverage.skipped == () or spec.moe_s.experts == 0 or all("mlp_" in name for name in coverage.skipped)


def reroute(model, **changes):
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.routing = replace(module.routing, **changes)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_layer_that_renormalizes_is_exact(dense, top_k):
    spec = sparse((4, top_k), (4, top_k))
    model = make(spec, seed=1)
    reroute(model, renormalize=True)
    assert load_into(model, spec, dense[1], upcycle=True).exact
    assert (logits(model) - logits(dense[0])).abs().max() <= 1e-6


def test_a_gate_scale_is_said_to_differ_and_does(dense):
    spec = sparse((4, 2), (4, 2))
    model = make(spec, seed=1)
    reroute(model, renormalize=True, gate_scale=2.0)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact and "gate weights are multiplied by 2" in coverage.reason
    assert (logits(model) - logits(dense[0])).abs().max() > 1e-3


def test_a_shared_expert_is_said_to_differ_and_does(dense):
    spec = sparse((4, 4), (4, 4))
    spec = spec.model_copy(update={"moe_c": spec.moe_c.model_copy(update={"shared": 8})})
    model = make(spec, seed=1)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact and "blocks.2.moe_c: a shared expert with new weights" in coverage.reason
    assert "moe_s" not in coverage.reason
    assert (logits(model) - logits(dense[0])).abs().max() > 1e-3


def test_experts_that_choose_their_items_are_said_to_differ_and_do(dense):
    spec = sparse((4, 1), (0, 1))
    model = make(spec, seed=1)
    reroute(model, priority="expert_choice")
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact and coverage.reason.startswith("blocks.2.moe_s: experts choose their items")
    assert (logits(model) - logits(dense[0])).abs().max() > 1e-3


def test_fewer_experts_kept_is_said_to_differ_and_does(dense):
    spec = sparse((4, 1), (4, 4))
    model = make(spec, seed=1)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact
    assert "blocks.2.moe_s: 1 of 4 experts are kept, whose gate weights sum to less than 1" in coverage.reason
    assert "moe_c" not in coverage.reason
    assert (logits(model) - logits(dense[0])).abs().max() > 1e-3
    assert "not as in the file" in coverage.table()


def test_rerepresent_layers_leave_sparse_blocks_fresh(dense):
    model = make(SPARSE, seed=1)
    before = weights(model)
    coverage = load_into(model, SPARSE, dense[1], upcycle=True)
    assert not coverage.exact and "no re-represent layers" in coverage.reason
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == name.startswith("blocks.2."), name
    assert set(coverage.fresh) == {name for name in before if name.startswith("blocks.2.")}
    assert set(coverage.skipped) == {name for name in weights(dense[0]) if name.startswith("blocks.2.")}


def test_experts_of_another_width_stay_fresh_and_are_named(dense):
    spec = sparse((2, 2), (2, 2)).model_copy(update={"moe_c": MoESpec(experts=2, top_k=2, hidden=8)})
    model = make(spec, seed=1)
    before = weights(model)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact
    assert "blocks.2.moe_c: fresh, experts are 8 wide and the dense MLP 20" in coverage.reason
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert not any("moe_c" in name for name in changed)
    assert any("moe_s.experts.1" in name for name in changed)


def test_experts_are_equal_without_noise_and_differ_by_its_size_with_it(dense):
    spec = sparse((4, 4), (4, 4))
    name = "blocks.2.moe_s.experts.{}.fc1.weight"
    base = weights(dense[0])["blocks.2.mlp_tokens.fc1.weight"]
    runs = {}
    for run, (noise, seed) in {"none": (0.0, 0), "one": (0.05, 0), "same": (0.05, 0), "other": (0.05, 1)}.items():
        model = make(spec, seed=1)
        coverage = load_into(model, spec, dense[1], upcycle=True, noise=noise, seed=seed)
        assert coverage.exact == (noise == 0) and ("noise" in coverage.reason) == (noise > 0)
        runs[run] = weights(model)
    assert all(torch.equal(runs["none"][name.format(expert)], base) for expert in range(4))
    assert not torch.equal(runs["one"][name.format(0)], runs["one"][name.format(1)])
    for key, value in runs["one"].items():
        assert torch.equal(value, runs["same"][key])
        noisy = ".experts." in key and key.endswith("weight")
        assert torch.equal(value, runs["other"][key]) != noisy, key
        assert torch.equal(value, runs["none"][key]) != noisy, key
    size = (runs["one"][name.format(0)] - base).square().mean().sqrt() / base.square().mean().sqrt()
    assert size.item() == pytest.approx(0.05, rel=0.2)


class SecondRank(MoELayer):
    """Holds experts 2 and 3 of 4, as the second of two ranks does."""

    def local_ids(self):
        return range(2, 4)


def test_a_rank_that_holds_some_experts_gets_those(dense):
    spec = sparse((4, 4), (4, 4))
    whole, part = make(spec, seed=1), registry.build(spec, 5, second_rank)
    coverage = [load_into(model, spec, dense[1], upcycle=True, noise=0.1) for model in (whole, part)]
    assert coverage[0] == coverage[1]
    expected = weights(whole)
    held = [name for name in weights(part) if ".experts." in name]
    assert {name.split(".")[4] for name in held} == {"2", "3"}
    assert all(torch.equal(value, expected[name]) for name, value in weights(part).items() if "router" not in name)


def second_rank(kind, dim, spec, dropout):
    return SecondRank(dim, spec.experts, spec.top_k, lambda: Mlp(dim, spec.hidden))


def test_noise_belongs_to_the_name():
    weight = torch.ones(50, 40)
    assert torch.equal(perturb(weight, "a", 0.1, 0), perturb(weight, "a", 0.1, 0))
    assert not torch.equal(perturb(weight, "a", 0.1, 0), perturb(weight, "b", 0.1, 0))
    assert perturb(weight, "a", 0.0, 0) is weight
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="relative size"):
            load_into(make(DENSE), DENSE, "a.npz", noise=noise)


def test_upcycling_can_change_the_patch_grid_too(dense):
    spec = sparse((2, 2), (2, 2), image_size=24)
    model = make(spec, seed=1)
    coverage = load_into(model, spec, dense[1], upcycle=True)
    assert not coverage.exact and coverage.reason == "9 token-mixing tensors were resized"
    resized = DENSE.model_copy(update={"image_size": 24})
    plain = make(resized)
    load_into(plain, resized, dense[1])
    assert (logits(model, 24) - logits(plain, 24)).abs().max() <= 1e-6


def test_googles_layout_is_upcycled_as_well(tmp_path):
    written, spec = make(DENSE), sparse((2, 2), (2, 2))
    model = make(spec, seed=1)
    assert as_google(weights(written))
    assert load_into(model, spec, write(tmp_path, "google", weights(written)), upcycle=True).exact
    assert (logits(model) - logits(written)).abs().max() <= 1e-6


def test_what_cannot_be_upcycled_is_refused(tmp_path, dense):
    path = dense[1]
    deeper = sparse((2, 2), (2, 2), dense_blocks=3)
    wider = sparse((2, 2), (2, 2), width=9)
    for spec, parts in [
        (DENSE, ["the model has no sparse Mixer blocks", "without upcycling"]),
        (deeper, ["3 blocks, the model has 4", "set model.dense_blocks to 2"]),
        (wider, ["'stem.proj.weight' is of shape [12, 3, 4, 4]"]),
    ]:
        refused(*parts, call=lambda: load_into(make(spec), spec, path, upcycle=True), path=path)  # noqa: B023

    already = write(tmp_path, "own", weights(make(SPARSE)))
    refused(
        "belongs to a sparse model", call=lambda: load_into(make(SPARSE), SPARSE, already, upcycle=True), path=already
    )

    lacking = weights(dense[0])
    lacking.pop("blocks.2.mlp_tokens.fc1.weight")
    spec, path = sparse((2, 2), (2, 2)), write(tmp_path, "wrapped", lacking)
    model = make(spec)
    before = weights(model)
    line = "'blocks.2.mlp_tokens.fc1.weight' is missing"
    refused(line, call=lambda: load_into(model, spec, path, upcycle=True), path=path)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
