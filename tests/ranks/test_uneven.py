"""Ranks with other numbers of images, or none, and experts that all or nobody chose: no hang, and the right result."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.distributed import comm, process_group
from tests.helpers import harness, tiny

MODES = {
    "deterministic": None,
    # With keys: gate noise, dropout inside experts, and at one image per routing group capacity below demand.
    "noisy": {"priority": "position"},
    "importance": {"priority": "importance"},
    "random": {"priority": "random"},
    "expert choice": {"priority": "expert_choice"},
}


def _layer_with_gradients(counts: tuple[int, ...], one_expert: bool, mode: str):
    """Each rank runs its run of images through an MoE layer; returns outputs and all gradients.

    Balance losses are means over a rank's routing groups: they enter as sums, weighted by the number of groups.
    """
    routing = MODES[mode]
    layer = tiny.model(process_group.world_size(), top_k=1, group_images=1, **(routing or {})).blocks[1].moe_c
    if one_expert:
        with torch.no_grad():
            layer.router.weight.zero_()
            layer.router.weight[2] = 1.0
    generator = torch.Generator().manual_seed(5)
    everything = torch.rand(sum(counts), 8, 12, generator=generator)  # positive, so that the weight above wins
    start = sum(counts[: process_group.rank()])
    mine = slice(start, start + counts[process_group.rank()])
    keys = rng.sample_keys(3, torch.arange(sum(counts)), "test")[mine] if routing else None
    x = everything[mine].requires_grad_()
    y, report = layer(x, keys)
    (y.square().sum() + report.balance * len(x)).backward()
    gradients = {name: p.grad for name, p in layer.experts.named_parameters()}
    assert all(g is not None for g in gradients.values()), "an idle expert left the graph"
    return y.detach(), x.grad, gradients, comm.all_reduce(layer.router.weight.grad), comm.all_reduce(report.sums)


def _every_case(counts: tuple[int, ...]):
    return {
        (mode, one_expert): _layer_with_gradients(counts, one_expert, mode)
        for mode in MODES
        for one_expert in (False, True)
    }


@pytest.mark.parametrize("counts", [(8, 4), (8, 0), (1, 7), (0, 3), (3, 0, 0, 5)])
def test_uneven_ranks_equal_one_process(counts):
    expected = harness.run(1, _every_case, (sum(counts),))[0]
    results = harness.run(len(counts), _every_case, counts, seconds=20)
    for case in expected:
        y, x, gradients, router, sums = zip(*(result[case] for result in results), strict=True)
        named = {name: value for part in gradients for name, value in part.items()}
        whole = (torch.cat(y), torch.cat(x), named, router[0], sums[0])
        torch.testing.assert_close(whole, expected[case], msg=lambda m, c=case: f"{c}: {m}")
