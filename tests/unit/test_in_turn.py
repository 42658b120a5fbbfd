"""Experts as one operation for autograd: the bits of each expert called by itself, forward and backward."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.moe import in_turn

SIZES = {"even": (5, 5, 5), "uneven": (1, 12, 2), "one without rows": (7, 0, 8), "none with rows": (0, 0, 0)}


def with_dropout(rate, experts):
    """Experts, each with random streams of its own, as a model's have them."""
    made = [Mlp(12, 24, rate) for _ in range(experts)]
    for number, layer in enumerate(layer for expert in made for layer in (expert.dropout1, expert.dropout2)):
        layer.stream.fill_(1000 + number)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", SIZES)
def test_results_and_gradients_are_those_of_each_expert_alone(name, dropout, dtype):
    torch.manual_seed(0)
    sizes = SIZES[name]
    experts = [expert.to(dtype) for expert in with_dropout(dropout, len(sizes))]
    keys = rng.drawn_keys(sum(sizes), torch.device("cpu"))
    rows = torch.randn(sum(sizes), 12, dtype=dtype)
    weight = torch.randn(sum(sizes), 12, dtype=dtype)

    def run(function):
        x = rows.clone().requires_grad_()
        made = function(x)
        parameters = [parameter for expert in experts for parameter in expert.parameters()]
        return [made, *torch.autograd.grad((made * weight).sum(), [x, *parameters])]

    def one_by_one(x):
        parts = zip(experts, x.split(sizes), keys.split(sizes), strict=True)
        return torch.cat([expert(part, part_keys) for expert, part, part_keys in parts])

    alone = run(one_by_one)
    together = run(lambda x: Mlp.in_turn(experts, x, sizes, keys))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert bool(dropout and sum(sizes)) == bool((alone[0] == 0).any())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_reaches_the_products(dropout):
    torch.manual_seed(0)
    experts, rows, keys = with_dropout(dropout, 2), torch.randn(7, 12), rng.drawn_keys(7, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = zip(experts, rows.split((3, 4)), keys.split((3, 4)), strict=True)
        alone = torch.cat([expert(part, part_keys) for expert, part, part_keys in parts])
        together = Mlp.in_turn(experts, rows, (3, 4), keys)
    assert together.dtype == torch.bfloat16 and torch.equal(alone, together)
    together.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for expert in experts for parameter in expert.parameters())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    layers = [(torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).double()) for _ in range(2)]
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    parameters = [p for pair in layers for layer in pair for p in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(lambda x, *_: in_turn.mlps(x, (2, 3), layers), (rows, *parameters))
    factor = torch.tensor([0.0, 2.0, 1.0, 0.5]).repeat(5, 1)
    assert torch.autograd.gradcheck(lambda x, *_: in_turn.mlps(x, (2, 3), layers, factor), (rows, *parameters))
