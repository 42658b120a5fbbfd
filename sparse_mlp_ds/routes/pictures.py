"""The images that a record of routes names, small enough to lie inside it."""

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.loader import ShardDataset
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.routes.record import Picture

LARGEST = 72
"""Largest side of a picture, pixels."""
SHOWN = 8
"""Images whose patches' experts are shown one by one."""
_QUALITY = 95  # of a JPEG


def to_show(index: Index, classes: int) -> list[int]:
    """Return numbers of a few images, of as many classes as there are: the first of each, evenly through the classes.

    index: the images. classes: number of classes; images with larger labels are not taken.
    """
    labels = np.concatenate([shard.labels for shard in index.shards]) if index.shards else np.empty(0, int)
    of_class, first = np.unique(labels, return_index=True)
    first = first[(of_class >= 0) & (of_class < classes)]
    places = np.linspace(0, len(first) - 1, min(SHOWN, len(first))).round().astype(int)
    return first[places].tolist()


def read(numbers: Iterable[int], index: Index, data: Data, size: int) -> dict[int, Picture]:
    """Return images as the model sees them, by number, in order.

    Args:
        numbers: Numbers of the images in `index`, which were read before.
        index: The images.
        data: How they are cropped and cached.
        size: Side of the model's input, pixels.
    """
    dataset = ShardDataset(index, size, data.classes, crop_fraction=data.crop_fraction, cache=sources.cache(data))
    pictures = {}
    for number in sorted(set(numbers)):
        one = np.array([number])
        batch = dataset[BatchIndices(one, one)]
        if isinstance(batch, UserError):
            raise batch
        shard, position = index.locate(number)
        pixels = batch.inputs[0, 0].permute(1, 2, 0).numpy()
        pictures[number] = Picture(key=shard.key(position), label=int(batch.labels[0]), jpeg=_jpeg(pixels))
    return pictures


def image(picture: Picture) -> Image.Image:
    """Return a picture of a record, decoded."""
    return Image.open(io.BytesIO(base64.b64decode(picture.jpeg))).convert("RGB")


def _jpeg(pixels: np.ndarray) -> str:
    """Return an image [H, W, 3] uint8 as a JPEG in base64."""
    small = Image.fromarray(pixels)
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=_QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()
