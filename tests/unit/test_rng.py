"""Keyed random numbers: how they are distributed, and that they depend on their key and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_mlp_ds import rng

KEYS = rng.sample_keys(0, torch.arange(20_000), "test")
DRAWS = {"uniform": rng.uniform, "normal": rng.normal}
both = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def test_uniform_fills_the_half_open_unit_interval_evenly():
    draws = rng.uniform(KEYS, 1, 50)  # one million
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=5 * 12**-0.5 / 1000)
    assert draws.std() == pytest.approx(12**-0.5, rel=1e-3)
    counts = torch.histc(draws, bins=100, min=0, max=1)
    chi_squared = ((counts - 10_000).square() / 10_000).sum()
    assert 50 < chi_squared < 170  # 99 degrees of freedom: 99 +- 14


def test_normal_is_finite_and_standard_over_ten_million_draws():
    total, squares, fourth = 0.0, 0.0, 0.0
    for stream in range(10):
        draws = rng.normal(KEYS, stream, 50).double()
        assert draws.isfinite().all()
        total, squares = total + draws.sum().item(), squares + draws.square().sum().item()
        fourth += draws.pow(4).sum().item()
    assert total / 1e7 == pytest.approx(0, abs=2e-3)  # 6 standard errors
    assert squares / 1e7 == pytest.approx(1, abs=3e-3)
    assert fourth / 1e7 == pytest.approx(3, abs=2e-2)


@both
@pytest.mark.parametrize("pick", [[7], [0, 3, 4], [19_999, 5, 5, 0], list(range(100))[::-1]], ids=str)
def test_a_sample_draws_the_same_in_any_batch(draw, pick):
    assert torch.equal(draw(KEYS[pick], 3, 6), draw(KEYS, 3, 6)[pick])


@both
def test_more_draws_leave_the_first_ones_as_they_are(draw):
    assert torch.equal(draw(KEYS[:50], 3, 40)[:, :7], draw(KEYS[:50], 3, 7))


def _first_uniform(seed=0, first=0, name="test", stream=1):
    return rng.uniform(rng.sample_keys(seed, torch.arange(first, first + 20_000), name), stream, 1)[:, 0]


PAIRS = {
    "other seed": (_first_uniform(), _first_uniform(seed=1)),
    "other name": (_first_uniform(), _first_uniform(name="tests")),
    "other stream": (_first_uniform(), _first_uniform(stream=2)),
    "next sample": (_first_uniform(), _first_uniform(first=1)),
    "next epoch": (_first_uniform(), _first_uniform(first=1437)),
    "large seed": (_first_uniform(), _first_uniform(seed=2**63 + 12345)),
    "neighbouring draws": rng.uniform(KEYS, 1, 2).unbind(1),
    "far draws": rng.uniform(KEYS, 1, 65)[:, [0, 64]].unbind(1),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_draws_of_other_keys_are_others_and_uncorrelated(pair):
    one, other = pair
    assert (one == other).float().mean() < 1e-3
    assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 5 / len(one) ** 0.5


def test_no_two_samples_share_a_key():
    keys = torch.cat([rng.sample_keys(seed, torch.arange(100_000), "test") for seed in range(3)])
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == len(keys)


PRINT_NUMBERS = """
import json, torch
from sparse_mlp_ds import rng
keys = rng.sample_keys(2**40 + 3, torch.tensor([0, 1, 2**33]), "pretrain")
uniform = rng.uniform(keys, rng.stream_id("augment/flip"), 3)
print(json.dumps([rng.stream_id("blocks.3.moe_s.router"), keys.tolist(), uniform.tolist()]))
"""


def test_a_new_interpreter_draws_the_same_numbers():
    keys = rng.sample_keys(2**40 + 3, torch.tensor([0, 1, 2**33]), "pretrain")
    here = [
        rng.stream_id("blocks.3.moe_s.router"),
        keys.tolist(),
        rng.uniform(keys, rng.stream_id("augment/flip"), 3).tolist(),
    ]
    other_hashes = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONHASHSEED": other_hashes, "PYTHONPATH": str(Path(rng.__file__).parents[1])}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_NUMBERS], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert json.loads(there.stdout) == here


MASK = 2**64 - 1


def _split_mix(state, number):
    """Output `number` (from 1) of SplitMix64 in Python's integers."""
    z = (state + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_generator_is_split_mix_64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of state 1234567
    assert [_split_mix(1234567, n) for n in (1, 2, 3)] == published
    for key, stream in ((5, 0), (-1, 7), (2**62 + 3, 2**63 - 1)):
        state = _split_mix((key & MASK) ^ stream, 0)
        expected = [(_split_mix(state, n) >> 40) * 2.0**-24 for n in range(1, 9)]
        assert rng.uniform(torch.tensor([key]), stream, 8)[0].tolist() == expected


def _key_of(bits, stream):
    """The key whose first draw in a stream has these 64 bits: SplitMix64 backwards."""

    def before_mix(z):
        for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
            shifted = z
            for _ in range(64 // shift):
                z = shifted ^ (z >> shift)
            z = z * pow(factor, -1, 2**64) & MASK
        return z

    key = before_mix((before_mix(bits) - 0x9E3779B97F4A7C15) & MASK) ^ stream
    return key - 2**64 if key >> 63 else key


def test_the_extreme_bits_stay_inside_the_interval_and_finite():
    extremes = [0, 2**40 - 1, 2**63, MASK - (2 << 41), MASK - (1 << 41), MASK]  # the last: 64 ones
    keys = torch.tensor([_key_of(bits, 9) for bits in extremes])
    assert rng.uniform(keys, 9, 1)[:, 0].tolist() == [(bits >> 40) * 2.0**-24 for bits in extremes]
    draws = rng.normal(keys, 9, 1)[:, 0]
    assert draws.dtype == torch.float32
    # the inverse normal distribution function at half a step of 2^-23 inside (0, 1)
    assert draws[[0, 1, 5]].tolist() == pytest.approx([-5.2947, -5.2947, 5.2947], abs=1e-2)
    assert draws[2] == pytest.approx(0, abs=1e-6)
    assert draws[3] < draws[4] < draws[5]
