"""Records timm's RandAugment, as DeiT trains with it, and its two AutoAugment policies for ImageNet.

Every operation runs alone on two crops of 224 pixels, of which some pixels are kept; policies run on many crops. Needs
timm and Pillow 10: newer ones refuse to posterize to 0 bits, as these policies sometimes do.
"""

import random
from unittest import mock

import numpy as np
from PIL import Image

from tests.helpers.crops import SIDE, changes, crops
from tests.references.make import support

support.torchvision_without_operators()
from timm.data import auto_augment  # noqa: E402

FILL = (124, 116, 104)  # ImageNet's mean, as timm's create_transform rounds it
DEIT = "rand-m9-mstd0.5-inc1"
UNSIGNED = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize")
SITES, IMAGES = 600, 10_000


def settings() -> dict:
    """Return what timm's create_transform hands over for images of this size under bicubic interpolation."""
    return {"translate_const": int(SIDE * 0.45), "img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}


def one(name: str, magnitude: float, sign: int, image: Image.Image) -> Image.Image:
    """Apply one operation; `sign` is that of its draw where it has one."""
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=settings())
    with mock.patch("random.random", lambda: 0.0 if sign > 0 else 1.0):
        return operation(image)


def operations(cases: list[tuple[str, float, int]]) -> dict[str, np.ndarray]:
    """Return each case's result at the same pixels of two crops, [cases, 2, SITES, 3]."""
    inputs = np.stack(list(crops(2)))
    rows, columns = np.random.default_rng(1).integers(0, SIDE, (2, SITES))
    results = [[np.asarray(one(*case, Image.fromarray(pixels)))[rows, columns] for pixels in inputs] for case in cases]
    return {
        "names": np.array([name for name, _, _ in cases]),
        "magnitudes": np.array([magnitude for _, magnitude, _ in cases]),
        "signs": np.array([sign for _, _, sign in cases]),
        "sites": np.stack([rows, columns]),
        "inputs": inputs[:, rows, columns],
        "results": np.array(results),
    }


def statistics(transform) -> dict[str, np.ndarray]:
    """Return what a whole policy does to many crops."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    pairs = ((pixels, np.asarray(transform(Image.fromarray(pixels)))) for pixels in crops(IMAGES))
    return {f"policy/{name}": value for name, value in changes(pairs).items()}


def signed(name: str) -> tuple[int, ...]:
    """Return the signs that an operation of the increasing set can draw."""
    return (1,) if name.startswith(UNSIGNED) else (1, -1)


def main() -> None:
    """Run timm."""
    write = {"repository": "https://github.com/huggingface/pytorch-image-models", "script": "timm_augment"}
    write |= {"packages": ["timm", "pillow", "numpy", "scikit-learn"]}

    increasing = auto_augment._RAND_INCREASING_TRANSFORMS
    cases = [(name, 9.0, sign) for name in increasing for sign in signed(name)]
    cases += [(name, 4.3, 1) for name in increasing if name not in UNSIGNED[:3]]
    about = f"Operations of {DEIT} (DeiT's RandAugment), each alone, and what the policy does to {IMAGES} crops."
    made = operations(cases) | statistics(auto_augment.rand_augment_transform(DEIT, settings()))
    support.record("randaugment_deit", made, about, **write)

    for policy in ("v0", "original"):
        sub_policies = auto_augment.auto_augment_policy(policy, settings())
        table = [[(op.name, op.prob, op.magnitude) for op in pair] for pair in sub_policies]
        cases = sorted({(name, float(magnitude), 1) for pair in table for name, p, magnitude in pair if p})
        made = operations(cases) | statistics(auto_augment.auto_augment_transform(policy, settings()))
        made["policy names"] = np.array([[name for name, _, _ in pair] for pair in table])
        made["policy p, magnitude"] = np.array([[(p, magnitude) for _, p, magnitude in pair] for pair in table])
        about = (
            f"timm's AutoAugment policy {policy!r}: its table, its operations alone, what it does to {IMAGES} crops."
        )
        support.record(f"autoaugment_{policy}", made, about, **write)


if __name__ == "__main__":
    main()
