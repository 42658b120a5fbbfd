"""Ranks with other numbers of images, or none, and experts that all or nobody chose: no hang, and the right result."""

import pytest
import torch

from sparse_mlp_ds import dist
from tests.ranks import harness, tiny


def _layer_with_gradients(counts: tuple[int, ...], one_expert: bool):
    """Each rank runs its run of images through an MoE layer; returns outputs and the experts' summed gradients."""
    layer = tiny.model(ep_size=dist.world_size(), top_k=1).blocks[1].moe_c
    if one_expert:
        with torch.no_grad():
            layer.router.weight.zero_()
            layer.router.weight[2] = 1.0
    generator = torch.Generator().manual_seed(5)
    everything = torch.rand(sum(counts), 8, 12, generator=generator)  # positive, so that the weight above wins
    start = sum(counts[: dist.rank()])
    x = everything[start : start + counts[dist.rank()]].requires_grad_()
    y, report = layer(x)
    (y.square().sum() + report.balance).backward()
    gradients = {name: p.grad for name, p in layer.experts.named_parameters()}
    assert all(g is not None for g in gradients.values()), "an idle expert left the graph"
    return y.detach(), x.grad, gradients


@pytest.mark.parametrize("one_expert", [False, True])
@pytest.mark.parametrize("counts", [(8, 4), (8, 0), (1, 7), (0, 3), (3, 0, 0, 5)])
def test_uneven_ranks_equal_one_process(counts, one_expert):
    expected_y, expected_x, expected = harness.run(1, _layer_with_gradients, (sum(counts),), one_expert)[0]
    results = harness.run(len(counts), _layer_with_gradients, counts, one_expert, seconds=30)
    torch.testing.assert_close(torch.cat([y for y, _, _ in results]), expected_y)
    torch.testing.assert_close(torch.cat([x for _, x, _ in results]), expected_x)
    gradients = {name: value for _, _, part in results for name, value in part.items()}
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")
