"""The epoch as arithmetic: which samples each step, rank and micro-batch sees, as a function of (seed, epoch, step).

A stage's samples are numbered from 0 through all of its epochs. That number is the loader's whole state: a run resumes
at any of them, on any number of ranks, and goes through the same images in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Item:
    """One sample to be loaded."""

    sample: int
    """Its number in the index."""
    number: int
    """Its number in the stage, which keys every random draw about it."""


@dataclass(frozen=True)
class TrainingOrder:
    """The order of one training stage."""

    samples: int
    """Samples in the index."""
    batch_size: int
    """Samples per optimizer step over all ranks."""
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the tail that fills none is left out, another one in each epoch."""
        return self.samples // self.batch_size

    @property
    def left_out(self) -> int:
        """Samples of each epoch that fill no batch."""
        return self.samples % self.batch_size

    def items(self, step: int, first: int, count: int) -> list[Item]:
        """Return the items at places first .. first + count - 1 of a step's global batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.batch_size + first
        samples = _permutation(self.seed, epoch, self.samples)[start : start + count]
        number = epoch * self.samples + start
        return [Item(int(sample), number + i) for i, sample in enumerate(samples)]


def micro_batches(
    order: TrainingOrder, steps: range, rank: int, world: int, micro: int, accumulation: int
) -> Iterator[list[Item]]:
    """Yield one rank's micro-batches: each is a run of neighbours in the global batch, so routing groups stay whole."""
    for step in steps:
        for turn in range(accumulation):
            yield order.items(step, (turn * world + rank) * micro, micro)


def evaluation_batches(samples: int, rank: int, world: int, batch: int) -> Iterator[list[Item]]:
    """Yield one rank's share of samples 0 .. samples - 1 in batches of exactly `batch`.

    Every rank yields the same number of batches; places beyond the end repeat sample 0 under number -1, to be masked.
    """
    for start in range(0, samples, batch * world):
        numbers = range(start + rank * batch, start + (rank + 1) * batch)
        yield [Item(n, n) if n < samples else Item(0, -1) for n in numbers]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)
