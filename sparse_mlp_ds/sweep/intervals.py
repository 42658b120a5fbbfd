"""The 95 % intervals of a difference between two settings whose runs are paired by seed.

There are two, because two things are left to chance. Over seeds: what different weights at the start and a different
order of the images would have given; few runs say little about it. Over held-out images: what different images to be
measured on would have given, with the networks as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import numpy as np

LEVEL = 0.95
"""Share of intervals that contain the true difference, as far as the assumptions hold."""
DRAWS = 10_000
"""Number of times that a bootstrap draws the held-out images; the ends of an interval vary by some hundredths of it."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A metric of one setting minus the same metric of the first setting, over the seeds that both have."""

    by_seed: dict[int, float]
    """Seed -> difference; at least one."""
    over_seeds: Interval | None
    """95 % interval of the mean; None with fewer than two seeds."""
    over_images: Interval | None
    """95 % interval of the mean; None unless every run says which of the same held-out images were right."""

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.by_seed.values())

    @property
    def is_significant(self) -> bool:
        """Whether the interval over seeds is there, and 0 lies in none of the two."""
        intervals = [one for one in (self.over_seeds, self.over_images) if one]
        return self.over_seeds is not None and all(low > 0 or high < 0 for low, high in intervals)


def difference(
    first: Mapping[int, float], other: Mapping[int, float], hits: tuple[Mapping[int, np.ndarray], ...] = ({}, {})
) -> Difference | None:
    """Return by how much a metric of one setting is above that of the first; None if they have no seed in common.

    Args:
        first: Seed -> the first setting's metric.
        other: Seed -> the other setting's metric.
        hits: For both settings, seed -> [images], 1 for each held-out image that was right and 0 for each that was
            not; the images are the same in all of them. Seeds may be missing.
    """
    seeds = [seed for seed in first if seed in other]
    if not seeds:
        return None
    by_seed = {seed: other[seed] - first[seed] for seed in seeds}
    images = None
    if all(seed in hits[0] and seed in hits[1] for seed in seeds):
        images = over_images(np.stack([hits[1][seed].astype(int) - hits[0][seed] for seed in seeds]))
    return Difference(by_seed, over_seeds(list(by_seed.values())), images)


def over_seeds(differences: list[float]) -> Interval | None:
    """Return the interval of the mean of paired differences by Student's t; None with fewer than two of them."""
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, whose import takes a second longer

    n = len(differences)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(differences) / sqrt(n)
    return fmean(differences) - half, fmean(differences) + half


def over_images(differences: np.ndarray) -> Interval:
    """Return the interval of the mean by a percentile bootstrap over images (Efron, 1979).

    A draw takes the same images for both settings and all seeds: what makes an image easy is the same for all networks,
    so draws of their own for each seed would count it several times, and give an interval that is too narrow.

    differences: [seeds, images], 1, 0 or -1: an image's hit by one setting minus its hit by the first.
    """
    images = differences.shape[1]
    values, counts = np.unique(differences.mean(axis=0), return_counts=True)
    # How often each value is drawn is multinomial, so nothing need be drawn image by image.
    drawn = np.random.default_rng(0).multinomial(images, counts / images, DRAWS)
    low, high = np.quantile(drawn @ values / images, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
