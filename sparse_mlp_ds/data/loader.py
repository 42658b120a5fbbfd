"""Batches from shards: a map-style data set that reads at offsets, driven by the order's item lists.

Nothing is replayed on resume: the first batch after any stop costs as much as any other.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparse_mlp_ds.data.decode import center_crop, decode, random_resized_crop
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import Item
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.recipe import View


@dataclass(frozen=True)
class Batch:
    """One micro-batch; B samples, V views of each."""

    images: Tensor
    """[B, V, 3, H, W] uint8."""
    labels: Tensor
    """[B] int64."""
    numbers: Tensor
    """[B] int64, each sample's number in the stage; -1 marks padding."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.images, self.labels, self.numbers)))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; the loader calls it when a GPU is used."""
        return Batch(*(t.pin_memory() for t in (self.images, self.labels, self.numbers)))


class ShardDataset(Dataset):
    """Decoded crops of an index's samples: random ones for `views`, the central one without."""

    def __init__(self, index: Index, size: int, views: Sequence[View] = (), seed: int = 0, crop_fraction: float = 1.0):
        """size: side of the crops, pixels. crop_fraction: share of the shorter side kept without views."""
        self.index, self.size, self.views, self.seed, self.crop_fraction = index, size, views, seed, crop_fraction
        self._files: dict[str, int] = {}

    def __getitem__(self, item: Item) -> tuple[np.ndarray, int, int] | UserError:
        """Return crops [V, 3, size, size] uint8, label and number, or what is wrong with the sample.

        The error is returned, not raised: out of a loader process it would come with a traceback for a message.
        """
        shard, place = self.index.locate(item.sample)
        path = str(self.index.folder / shard.file)
        if path not in self._files:  # opened here, by the process that reads
            self._files[path] = os.open(path, os.O_RDONLY)
        content = os.pread(self._files[path], shard.sizes[place], shard.offsets[place])
        try:
            image = decode(content, f"{path}: sample '{shard.keys[place]}'")
        except UserError as error:
            return error
        if self.views:
            crops = [
                random_resized_crop(image, view, self.size, self.seed, item.number, stream)
                for stream, view in enumerate(self.views)
            ]
        else:
            crops = [center_crop(image, self.size, self.crop_fraction)]
        return np.stack(crops), shard.labels[place], item.number


def load(dataset: ShardDataset, item_lists: Iterable[list[Item]], workers: int) -> Iterator[Batch]:
    """Yield one `Batch` per list of items, decoded by `workers` processes ahead of time.

    Raises UserError naming the tar and the key of a sample that cannot be decoded.
    """
    batches = DataLoader(
        dataset,
        batch_sampler=item_lists,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(samples: list[tuple[np.ndarray, int, int] | UserError]) -> Batch | UserError:
    error = next((sample for sample in samples if isinstance(sample, UserError)), None)
    if error:
        return error
    images, labels, numbers = zip(*samples, strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(numbers))
