"""The embedded data set: scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels in 10 classes.

It is written once as WebDataset tars and then read exactly as ImageNet would be.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import making
from sparse_mlp_ds.data.originals import Original, Split
from sparse_mlp_ds.data.sections import Data
from sparse_mlp_ds.errors import UserError

HELD_OUT = 360
"""Every fifth image is held out: train/ gets 1,437."""
CLASSES = [str(n) for n in range(10)]
PER_SHARD = {"train": 180, "val": 120}


def make(folder: Path) -> None:
    """Write folder/train and folder/val. Several processes may do so at once: the first to finish wins."""
    if all((folder / split / index_file.FILE_NAME).exists() for split in PER_SHARD):
        return
    partial = folder.with_name(f".{folder.name}.{os.uname().nodename}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    raw = partial / "pixels.raw"
    for split in _splits(raw):
        options = making.Options(per_shard=PER_SHARD[split.name])
        making.make(partial / split.name, "digits", split, options, 0, making.Share(), lambda done, total: None)
    raw.unlink()
    try:
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial)
        if not all((folder / split / index_file.FILE_NAME).exists() for split in PER_SHARD):  # else another was first
            raise UserError(f"{folder}: {error.strerror}; remove it or name another folder") from None


def make_for(data: Data) -> None:
    """Write it where a recipe expects it, unless the recipe was pointed at other shards."""
    train, val = Path(data.train[0].path), Path(data.val[0].path)
    if (train.name, val) == ("train", train.parent / "val"):
        make(train.parent)


def _splits(raw: Path) -> list[Split]:
    """Write all pixels to one file, in a fixed mixed order, and return its parts."""
    from sklearn.datasets import load_digits  # a second of import that only the first run needs

    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(digits.target))
    pixels = (digits.images[order] * (255 / 16)).round().astype(np.uint8)  # sklearn's are 0..16
    raw.write_bytes(pixels.tobytes())
    originals = [
        Original(f"{number:06d}", int(digits.target[number]), str(raw), place * 64, 64, (8, 8))
        for place, number in enumerate(order.tolist())
    ]
    return [Split("val", CLASSES, originals[:HELD_OUT]), Split("train", CLASSES, originals[HELD_OUT:])]
