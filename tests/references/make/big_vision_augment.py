"""Records RandAugment as big_vision, V-MoE and WideNet train with it: TensorFlow's code for EfficientNet on a TPU.

Every operation runs alone on two crops of 224 pixels, of which some pixels are kept; the policies (2, 10) and (2, 15)
run on many crops, inside tf.data as in training. Needs tensorflow 2.15, tensorflow-addons 0.23 and numpy 1: a threshold
of 256 or more is compared with 8-bit pixels, and newer versions refuse what then happened, which is that it wrapped.
"""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.helpers.crops import SIDE, changes, crops
from tests.references.make import support

MAGNITUDES = (10, 15)
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
OPERATIONS = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color")
OPERATIONS += ("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout")
CENTRE = (60, 170)
"""Row and column of Cutout's middle."""
SITES, IMAGES = 600, 3000


def one(autoaugment, name: str, magnitude: float, sign: int, image: np.ndarray) -> np.ndarray:
    """Apply one operation; `sign` is that of its draw where it has one."""
    settings = autoaugment.HParams(cutout_const=40, translate_const=100)  # those of distort_image_with_randaugment
    draws = iter(CENTRE)
    uniform = mock.patch.object(autoaugment.tf, "random_uniform", lambda **_: tf.constant(next(draws)))
    with mock.patch.object(autoaugment, "_randomly_negate_tensor", lambda level: sign * level), uniform:
        function, _, arguments = autoaugment._parse_policy_info(name, 1.0, magnitude, [128] * 3, settings)
        return function(tf.constant(image), *arguments).numpy()


def operations(autoaugment) -> dict[str, np.ndarray]:
    """Return each operation's result at the same pixels of two crops, [cases, 2, SITES, 3]."""
    cases = [(name, magnitude, 1) for magnitude in MAGNITUDES for name in OPERATIONS]
    cases += [(name, magnitude, -1) for magnitude in MAGNITUDES for name in SIGNED]
    inputs = np.stack(list(crops(2)))
    rows, columns = np.random.default_rng(1).integers(0, SIDE, (2, SITES))
    results = [[one(autoaugment, n, float(m), sign, x)[rows, columns] for x in inputs] for n, m, sign in cases]
    return {
        "names": np.array([name for name, _, _ in cases]),
        "magnitudes": np.array([magnitude for _, magnitude, _ in cases]),
        "signs": np.array([sign for _, _, sign in cases]),
        "sites": np.stack([rows, columns]),
        "centre of Cutout": np.array(CENTRE),
        "inputs": inputs[:, rows, columns],
        "results": np.array(results),
    }


def statistics(randaug, magnitude: int) -> dict[str, np.ndarray]:
    """Return what two operations in a row do to many crops."""
    tf.random.set_seed(0)
    policy = randaug.get_randaug(2, magnitude)
    data = tf.data.Dataset.from_generator(
        lambda: crops(IMAGES), output_signature=tf.TensorSpec((SIDE, SIDE, 3), tf.uint8)
    )
    data = data.map(lambda image: {"before": image, "image": image}).map(policy)
    pairs = ((item["before"], item["image"]) for item in data.as_numpy_iterator())
    return {f"policy {magnitude}/{name}": value for name, value in changes(pairs).items()}


def main() -> None:
    """Run big_vision's archived RandAugment."""
    path = support.checkout(__doc__)
    from big_vision.pp.archive import autoaugment, randaug

    # The module of TensorFlow finds its attributes late and cannot be patched; a plain namespace can.
    autoaugment.tf = SimpleNamespace(**{name: getattr(autoaugment.tf, name) for name in dir(autoaugment.tf)})
    made = operations(autoaugment)
    for magnitude in MAGNITUDES:
        made |= statistics(randaug, magnitude)
    about = f"RandAugment's 16 operations, each alone at {MAGNITUDES}, and what two in a row do to {IMAGES} crops."
    repository = "https://github.com/google-research/big_vision"
    packages = ["tensorflow-cpu", "tensorflow-addons", "numpy", "pillow", "scikit-learn"]
    support.record("randaugment_big_vision", made, about, repository, "big_vision_augment", path, packages)


if __name__ == "__main__":
    main()
