"""The data order, computed: which samples each step, rank and micro-batch gets is a function of (seed, epoch, step).

A stage's samples are numbered from 0 through all of its epochs. That number is the loader's whole state: a run resumes
at any of them, on any number of ranks, and gets the same images in the same order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class BatchIndices:
    """Which samples form one micro-batch of B samples."""

    samples: np.ndarray
    """[B] int64, each sample's position in the index."""
    numbers: np.ndarray
    """[B] int64, each sample's number in the stage, which keys every random draw about it; -1 marks padding."""


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    shard_sizes: tuple[int, ...]
    """Number of samples in each of its tars."""
    samples_per_epoch: int
    """Number of its samples in an epoch. They come from an endless sequence of passes over the data set, so no sample
    is repeated before every other sample of the data set has been used."""


@dataclass(frozen=True)
class TrainingOrder:
    """The order of the samples in one training stage."""

    parts: tuple[Part, ...]
    """The data sets that are mixed."""
    batch_size: int
    """Samples per optimizer step over all ranks."""
    seed: int
    """Seed of the run."""
    window: int = 0
    """Number of tars that are shuffled together; their samples come before those of the next tars, which keeps reads
    close to each other where random ones are slow. 0 shuffles all tars together."""
    pad: bool = False
    """Whether an epoch's last batch is filled with samples from the epoch's beginning. If not, samples that do not fill
    a batch are left out."""
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def samples(self) -> int:
        """Number of samples in an epoch, before its end is dropped or padded."""
        return sum(part.samples_per_epoch for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return -(-self.samples // self.batch_size) if self.pad else self.samples // self.batch_size

    @property
    def left_out(self) -> int:
        """Number of samples that each epoch leaves out, different ones every time; if negative, of padded samples."""
        return self.samples - self.steps_per_epoch * self.batch_size

    @property
    def length(self) -> int:
        """By how much a sample's number in the stage grows from one epoch to the next."""
        return max(self.samples, self.steps_per_epoch * self.batch_size)

    def batch_indices(self, step: int, first: int, count: int) -> BatchIndices:
        """Return positions first to first + count - 1 of the global batch of a step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.batch_size + first
        samples = self._epoch(epoch)
        chosen = samples[start : start + count]
        if len(chosen) < count:  # padded with the epoch's beginning
            chosen = samples[np.arange(start, start + count) % len(samples)]
        number = epoch * self.length + start
        return BatchIndices(chosen, np.arange(number, number + count))

    def following(self, number: int, distance: int) -> int:
        """Return the sample `distance` positions after number `number` of the stage.

        It belongs to the same epoch: after the epoch's last sample comes its first one.
        """
        epoch, position = divmod(number, self.length)
        samples = self._epoch(epoch)
        return int(samples[(position + distance) % len(samples)])

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in their order, int64."""
        if epoch not in self._epochs:
            self._epochs.clear()  # a stage goes through its epochs in order
            self._epochs[epoch] = _mixed(self.parts, self.window, self.seed, epoch)
        return self._epochs[epoch]


def samples_per_epoch(sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Return how many samples of an epoch come from each data set of a mixture; their sum is that of `sizes`.

    sizes: Number of samples in each data set. weights: Their weights in the mixture (the largest remainders are rounded
    up); without weights every sample comes once.
    """
    if weights is None:
        return list(sizes)
    exact = np.array(weights, dtype=float) * sum(sizes) / sum(weights)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: sum(sizes) - counts.sum()]] += 1
    return counts.tolist()


def micro_batches(
    order: TrainingOrder, steps: Iterable[int], positions: range, accumulation: int = 1
) -> Iterator[BatchIndices]:
    """Yield one rank's micro-batches: each is a run of neighbours in the global batch, so routing groups stay whole.

    Args:
        order: The stage's order.
        steps: The optimizer steps.
        positions: This rank's positions in each of the `accumulation` parts into which a global batch is cut.
        accumulation: Number of micro-batches per optimizer step.
    """
    for step in steps:
        for part in range(accumulation):
            first = part * (order.batch_size // accumulation) + positions.start
            yield order.batch_indices(step, first, len(positions))


def evaluation_batches(samples: int, rank: int, world: int, batch: int) -> Iterator[BatchIndices]:
    """Yield one rank's part of samples 0 to samples - 1 in batches of equal size.

    Every rank yields the same number of batches. Positions beyond the last sample are padding, to be masked: they
    repeat sample 0 under the number -1.

    Args:
        samples: Number of samples to evaluate.
        rank: This rank.
        world: Number of ranks.
        batch: Samples per batch of one rank.
    """
    for start in range(0, samples, batch * world):
        numbers = start + rank * batch + np.arange(batch)
        real = numbers < samples
        yield BatchIndices(np.where(real, numbers, 0), np.where(real, numbers, -1))


def _mixed(parts: tuple[Part, ...], window: int, seed: int, epoch: int) -> np.ndarray:
    """Return the samples of one epoch of a mixture."""
    source = np.repeat(np.arange(len(parts)), [part.samples_per_epoch for part in parts])
    if len(parts) > 1:
        source = source[np.argsort(draws(seed, epoch, len(parts), len(source)), kind="stable")]
    samples, first = np.empty(len(source), np.int64), 0
    for number, part in enumerate(parts):
        passes = _passes(part, number, window, seed, epoch * part.samples_per_epoch)
        samples[source == number] = first + passes
        first += sum(part.shard_sizes)
    return samples


def _passes(part: Part, number: int, window: int, seed: int, start: int) -> np.ndarray:
    """Return one epoch's samples of a data set: from position `start` of its endless sequence of passes on."""
    size, count, pieces = sum(part.shard_sizes), part.samples_per_epoch, []
    while count:
        turn, position = divmod(start, size)
        pieces.append(_pass(part.shard_sizes, number, window, seed, turn)[position : position + count])
        start, count = start + len(pieces[-1]), count - len(pieces[-1])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _pass(shard_sizes: tuple[int, ...], number: int, window: int, seed: int, turn: int) -> np.ndarray:
    """Return a permutation of a data set's samples: tars in random order, mixed within windows of some tars."""
    found = draws(seed, turn, number, sum(shard_sizes) + len(shard_sizes))
    rank_of_shard = found[sum(shard_sizes) :].argsort(kind="stable").argsort(kind="stable")
    window_of_shard = rank_of_shard // (window or len(shard_sizes))
    return np.lexsort((found[: sum(shard_sizes)], np.repeat(window_of_shard, shard_sizes)))


def draws(seed: int, turn: int, stream: int, n: int) -> np.ndarray:
    """Return [n] uint64, random numbers that follow from the rest.

    numpy guarantees that Philox's never change, unlike its permutations.
    """
    return np.random.Philox(key=[seed, turn], counter=stream << 192).random_raw(n)
