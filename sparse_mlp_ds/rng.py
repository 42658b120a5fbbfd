"""Random numbers that belong to a sample, not to a rank.

Every draw is a pure function of seed, sample number, stream and position: a counter-based generator in the manner of
SplitMix64 (Steele, Lea and Flood, 2014) that works on whole tensors. The same image gets the same gate noise,
stochastic depth and augmentation on any number of ranks, on CPU and on GPU, and a resumed run needs no saved state.

A stream is one purpose of random numbers, such as the gate noise of one layer. In shapes, B is the number of samples
and N the number of draws per sample.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

# SplitMix64's constants, as signed 64-bit integers because that is what torch multiplies (with wrap-around).
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)
_LARGEST = (1 << 63) - 1


def stream_id(name: str) -> int:
    """Return the 63-bit number of a stream, given its name; unlike `hash`, it is the same in every interpreter."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def sample_keys(seed: int, numbers: Tensor, stream: str) -> Tensor:
    """Return one key per sample, from which its random numbers follow: [B] int64.

    Args:
        seed: the run's seed.
        numbers: [B] int64, sample numbers that count over the whole stage (epoch x epoch length + position), so that a
            sample gets new random numbers in each epoch.
        stream: name of the stream.
    """
    return _mix(_mix(numbers + _wrap(seed * 0x9E3779B1)) ^ stream_id(stream))


def drawn_keys(samples: int, device: torch.device) -> Tensor:
    """Return one key per sample from torch's own generator, where there is no seed of a run: [B] int64."""
    return torch.randint(2**62, (samples,), device=device)


def fold(keys: Tensor, numbers: int | Tensor) -> Tensor:
    """Return different keys for each repeated use, such as a layer that several blocks share, or each item of an image.

    keys: int64. numbers: int64, which use it is; keys and numbers broadcast.
    """
    return _mix(keys + (_steps(numbers + 1) if isinstance(numbers, Tensor) else _wrap((numbers + 1) * _GAMMA)))


def uniform(keys: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Return [B, N] float32 uniform draws in [0, 1), from keys [B] and a stream's number (see `stream_id`)."""
    bits = _bits(keys, stream, n)
    return _shift_right(bits, 40, bits).to(torch.float32).mul_(2.0**-24)


def uniform_by_stream(keys: Tensor, streams: Tensor) -> Tensor:
    """Return [S, B] float32: the one draw that `uniform(keys, stream, 1)` would give for each of S streams.

    keys: [B], or [S, B] if they differ between streams. streams: [S] int64, the streams' numbers.
    """
    bits = _mix(_mix(keys ^ streams[:, None]) + _counters(1, keys.device))
    return _shift_right(bits, 40, bits).to(torch.float32).mul_(2.0**-24)


def normal(keys: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Return [B, N] float32 standard normal draws, from keys [B] and a stream's number (see `stream_id`).

    They are computed by the inverse of the normal distribution function.
    """
    # Half a step inside (0, 1), on a grid that float32 holds exactly: at 1 itself the inverse is infinite.
    bits = _bits(keys, stream, n)
    steps = _shift_right(bits, 41, bits).to(torch.float32)
    return torch.special.ndtri(steps.add_(0.5).mul_(2.0**-23))


def _bits(keys: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Return 64 random bits for each draw: [B, N] int64."""
    return _mix(_mix(keys ^ stream)[:, None] + _counters(n, keys.device))


@lru_cache(maxsize=32)
def _counters(n: int, device: torch.device) -> Tensor:
    return _steps(torch.arange(1, n + 1, device=device))


def _steps(numbers: Tensor) -> Tensor:
    """Return numbers, which are not negative, times the constant, modulo 2**64."""
    # torch.compile takes a range times a constant for an index into memory, which is 32 bits wide on a GPU. The bitwise
    # operation, which changes nothing, makes it a product like any other.
    return (numbers & _LARGEST) * _GAMMA


def _mix(z: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of z, which is overwritten: new memory for each operation takes longer."""
    shifted = torch.empty_like(z)
    for bits, multiplier in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
        z ^= _shift_right(z, bits, shifted)
        z *= multiplier
    z ^= _shift_right(z, 31, shifted)
    return z


def _shift_right(z: Tensor, bits: int, out: Tensor) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of a signed integer fills with the sign bit.

    out: where the result is written, which may be z itself.
    """
    torch.bitwise_right_shift(z, bits, out=out)
    out &= (1 << (64 - bits)) - 1
    return out


def _wrap(value: int) -> int:
    """Return `value` modulo 2**64 as a signed 64-bit integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
