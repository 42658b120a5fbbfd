"""Samples that cannot be used: why, and how many of them end a run.

A single bad sample never ends a run: the next sample of the order replaces it, and it is counted here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sparse_mlp_ds.data.index import UNLABELLED
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import UserError

READ, UNDECODABLE, TOO_LARGE, LABEL = "read", "undecodable", "too_large", "label"
REASONS = (READ, UNDECODABLE, TOO_LARGE, LABEL)
"""Why a sample that the index lists may turn out to be bad when it is read."""


class BadSampleError(Exception):
    """A sample cannot be used. `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class BadSample:
    """A sample that was read and could not be used."""

    shard: str
    """Path of the tar that holds the sample."""
    key: str
    """The sample's WebDataset key."""
    reason: str
    """One of REASONS, or `index` for a sample that was already bad when its tar was indexed."""
    detail: str
    """What is wrong with the sample, for the user."""

    def __str__(self) -> str:
        return f"{self.shard}: sample '{self.key}': {self.detail}"


class BadSampleCounter:
    """Counts the bad samples of one stage. When an epoch has too many, it ends the run on all ranks."""

    def __init__(self, limit: float, samples: int):
        """Start counting at zero.

        Args:
            limit: Largest share of bad samples that an epoch may have.
            samples: Number of samples in an epoch.
        """
        self.limit, self.samples = limit, samples
        self.in_epoch: list[BadSample] = []
        """The bad samples that this rank has met in the current epoch."""
        self._epoch = -1
        self._by_reason = Counter(dict.fromkeys(REASONS, 0))

    def add(self, bad_samples: Iterable[BadSample], epoch: int) -> None:
        """Count the bad samples of one of this rank's batches."""
        if epoch != self._epoch:
            self._epoch, self.in_epoch = epoch, []
        for bad in bad_samples:
            self._by_reason[bad.reason] += 1
            self.in_epoch.append(bad)

    def read(self) -> dict[str, int]:
        """Return the counts `bad/REASON` over all ranks since the stage's start, without those that are 0.

        Collective. Raises UserError on rank 0, which names the worst tar, and ReportedError on every other rank if the
        current epoch has more bad samples than the limit allows.
        """
        counts = [len(self.in_epoch), *(self._by_reason[reason] for reason in REASONS)]
        in_epoch, *by_reason = comm.all_reduce(torch.tensor(counts, device=process_group.device())).tolist()
        if in_epoch > self.limit * self.samples:
            from_all_ranks = [bad for part in comm.gather_objects(self.in_epoch) for bad in part]
            error = UserError(too_many(from_all_ranks, in_epoch, self.samples, self.limit))
            raise comm.printed_by_rank_zero(error)
        return {f"bad/{reason}": count for reason, count in zip(REASONS, by_reason, strict=True) if count}


def outside(label: int, classes: int, name: str = "") -> str:
    """Return what is wrong with a label that is none of the classes. name: of the label's class, if it has one."""
    if label == UNLABELLED:
        return f"has no label, though there are {classes} classes in data.classes; only pretraining does without both"
    named = f" ({name[:80]!a})" if name and name != str(label) else ""
    return f"has label {label}{named}, outside the {classes} classes of data.classes"


def too_many(bad_samples: list[BadSample], count: int, samples: int, limit: float) -> str:
    """Return the error message that names the tar with the most bad samples and one of them.

    Args:
        bad_samples: All bad samples that are known.
        count: Number of bad samples to report.
        samples: Number of samples that `count` refers to.
        limit: Largest share of bad samples that is allowed.
    """
    worst, count_there = Counter(bad.shard for bad in bad_samples).most_common(1)[0]
    example = next(bad for bad in bad_samples if bad.shard == worst)
    return (
        f"{count} of {samples} samples are bad, more than data.bad_limit {limit:g} allows; worst is {worst} with "
        f"{count_there}, such as {example.key!r} ({example.detail}); remake it, or raise data.bad_limit"
    )
