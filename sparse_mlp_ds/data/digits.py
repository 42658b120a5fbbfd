"""The embedded data set: scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels in 10 classes.

It is written once as WebDataset tars and then read exactly as ImageNet would be.
"""

import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import shards
from sparse_mlp_ds.data.shards import Sample

HELD_OUT = 360
"""Every fifth image of the shuffled set is held out: train/ gets 1,437."""
CLASSES = [str(n) for n in range(10)]


def make(folder: Path) -> None:
    """Write folder/train and folder/val. Several processes may do so at once: the first to finish wins."""
    if all((folder / split / index_file.FILE_NAME).exists() for split in ("train", "val")):
        return
    samples = _samples()
    partial = folder.with_name(f".{folder.name}.{os.uname().nodename}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shards.write(partial / "val", "digits", samples[:HELD_OUT], CLASSES, per_shard=120)
    shards.write(partial / "train", "digits", samples[HELD_OUT:], CLASSES, per_shard=180)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)


def _samples() -> list[Sample]:
    """Return all digits in a fixed mixed order, as PNG: lossless, and smaller than JPEG at this size."""
    from sklearn.datasets import load_digits  # a second of import that only the first run needs

    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(digits.target))
    samples = []
    for number in order.tolist():
        pixels = (digits.images[number] * (255 / 16)).round().astype(np.uint8)  # sklearn's are 0..16
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        samples.append(Sample(f"{number:06d}", buffer.getvalue(), "png", int(digits.target[number])))
    return samples
