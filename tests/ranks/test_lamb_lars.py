"""LAMB and LARS on several ranks: every tensor, and every expert, gets the trust ratio of a single process."""

import functools

import pytest
import torch

from tests.helpers import harness, tiny

STEPS = 3


def _steps(ep_size: int, cases: list[tuple[str, int, bool]]):
    results = []
    for optimizer, zero, exempt in cases:
        built = tiny.build_engine(ep_size, zero, optimizer=optimizer, exempt_vectors=exempt)
        figures = [tiny.step(built, number) for number in range(STEPS)]
        results.append((figures, tiny.gather(dict(built.module.named_parameters()))))
    return results


@functools.lru_cache
def _reference(optimizer: str, exempt: bool = True):
    return harness.run(1, _steps, 1, [(optimizer, 0, exempt)])[0][0]


@pytest.mark.parametrize(("world", "ep_size"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)])
def test_trust_ratios_are_those_of_one_process(world, ep_size):
    cases = [(optimizer, zero, True) for optimizer in ("lamb", "lars") for zero in (0, 1, 2)] + [("lamb", 1, False)]
    for rank in harness.run(world, _steps, ep_size, cases):
        for (optimizer, zero, exempt), (figures, parameters) in zip(cases, rank, strict=True):
            expected_figures, expected = _reference(optimizer, exempt)
            assert figures == [pytest.approx(one, rel=1e-4) for one in expected_figures], (optimizer, zero)
            for name, value in parameters.items():
                says = lambda m, n=name: f"{optimizer}, ZeRO {zero}, exempt {exempt}, {n}: {m}"  # noqa: E731, B023
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=says)


def test_the_reference_scales_by_tensor():
    """Without this the ratios might all be 1 everywhere."""
    lamb, adamw = _reference("lamb")[1], harness.run(1, _steps, 1, [("adamw", 0, True)])[0][0][1]
    assert not torch.allclose(lamb["blocks.0.mlp_channels.fc1.weight"], adamw["blocks.0.mlp_channels.fc1.weight"])
    bias = "blocks.0.mlp_channels.fc1.bias"
    assert not torch.allclose(lamb[bias], _reference("lamb", False)[1][bias])
