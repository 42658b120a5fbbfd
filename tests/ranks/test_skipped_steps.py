"""A gradient that is not finite on one rank: all ranks skip the step alike, and in the end name the tensor."""

import math

import pytest
import torch

from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import RunError
from sparse_mlp_ds.train.skipped_steps import SkippedSteps
from tests.helpers import harness, tiny

POISONED = {
    "dense": "blocks.0.mlp_channels.fc1.weight",
    "router": "blocks.1.moe_c.router.weight",
    "expert": "blocks.1.moe_s.experts.{}.fc1.weight",  # one of those that live on the last rank
}


def _run(ep_size: int, cases: list[tuple[str, int, bool]]):
    """Per case: how many of 4 steps were skipped, whether a skipped step moved a weight, and what the guard said."""
    results = []
    for which, zero, bf16 in cases:
        built = tiny.build_engine(ep_size, zero, **({"bf16": {"enabled": True}} if bf16 else {}))
        guard = SkippedSteps(built.module, limit=1)
        parameters = dict(built.module.named_parameters())
        name = POISONED[which].format(3)
        poison = {"on": False}
        if process_group.rank() == process_group.world_size() - 1:
            parameters[name].register_hook(lambda g, p=poison: g + (math.inf if p["on"] else 0.0))
        moved, said = [], None
        for number, on in enumerate((False, True, False, True, True)):
            poison["on"] = on
            before = {n: p.detach().clone() for n, p in parameters.items()}
            tiny.step(built, number)
            moved.append(any(not torch.equal(before[n], p) for n, p in parameters.items()))
            try:
                guard.check(built.skipped_steps)
            except RunError as error:
                said = str(error)
        results.append((built.skipped_steps, moved, said))
    return results


@pytest.mark.parametrize(("world", "ep_size"), [(2, 2), (4, 2)])
def test_all_ranks_skip_the_step_and_the_guard_names_the_tensor(world, ep_size):
    cases = [("dense", 0, False), ("router", 2, False), ("expert", 2, True)]
    cases += [("expert", zero, False) for zero in (0, 1, 2)]
    ranks = harness.run(world, _run, ep_size, cases)
    for number, (which, zero, bf16) in enumerate(cases):
        case = f"{which}, ZeRO {zero}, bf16 {bf16}"
        for rank in ranks:
            skipped, moved, _ = rank[number]
            assert (skipped, moved) == (3, [True, False, True, False, False]), case
        said = [rank[number][2] for rank in ranks]
        assert "2 steps in a row" in said[0] and "not finite" in said[0], case
        assert POISONED[which].format(3) in said[0], case
        assert said[1:] == [""] * (world - 1), case
