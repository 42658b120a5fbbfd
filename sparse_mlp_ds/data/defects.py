"""What can be wrong with a sample, and how much of it is too much.

A bad sample never ends a run by itself: the next one of the order takes its place, and it is counted here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sparse_mlp_ds import dist
from sparse_mlp_ds.errors import ReportedError, UserError

READ, UNDECODABLE, TOO_LARGE, LABEL = "read", "undecodable", "too_large", "label"
REASONS = (READ, UNDECODABLE, TOO_LARGE, LABEL)
"""Why a sample that the index lists may turn out bad when it is read."""


class BadSampleError(Exception):
    """A sample cannot be used. `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Bad:
    """A sample that was met and could not be used."""

    shard: str
    key: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.shard}: sample '{self.key}': {self.detail}"


class BadCount:
    """Counts the bad samples of one stage and ends the run, on all ranks alike, when an epoch has too many."""

    def __init__(self, limit: float, samples: int):
        """limit: largest share of bad samples in an epoch of `samples`."""
        self.limit, self.samples = limit, samples
        self.found: list[Bad] = []
        """Those that this rank met in the epoch."""
        self._epoch = -1
        self._reasons = Counter(dict.fromkeys(REASONS, 0))

    def add(self, bad: Iterable[Bad], epoch: int) -> None:
        """Count what one batch of this rank met."""
        if epoch != self._epoch:
            self._epoch, self.found = epoch, []
        for one in bad:
            self._reasons[one.reason] += 1
            self.found.append(one)

    def read(self) -> dict[str, int]:
        """Return `bad/REASON` counts over all ranks since the stage's start; those that are 0 are left out.

        Collective. Raises UserError naming the worst shard, on every rank, past the limit.
        """
        counts = [len(self.found), *(self._reasons[reason] for reason in REASONS)]
        in_epoch, *reasons = dist.all_reduce(torch.tensor(counts, device=dist.device())).tolist()
        if in_epoch > self.limit * self.samples:
            everything = [one for part in dist.gather_objects(self.found) for one in part]
            kind = UserError if dist.rank() == 0 else ReportedError
            raise kind(too_many(everything, in_epoch, self.samples, self.limit))
        return {f"bad/{reason}": count for reason, count in zip(REASONS, reasons, strict=True) if count}


def too_many(found: list[Bad], count: int, samples: int, limit: float) -> str:
    """Return the line that names the worst shard and an example."""
    worst, there = Counter(one.shard for one in found).most_common(1)[0]
    example = next(one for one in found if one.shard == worst)
    return (
        f"{count} of {samples} samples are bad, more than data.bad_limit {limit:g} allows; worst is {worst} with "
        f"{there}, such as {example.key!r} ({example.detail}); remake it, or raise data.bad_limit"
    )
