"""The epoch as arithmetic: which samples each step, rank and micro-batch sees, as a function of (seed, epoch, step).

A stage's samples are numbered from 0 through all of its epochs. That number is the loader's whole state: a run resumes
at any of them, on any number of ranks, and goes through the same images in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Slots:
    """The places of one micro-batch, [B] each."""

    samples: np.ndarray
    """int64, numbers in the index."""
    numbers: np.ndarray
    """int64, each place's number in the stage, which keys every random draw about it; -1 marks padding."""


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    shards: tuple[int, ...]
    """Samples of each of its tars."""
    share: int
    """Its places in an epoch. They are filled from an endless stream of passes over the data set, so no sample comes
    again before every other one was there."""


@dataclass(frozen=True)
class TrainingOrder:
    """The order of one training stage."""

    parts: tuple[Part, ...]
    batch_size: int
    """Samples per optimizer step over all ranks."""
    seed: int
    window: int = 0
    """Tars that are shuffled together: their samples come mixed, and before those of the next ones, which keeps reads
    near one another where random ones are slow; 0 mixes all."""
    pad: bool = False
    """Fill the last batch of an epoch from its beginning, instead of leaving out what fills none."""
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def samples(self) -> int:
        """Places of an epoch, before its tail is dropped or padded."""
        return sum(part.share for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.samples // self.batch_size) if self.pad else self.samples // self.batch_size

    @property
    def left_out(self) -> int:
        """Samples of each epoch that are left out, others in each one; negative: places that are padded."""
        return self.samples - self.steps_per_epoch * self.batch_size

    @property
    def length(self) -> int:
        """Numbers that an epoch takes."""
        return max(self.samples, self.steps_per_epoch * self.batch_size)

    def slots(self, step: int, first: int, count: int) -> Slots:
        """Return places first .. first + count - 1 of a step's global batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.batch_size + first
        samples = self._epoch(epoch)
        picked = samples[start : start + count]
        if len(picked) < count:  # padded, from the epoch's beginning
            picked = samples[np.arange(start, start + count) % len(samples)]
        number = epoch * self.length + start
        return Slots(picked, np.arange(number, number + count))

    def following(self, number: int, distance: int) -> int:
        """Return the sample that lies `distance` places behind place `number` in the same epoch, going around."""
        epoch, place = divmod(number, self.length)
        samples = self._epoch(epoch)
        return int(samples[(place + distance) % len(samples)])

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in their order, [places] int64."""
        if epoch not in self._epochs:
            self._epochs.clear()  # stages go through their epochs in order
            self._epochs[epoch] = _mixed(self.parts, self.window, self.seed, epoch)
        return self._epochs[epoch]


def shares(samples: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Return how many places of an epoch each data set of a mixture gets; together as many as there are samples.

    By weight, the largest remainders rounded up; without weights each sample has one place.
    """
    if weights is None:
        return list(samples)
    exact = np.array(weights, dtype=float) * sum(samples) / sum(weights)
    places = np.floor(exact).astype(int)
    places[np.argsort(places - exact, kind="stable")[: sum(samples) - places.sum()]] += 1
    return places.tolist()


def micro_batches(order: TrainingOrder, steps: range, share: range, accumulation: int = 1) -> Iterator[Slots]:
    """Yield one rank's micro-batches: each is a run of neighbours in the global batch, so routing groups stay whole.

    share: its places of each of the `accumulation` turns into which the batch is cut.
    """
    for step in steps:
        for turn in range(accumulation):
            yield order.slots(step, turn * (order.batch_size // accumulation) + share.start, len(share))


def evaluation_batches(samples: int, rank: int, world: int, batch: int) -> Iterator[Slots]:
    """Yield one rank's share of samples 0 .. samples - 1 in batches of exactly `batch`.

    Every rank yields the same number of batches; places beyond the end repeat sample 0 under number -1, to be masked.
    """
    for start in range(0, samples, batch * world):
        numbers = start + rank * batch + np.arange(batch)
        real = numbers < samples
        yield Slots(np.where(real, numbers, 0), np.where(real, numbers, -1))


def _mixed(parts: tuple[Part, ...], window: int, seed: int, epoch: int) -> np.ndarray:
    """Return the samples of one epoch of a mixture."""
    source = np.repeat(np.arange(len(parts)), [part.share for part in parts])
    if len(parts) > 1:
        source = source[np.argsort(_draws(seed, epoch, len(parts), len(source)), kind="stable")]
    samples, first = np.empty(len(source), np.int64), 0
    for number, part in enumerate(parts):
        stream = _stream(part, number, window, seed, epoch * part.share, part.share)
        samples[source == number] = first + stream
        first += sum(part.shards)
    return samples


def _stream(part: Part, number: int, window: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return places start .. start + count - 1 of a data set's endless stream of passes."""
    size, pieces = sum(part.shards), []
    while count:
        turn, place = divmod(start, size)
        pieces.append(_pass(part.shards, number, window, seed, turn)[place : place + count])
        start, count = start + len(pieces[-1]), count - len(pieces[-1])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _pass(shards: tuple[int, ...], number: int, window: int, seed: int, turn: int) -> np.ndarray:
    """Return a permutation of a data set's samples: tars in random order, mixed within windows of some tars."""
    draws = _draws(seed, turn, number, sum(shards) + len(shards))
    place_of_shard = draws[sum(shards) :].argsort(kind="stable").argsort(kind="stable")
    window_of_shard = place_of_shard // (window or len(shards))
    return np.lexsort((draws[: sum(shards)], np.repeat(window_of_shard, shards)))


def _draws(seed: int, turn: int, stream: int, n: int) -> np.ndarray:
    """Return [n] raw 64-bit draws: numpy promises Philox's to stay, unlike what its permutations make of them."""
    return np.random.Philox(key=[seed, turn], counter=stream << 192).random_raw(n)
