"""Mean and standard deviation of a data set's channels, by which a recipe brings images to a common scale."""

from dataclasses import dataclass

import numpy as np
import torch

from sparse_mlp_ds.data.cache import Cache
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.loader import ShardDataset, load
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.errors import UserError

BATCH = 64
"""Images that are read at a time."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Red, green and blue over all pixels of the images that were read, in units where white is 1."""

    mean: tuple[float, float, float]
    """Mean of each channel."""
    std: tuple[float, float, float]
    """Standard deviation of each channel."""
    images: int
    """Number of images that were read; bad ones are not among them."""


def measure(index: Index, images: int, size: int, cache: Cache | None = None) -> ChannelStatistics:
    """Read images that are spread evenly over a data set, and return their channels' statistics.

    Args:
        index: The data set.
        images: Largest number of images to read.
        size: Side of the central squares that are measured, pixels: that of the images that the model will see.
        cache: Where copies of remote tars are kept.

    Raises:
        UserError: None of the images can be used.
    """
    chosen = np.linspace(0, len(index) - 1, min(images, len(index))).round().astype(np.int64)
    dataset = ShardDataset(index, size, len(index.classes), cache=cache)
    batches = [BatchIndices(part, part) for part in np.split(chosen, range(BATCH, len(chosen), BATCH))]
    count, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in load(dataset, batches, workers=0):
        pixels = batch.inputs[batch.numbers >= 0, 0].double() / 255
        count += len(pixels)
        total += pixels.sum(dim=(0, 2, 3))
        squares += (pixels**2).sum(dim=(0, 2, 3))
    if not count:
        raise UserError(f"{index.source}: none of the {len(chosen)} images that were read can be used; remake it")
    mean = total / (count * size**2)
    std = (squares / (count * size**2) - mean**2).clamp_min(0).sqrt()
    return ChannelStatistics(_three(mean), _three(std), count)


def _three(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue
