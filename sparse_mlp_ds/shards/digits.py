"""The embedded data set of images: scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels in 10 classes.

It is written once as WebDataset tars and then read exactly as ImageNet would be.
"""

import importlib.util
from pathlib import Path

import numpy as np

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.shards import writer
from sparse_mlp_ds.shards.split import RawImage, Split
from sparse_mlp_ds.shards.whole_folder import whole

HELD_OUT = 360
"""Number of images in val/, a fifth of all; train/ gets the remaining 1,437."""
CLASSES = [str(n) for n in range(10)]
"""Class names."""
PER_SHARD = {"train": 180, "val": 120}
"""Largest number of images in a tar of each split."""


def make(folder: Path) -> None:
    """Write folder/train and folder/val. Several processes may do so at the same time: the first to finish wins.

    Raises UserError if the folder holds something else.
    """
    if _is_complete(folder):
        return
    with whole(folder, _is_complete) as partial:
        raw = partial / "pixels.raw"
        for split in _splits(raw):
            options = writer.Options(per_shard=PER_SHARD[split.name])
            writer.write(partial / split.name, "digits", split, options, 0, writer.Node(), lambda done, total: None)
        raw.unlink()


def _is_complete(folder: Path) -> bool:
    return all((folder / split / index_file.FILE_NAME).exists() for split in PER_SHARD)


def _splits(raw: Path) -> list[Split]:
    """Write all pixels to the file `raw`, in a fixed random order, and return the splits, whose images lie in it."""
    originals, labels = _originals()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    pixels = (originals[order] * (255 / 16)).round().astype(np.uint8)  # scikit-learn's range from 0 to 16
    raw.write_bytes(pixels.tobytes())
    images = [
        RawImage(f"{number:06d}", int(labels[number]), str(raw), position * 64, 64, (8, 8))
        for position, number in enumerate(order.tolist())
    ]
    return [Split("val", CLASSES, images[:HELD_OUT]), Split("train", CLASSES, images[HELD_OUT:])]


def _originals() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's images of digits, [N, 8, 8] float64 from 0 to 16, and their labels [N].

    Its file is read without the package, whose import takes two of the seconds from a launch to the first step.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (file := Path(folder) / "datasets/data/digits.csv.gz").is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    from sklearn.datasets import load_digits  # of a version that keeps them elsewhere; or it is missing, and says so

    digits = load_digits()
    return digits.images, digits.target
