"""Under bf16 the router stays in float32: its weights, its arithmetic, and what it chooses."""

import pytest
import torch

from sparse_mlp_ds.moe.router import Router
from tests.ranks import harness, tiny

BF16 = {"bf16": {"enabled": True}}


def _routers(zero: int):
    built = tiny.build_engine(2, zero, **BF16)
    losses = [tiny.step(built, number)[0] for number in range(4)]
    found = []
    for module in built.module.modules():
        if isinstance(module, Router):
            reference = Router(module.weight.shape[1], module.weight.shape[0], module.top_k)
            reference.weight.data = module.weight.data.float()
            x = torch.randn(4, 6, module.weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
            found.append((module.weight.data, module(x, None), reference(x.float(), None)))
    others = {p.dtype for n, p in built.module.named_parameters() if "router" not in n}
    return losses, found, others


@pytest.mark.parametrize("zero", [1, 2])
def test_the_router_is_float32_in_a_bf16_engine(zero):
    for losses, routers, others in harness.run(2, _routers, zero):
        assert others == {torch.bfloat16}
        assert losses[-1] < losses[0]
        assert len(routers) == 2
        for weight, choices, reference in routers:
            assert weight.dtype == torch.float32
            assert not torch.equal(weight, weight.bfloat16().float()), "was rounded to bf16 on the way"
            assert choices.logits.dtype == choices.weight.dtype == torch.float32
            assert torch.equal(choices.expert, reference.expert)
            torch.testing.assert_close(choices.weight, reference.weight, rtol=0, atol=0)
