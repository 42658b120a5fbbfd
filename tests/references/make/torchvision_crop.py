"""Records the boxes that torchvision's RandomResizedCrop cuts, and what becomes of a photograph's. Needs torchvision.

Its draws come from a list of numbers in [0, 1), so that another implementation can be given the same ones.
"""

from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.references.make import support

support.torchvision_without_operators()
from torchvision import transforms  # noqa: E402
from torchvision.transforms import functional  # noqa: E402

SIZES = ((500, 375), (333, 500), (224, 224), (32, 32), (160, 40), (30, 200), (7, 5), (1, 9))
RANGES = (((0.08, 1.0), (3 / 4, 4 / 3)), ((0.05, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.5, 1.5)))
REPEATS, DRAWS = 20, 22
SIDE = 64


def box(image: Image.Image, scale: tuple[float, float], ratio: tuple[float, float], draws: np.ndarray) -> list[int]:
    """Return left, top, right and bottom edge of the part that torchvision cuts, given its draws."""
    given = iter(draws.tolist())
    uniform = mock.patch.object(torch.Tensor, "uniform_", lambda self, a, b: self.fill_(a + next(given) * (b - a)))
    integer = mock.patch.object(torch, "randint", lambda low, high, size: torch.tensor(low + int(next(given) * high)))
    with uniform, integer:
        top, left, height, width = transforms.RandomResizedCrop.get_params(image, scale, ratio)
    return [left, top, left + width, top + height]


def main() -> None:
    """Run torchvision."""
    from sklearn.datasets import load_sample_images

    draws = np.random.default_rng(0).random((len(SIZES) * len(RANGES) * REPEATS, DRAWS), dtype=np.float32)
    cases = [(size, *ranges) for size in SIZES for ranges in RANGES for _ in range(REPEATS)]
    boxes = [box(Image.new("L", size), *ranges, d) for (size, *ranges), d in zip(cases, draws, strict=True)]
    photograph = Image.fromarray(load_sample_images().images[0])
    parts = [box(photograph, (0.05, 1.0), (3 / 4, 4 / 3), d) for d in draws[:6]]
    squares = {}
    for name in ("bilinear", "bicubic"):
        mode = transforms.InterpolationMode(name)
        where = [(top, left, bottom - top, right - left) for left, top, right, bottom in parts]
        cut = [functional.resized_crop(photograph, *part, [SIDE, SIDE], mode) for part in where]
        squares[f"parts/{name}"] = np.stack([np.asarray(square) for square in cut])
    arrays = {
        "sizes": np.array([size for size, *_ in cases]),
        "scales": np.array([scale for _, scale, _ in cases]),
        "ratios": np.array([ratio for *_, ratio in cases]),
        "draws": draws,
        "boxes": np.array(boxes),
        "parts/boxes": np.array(parts),
    }
    about = "Boxes of RandomResizedCrop for given draws, and parts of scikit-learn's first photograph as squares."
    packages = ["torchvision", "pillow", "numpy", "scikit-learn"]
    repository = "https://github.com/pytorch/vision"
    support.record("torchvision_crop", arrays | squares, about, repository, "torchvision_crop", packages=packages)


if __name__ == "__main__":
    main()
