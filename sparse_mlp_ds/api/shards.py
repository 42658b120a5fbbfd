"""A data set of this package for any training loop: images or rows of tokens, and labels, by their number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.data.rows import Rows
from sparse_mlp_ds.data.samples import SampleReader


class Shards(Dataset[tuple[Any, int]]):
    """A map-style data set: `len(shards)`, and `shards[number]` -> (image, label), or (tokens, label) for text.

    Samples are read at their offsets in the tars, or from a folder of images with an index, so that any order of
    numbers is as fast as any other one. It can be given to `torch.utils.data.DataLoader` with several workers.
    """

    def __init__(self, path: str | Path, transform: Callable[[Any], Any] | None = None):
        """Open a folder that has an index.json, as `sparse-mlp-ds shards make` or `shards index` writes it.

        Args:
            path: The folder.
            transform: Makes what is returned from a Pillow image in RGB, turned upright, or from a row of tokens, [n]
                int64; None returns the image or row itself.

        Raises UserError if there is no index, or the tars are not those that it lists.
        """
        self.index = index_file.load(Path(path))
        self.transform = transform
        self._reader = SampleReader(self.index)

    @property
    def classes(self) -> list[str]:
        """Names of the classes; label n is classes[n]. Empty if the samples have no labels."""
        return list(self.index.classes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        """Return the image or row and the label of a sample; the label is -1 if it has none.

        number: from 0, or from the end if it is negative. Raises IndexError, and BadSampleError if it cannot be
        read or decoded.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number = int(number) % len(self)
        content, text = self._reader.read(number), self.index.text
        sample = torch.from_numpy(Rows(text).decode(content)) if text else Picture(content).upright()
        return (sample if self.transform is None else self.transform(sample)), self.index.label(number)
