"""Crops of photographs as training sees them, the same wherever they are made; needs no torch, as some references."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

SIDE = 224
Pixels = np.ndarray
"""[height, width, 3] uint8."""


def crops(count: int, side: int = SIDE, seed: int = 0) -> Iterator[Pixels]:
    """Yield `count` crops of scikit-learn's two photographs, of 8 .. 100 % of the area, resized to a square."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(seed)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        yield np.asarray(photograph.resize((side, side), Image.Resampling.BICUBIC, box=_box(photograph.size, random)))


def _box(size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop that fits into the image, as torchvision's RandomResizedCrop does."""
    while True:
        area = random.uniform(0.08, 1.0) * size[0] * size[1]
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= size[0] and height <= size[1]:
            left, top = random.integers(size[0] - width + 1), random.integers(size[1] - height + 1)
            return left, top, left + width, top + height


def change(before: Pixels, after: Pixels) -> tuple[float, bool, bool]:
    """Return the mean absolute change in levels, whether nothing changed, and whether the result is nearly black."""
    mean = float(np.abs(after.astype(np.float64) - before).mean())
    return mean, mean < 0.1, float(after.mean()) < 10


def changes(pairs: Iterable[tuple[Pixels, Pixels]]) -> dict[str, np.ndarray]:
    """Return the mean and the standard deviation of the change over (before, after), and the shares of the others."""
    found = np.array([change(before, after) for before, after in pairs])
    return {
        "images": np.array(len(found)),
        "change": found[:, 0].mean(),
        "deviation of change": found[:, 0].std(),
        "unchanged": found[:, 1].mean(),
        "nearly black": found[:, 2].mean(),
    }
