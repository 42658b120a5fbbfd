"""Tars of small grey images whose value is their number, and loaders for them."""

import io
from pathlib import Path

from PIL import Image

from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.loader import ShardDataset
from sparse_mlp_ds.data.order import Part, TrainingOrder
from sparse_mlp_ds.shards import scan

SIZE, CLASSES = 8, 10
WHOLE = View(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)


def png(value: int) -> bytes:
    """A square image of one grey value."""
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), value).save(buffer, "png")
    return buffer.getvalue()


def write(folder: Path, tars: list[list[tuple[str, bytes]]]) -> Index:
    """Write tars of (label, image) samples and index them; keys count through all tars."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for tar, samples in enumerate(tars):
        with webdataset.TarWriter(str(folder / f"some-{tar:06d}.tar")) as writer:
            for label, image in samples:
                writer.write({"__key__": f"{number:04d}", "png": image, "cls": label.encode()})
                number += 1
    return scan.make_index(folder)


def numbered(counts):
    """Tars of `counts` samples whose grey value is their number."""
    numbers = iter(range(sum(counts)))
    return [[(str((n := next(numbers)) % CLASSES), png(n)) for _ in range(count)] for count in counts]


def order_of(index, batch_size, **options):
    return TrainingOrder((Part(tuple(len(s) for s in index.shards), len(index)),), batch_size, 7, **options)


def dataset(index, order=None, views=(WHOLE,)):
    return ShardDataset(index, SIZE, CLASSES, views if order else (), 7, order)


def values(batches):
    """The grey value of every image, in order."""
    return [int(image[0, 0, 0, 0]) for batch in batches for image in batch.inputs]
