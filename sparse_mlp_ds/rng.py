"""Random numbers that belong to a sample, not to a rank.

Every draw is a pure function of (seed, sample number, stream, position): a counter-based generator in the manner of
SplitMix64 (Steele, Lea and Flood, 2014), evaluated on whole tensors. The same image gets the same gate noise,
stochastic depth and augmentation on any number of ranks, on CPU and on GPU, and a resumed run needs no saved state.

Shape letters: B samples, N draws per sample.
"""

import hashlib

import torch
from torch import Tensor

# SplitMix64's constants, as signed 64-bit integers because that is what torch multiplies (with wrap-around).
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)


def stream_id(name: str) -> int:
    """Return a 63-bit number for a stream's name, the same in every interpreter (unlike `hash`)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def sample_keys(seed: int, numbers: Tensor, stream: str) -> Tensor:
    """Return one key per sample, [B] int64.

    `numbers` [B] int64 counts samples over the whole stage (epoch x epoch length + position), so that a sample met
    again in a later epoch gets fresh draws.
    """
    return _mix(_mix(numbers + _wrap(seed * 0x9E3779B1)) ^ stream_id(stream))


def fold(keys: Tensor, numbers: int | Tensor) -> Tensor:
    """Return other keys for the n-th use of what draws more than once.

    Such are a layer shared over depth, and the items of one image. keys and numbers (int64) broadcast.
    """
    steps = (numbers + 1) * _GAMMA  # a tensor wraps around by itself
    return _mix(keys + (steps if isinstance(steps, Tensor) else _wrap(steps)))


def uniform(keys: Tensor, stream: int, n: int) -> Tensor:
    """Return [B, N] float32 in [0, 1), from keys [B] and the number of one stream."""
    return _shift_right(_bits(keys, stream, n), 40).to(torch.float32) * 2.0**-24


def normal(keys: Tensor, stream: int, n: int) -> Tensor:
    """Return [B, N] float32 standard normal draws, by the inverse of the normal distribution function."""
    # Half a step inside (0, 1), on a grid that float32 holds exactly: at 1 itself the inverse is infinite.
    steps = _shift_right(_bits(keys, stream, n), 41).to(torch.float32)
    return torch.special.ndtri((steps + 0.5) * 2.0**-23)


def _bits(keys: Tensor, stream: int, n: int) -> Tensor:
    """Return [B, N] int64 of 64 random bits each."""
    counters = torch.arange(1, n + 1, device=keys.device) * _GAMMA
    return _mix(_mix(keys ^ stream)[:, None] + counters)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLY_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLY_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right filling with zeros; torch's own shift of a signed integer repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """Return `value` modulo 2**64 as a signed 64-bit integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
