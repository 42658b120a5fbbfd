"""Training on a part of the labels, as papers do to show what pretraining without labels is worth."""

from typing import Any

import numpy as np

from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import draws

_NO_EPOCH = 2**62
"""Takes the place of an epoch's number among the random numbers, so that no epoch's order has the same ones."""


def part(indexes: list[Index], stage: Any, seed: int) -> list[Index]:
    """Return the samples that a training stage is trained on: all of them if it has no `label_fraction` below 1.

    Args:
        indexes: Those of every training source.
        stage: The stage's section of the recipe.
        seed: Seed of the run.
    """
    fraction = getattr(stage, "label_fraction", 1.0)
    if fraction == 1:
        return indexes
    return [labelled_part(index, fraction, seed, number) for number, index in enumerate(indexes)]


def labelled_part(index: Index, fraction: float, seed: int, number: int = 0) -> Index:
    """Return an index of the same share of each class, rounded, and of at least one sample of each.

    A larger share has all samples of a smaller one. Samples without a label are left out.

    Args:
        index: The samples.
        fraction: The share, above 0 and at most 1.
        seed: Seed of the run.
        number: Place of the data set in a mixture.
    """
    labels = np.concatenate([shard.labels for shard in index.shards])
    order = np.lexsort((draws(seed, _NO_EPOCH, number, len(labels)), labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place_in_class = np.arange(len(labels)) - np.repeat(first, counts)
    wanted = np.maximum(np.rint(counts * fraction), 1)
    keep = np.zeros(len(labels), bool)
    keep[order] = place_in_class < np.repeat(wanted, counts)
    return index.chosen(keep & (labels >= 0))
