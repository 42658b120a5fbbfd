"""Experts as one operation for autograd: the bits of each expert called by itself, forward and backward."""

import pytest
import torch

from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.moe import in_turn

SIZES = {"even": (5, 5, 5), "uneven": (1, 12, 2), "one without rows": (7, 0, 8), "none with rows": (0, 0, 0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_results_and_gradients_are_those_of_each_expert_alone(name, dtype):
    torch.manual_seed(0)
    sizes = SIZES[name]
    experts = [Mlp(12, 24).to(dtype) for _ in sizes]
    rows = torch.randn(sum(sizes), 12, dtype=dtype)
    weight = torch.randn(sum(sizes), 12, dtype=dtype)

    def run(function):
        x = rows.clone().requires_grad_()
        made = function(x)
        parameters = [parameter for expert in experts for parameter in expert.parameters()]
        return [made, *torch.autograd.grad((made * weight).sum(), [x, *parameters])]

    alone = run(lambda x: torch.cat([expert(part) for expert, part in zip(experts, x.split(sizes), strict=True)]))
    together = run(lambda x: Mlp.in_turn(experts, x, sizes))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_autocast_reaches_the_products():
    torch.manual_seed(0)
    experts, rows = [Mlp(12, 24) for _ in range(2)], torch.randn(7, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = torch.cat([expert(part) for expert, part in zip(experts, rows.split((3, 4)), strict=True)])
        together = Mlp.in_turn(experts, rows, (3, 4))
    assert together.dtype == torch.bfloat16 and torch.equal(alone, together)
    together.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for expert in experts for parameter in expert.parameters())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    layers = [(torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).double()) for _ in range(2)]
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    parameters = [p for pair in layers for layer in pair for p in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(lambda x, *_: in_turn.mlps(x, (2, 3), layers), (rows, *parameters))
