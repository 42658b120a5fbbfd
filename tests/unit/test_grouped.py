"""All experts at once, as on a GPU, against the loop over experts: in bf16 on the CPU."""

import math

import pytest
import torch
from torch import nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from tests.helpers.waits import Waits

IMAGES, ITEMS, DIM = 8, 6, 16
CASES = {
    "few slots": (4, 2, {"capacity_factor": 0.5}),
    "a slot for each": (4, 1, {"capacity_factor": None}),
    "by importance": (8, 2, {"capacity_factor": 0.75, "priority": "importance"}),
    "three choices": (4, 3, {"capacity_factor": 0.75, "renormalize": True}),
    "experts choose": (4, 2, {"capacity_factor": 1.0, "priority": "expert_choice"}),
    "hardly any slot": (2, 2, {"capacity_factor": 0.1}),
}


def layer(experts, top_k, routing):
    made = MoELayer(DIM, experts, top_k, lambda: Mlp(DIM, 24), Routing(group_images=4, **routing))
    init_weights(made, seed=0)
    for expert in made.experts.values():
        for part in (expert.fc1, expert.fc2):
            nn.init.normal_(part.bias, generator=torch.Generator().manual_seed(len(made.experts)))
    made.to(torch.bfloat16).router.float()
    return made


def results(experts, top_k, routing, with_keys=True):
    """Output, gradient of the input, gradients of all parameters, and the report's sums."""
    made, draw = layer(experts, top_k, routing), torch.Generator().manual_seed(1)
    x = torch.randn(IMAGES, ITEMS, DIM, generator=draw).bfloat16().requires_grad_()
    y, report = made(x, rng.sample_keys(2, torch.arange(IMAGES), "test") if with_keys else None)
    torch.autograd.backward([y], [torch.randn(y.shape, generator=draw).bfloat16()])
    return y.detach(), x.grad, [p.grad for p in made.parameters()], report.sums


@pytest.fixture
def all_at_once(monkeypatch):
    """As on a GPU; what no kernel promises to write is NaN: rows behind the last group, products over no rows."""
    product, seen = nn.functional.grouped_mm, {"calls": 0, "left": 0, "empty": 0}

    def spoiling(a, b, offs):
        result = product(a, b, offs=offs).clone()
        if b.ndim == 2:
            empty = offs.diff(prepend=offs.new_zeros(1)) == 0
            seen["empty"] += int(empty.sum())
            result[empty] = math.nan
        else:
            seen["calls"] += 1
            seen["left"] += int(len(a) - offs[-1])
            result[offs[-1] :] = math.nan
        return result

    monkeypatch.setattr(nn.functional, "grouped_mm", spoiling)
    monkeypatch.setattr(grouped, "applies", lambda rows, experts: grouped.able(experts))
    return seen


def close(a, b):
    assert a.isfinite().all()
    assert float((a.float() - b.float()).norm()) <= 0.01 * float(b.float().norm()) + 1e-6


@pytest.mark.parametrize("with_keys", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loop(case, with_keys, request):
    expected = results(*CASES[case], with_keys)
    seen = request.getfixturevalue("all_at_once")
    got = results(*CASES[case], with_keys)
    assert seen["calls"] == 4  # two layers, forward and backward
    assert bool(seen["left"]) == (with_keys and case not in ("a slot for each", "experts choose"))
    assert torch.equal(got[3], expected[3])
    close(got[0], expected[0])
    close(got[1], expected[1])
    for own, other in zip(got[2], expected[2], strict=True):
        close(own, other)


def test_an_expert_without_rows_gets_a_zero_gradient(all_at_once):
    made, x = layer(4, 1, {"noise": 0.0}), torch.rand(IMAGES, ITEMS, DIM).bfloat16()
    with torch.no_grad():
        made.router.weight[2] = -50
    y, _ = made(x, rng.sample_keys(2, torch.arange(IMAGES), "test"))
    y.sum().backward()
    assert all_at_once["empty"] > 0
    for name, expert in made.experts.items():
        for parameter in expert.parameters():
            assert parameter.grad.isfinite().all(), name
    assert not any(parameter.grad.any() for parameter in made.experts["2"].parameters())


def test_nothing_makes_the_host_wait(monkeypatch):
    lists, tolist = [], torch.Tensor.tolist  # which no mode of torch sees on a CPU
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self.shape) or tolist(self))
    made, x = layer(4, 2, {}), torch.randn(IMAGES, ITEMS, DIM).bfloat16().requires_grad_()
    keys = rng.sample_keys(2, torch.arange(IMAGES), "test")
    with monkeypatch.context() as together, Waits() as waits:
        together.setattr(grouped, "applies", lambda rows, experts: grouped.able(experts))
        y, report = made(x, keys)
        torch.autograd.backward([y, report.balance], [torch.ones_like(y), torch.ones_like(report.balance)])
    assert waits.seen == lists == []
    made(x, keys)
    assert len(lists) == 1, "the loop waits once, for each expert's number of rows"


@pytest.mark.parametrize(("dim", "hidden", "able"), [(16, 24, True), (12, 24, False), (16, 20, False)])
def test_rows_must_be_whole_units_of_16_bytes(dim, hidden, able):
    assert grouped.able([Mlp(dim, hidden)] * 2) is able


def test_cpus_and_float32_keep_the_loop():
    experts = [Mlp(16, 24)] * 2
    assert not grouped.applies(torch.zeros(4, 16), experts)
    assert not grouped.applies(torch.zeros(4, 16).bfloat16(), experts)
    assert not grouped.able([nn.Linear(16, 16)] * 2)
