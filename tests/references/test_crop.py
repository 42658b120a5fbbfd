"""Random crops against torchvision's RandomResizedCrop."""

import numpy as np
import pytest
from PIL import Image

from sparse_mlp_ds.data import decode
from sparse_mlp_ds.data.config import View
from tests.helpers.references import load


class Draws:
    """numpy's generator with given numbers in [0, 1) instead of random ones."""

    def __init__(self, numbers: list[float]):
        self.numbers = iter(numbers)

    def uniform(self, low: float, high: float) -> float:
        return low + next(self.numbers) * (high - low)

    def integers(self, high: int) -> int:
        return int(next(self.numbers) * high)


def test_boxes(monkeypatch):
    recorded = {name: array.tolist() for name, array in load("torchvision_crop").items()}
    cases = list(zip(*(recorded[name] for name in ("sizes", "scales", "ratios", "draws", "boxes")), strict=True))
    assert len(cases) == 480
    for size, scale, ratio, draws, expected in cases:
        monkeypatch.setattr(decode.np.random, "Generator", lambda _, draws=draws: Draws(draws))
        view = View(crop_scale=tuple(scale), crop_ratio=tuple(ratio))
        assert list(decode.random_box(tuple(size), view, 0, 0, 0)) == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_part_becomes_the_same_square(interpolation):
    """But for its border, where Pillow looks beyond a box for the pixels that the filter reaches."""
    from sklearn.datasets import load_sample_images

    recorded = load("torchvision_crop")
    expected, border = recorded[f"parts/{interpolation}"].numpy(), 1 if interpolation == "bilinear" else 2
    picture = decode.Picture(Image.fromarray(load_sample_images().images[0]))
    boxes = [tuple(box) for box in recorded["parts/boxes"].tolist()]
    squares = picture.crop(boxes, expected.shape[1], [interpolation]).transpose(0, 2, 3, 1)
    difference = np.abs(squares.astype(float) - expected)
    assert difference.mean() < 0.1 and (difference[:, border:-border, border:-border] == 0).all()
