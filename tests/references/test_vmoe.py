"""Routing and balance losses against V-MoE's code: which choices get a place, with which weight, and what they cost."""

import itertools

import pytest
import torch

from sparse_mlp_ds.moe import expert_choice, losses, router
from sparse_mlp_ds.moe.capacity import place, slots
from tests.helpers.references import load, under

GROUPS = 2
by_experts_and_noise = pytest.mark.parametrize(
    ("experts", "noisy"), list(itertools.product((4, 8), ("deterministic", "noisy")))
)


def choose(recorded, experts, top_k, noisy, monkeypatch):
    """Return our router's choices for the recorded items, weights and draws."""
    gate = router.Router(recorded["inputs"].shape[-1], experts, top_k)
    gate.weight.data = recorded[f"E{experts}/kernel"].T
    monkeypatch.setattr(router.rng, "normal", lambda *_: recorded[f"E{experts}/draws"].flatten(1))
    keys = torch.zeros(GROUPS, dtype=torch.int64) if noisy == "noisy" else None
    return gate(recorded["inputs"], keys)


def gates(routes, experts, items):
    """Return the weight [N, E] with which each expert's output counts for each item, 0 without a place."""
    expert = torch.arange(experts).repeat_interleave(routes.counts)
    return torch.zeros(items, experts).index_put((routes.item, expert), routes.weight, accumulate=True)


@by_experts_and_noise
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("factor", [0.5, 1.05])
def test_places_and_losses(experts, noisy, top_k, factor, monkeypatch):
    recorded = load("vmoe_routing")
    choices = choose(recorded, experts, top_k, noisy, monkeypatch)
    case = under(recorded, f"E{experts} K{top_k} C{factor} {noisy}")
    for priority in ("position", "importance"):
        routes = place(choices, experts, GROUPS, factor, priority).kept()
        expected = case[priority].flatten(0, 1)
        assert (expected > 0).sum() == len(routes.item)
        torch.testing.assert_close(gates(routes, experts, len(expected)), expected, rtol=1e-5, atol=0)
    close = {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(losses.importance_loss(choices, GROUPS), case["importance_loss"].mean(), **close)
    if noisy == "noisy":
        found = losses.load_loss(choices, GROUPS, 1 / experts)
        torch.testing.assert_close(found, case["load_loss"].mean(), **close)
    if top_k == 1:  # theirs counts first choices only
        torch.testing.assert_close(losses.switch_loss(choices, GROUPS), case["gshard_loss"].mean(), **close)


ONE_TOO_MANY = {(400, 8, 1.1): 56, (400, 4, 1.1): 111}
"""V-MoE's capacity where its floating-point product lies a little above the whole number that it is: 55 and 110."""


@pytest.mark.parametrize(("name", "multiple"), [("capacity", 1), ("capacity, multiple of 4", 4)])
def test_capacities(name, multiple):
    recorded = load("vmoe_routing")
    cases = zip(recorded["capacity of"].tolist(), recorded[name].tolist(), strict=True)
    differing = {}
    for (choices, experts, factor), expected in cases:
        setting = (int(choices), int(experts), factor)
        if slots(factor, *setting[:2], multiple) != expected:
            differing[setting] = expected
    if multiple == 1:
        assert differing == ONE_TOO_MANY
        assert [slots(factor, *rest) for *rest, factor in ONE_TOO_MANY] == [n - 1 for n in ONE_TOO_MANY.values()]
    else:
        assert differing == {}  # 56 and 112 either way


@by_experts_and_noise
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_expert_choice(experts, noisy, factor, monkeypatch):
    recorded = load("vmoe_routing")
    choices = choose(recorded, experts, 1, noisy, monkeypatch)
    routes = expert_choice.choose(choices, GROUPS, factor)
    expected = recorded[f"expert choice E{experts} C{factor} {noisy}"].flatten(0, 1)
    torch.testing.assert_close(gates(routes, experts, len(expected)), expected, rtol=1e-5, atol=0)
