"""The trainer with the random crops of version 0.1.0, whose sides were fractions of pixels: a script like train.py.

A run that 0.1.0 began can so be compared with what 0.1.0 made of it.
"""

import math
import sys

import numpy as np

from sparse_mlp_ds.data import decode
from sparse_mlp_ds.train.start import start


def random_box(size, view, seed, number, stream):
    """As `decode.random_box` was."""
    draw = np.random.Generator(np.random.Philox(key=[seed, number], counter=stream << 192))
    width, height = size
    low, high = math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1])
    for _ in range(10):
        area = width * height * draw.uniform(*view.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    return decode.center_box(size, 1.0)


if __name__ == "__main__":
    decode.random_box = random_box
    sys.exit(start())
