"""AutoAugment (Cubuk et al., 2019) on the device: each sample gets one of 25 pairs of operations found for ImageNet.

The operations are timm's: Pillow's, bicubic, with ImageNet's mean where nothing is left.
"""

import torch
from torch import Tensor

from sparse_mlp_ds.data import per_sample
from sparse_mlp_ds.data.image_operations import Style, apply
from sparse_mlp_ds.data.rand_augment import MEAN_COLOUR, Amounts, changes, draws, signs

Step = tuple[str, float, int]
"""An operation, the probability that it is applied, and its magnitude."""
STYLE = Style(fill=MEAN_COLOUR, taps=4, shear_origin=0.0)
FEWEST_BITS = {"original": 4, "v0": 0}
"""What posterize keeps at magnitude 0; at 10 it keeps four bits more."""
_ORIGINAL: tuple[tuple[Step, Step], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
_V0: tuple[tuple[Step, Step], ...] = (
    (("equalize", 0.8, 1), ("shear y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize add", 0.8, 3)),
    (("shear x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("autocontrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate y", 0.8, 9)),
    (("shear x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("autocontrast", 0.6, 2)),
    (("shear y", 0.4, 7), ("solarize add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)
POLICIES = {"original": _ORIGINAL, "v0": _V0}
"""The table of the paper, and that of TensorFlow's code for EfficientNet."""


def auto_augment(images: Tensor, policy: str, rng_keys: Tensor) -> Tensor:
    """Apply one pair of a policy's operations to each sample, each operation with its own probability.

    Args:
        images: [B, 3, H, W] in [0, 1], rounded to the 256 levels of 8 bits.
        policy: A name of `POLICIES`.
        rng_keys: [B], one random key per sample.

    Returns:
        [B, 3, H, W] in [0, 1], on the 256 levels.
    """
    pairs, levels = POLICIES[policy], (images * 255).round()
    height, width = images.shape[2:]
    pair = (draws(rng_keys, "auto pair")[0] * len(pairs)).long()
    for position, steps in enumerate(zip(*pairs, strict=True)):
        _, sign, applied, *centre = draws(rng_keys, f"auto {position}")
        names, *numbers = zip(*steps, strict=True)
        p, magnitude = (per_sample.constant(values, images.device)[pair] for values in numbers)
        amounts = _amounts(magnitude.double(), signs(sign), height, width, FEWEST_BITS[policy])
        chosen = per_sample.constant(tuple(list(amounts).index(name) for name in names), images.device)[pair]
        levels = apply(levels, changes(amounts, chosen, applied < p, centre, images), STYLE)
    return levels / 255


def _amounts(m: Tensor, sign: Tensor, height: int, width: int, fewest_bits: int) -> Amounts:
    """Return the amounts of all operations. Some grow weaker with the magnitude: posterize, solarize and blends."""
    strength, nothing = m / 10, torch.zeros_like(m)
    factor = 0.1 + 1.8 * strength
    return {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), nothing),
        "rotate": 30 * strength * sign,
        "posterize": fewest_bits + (4 * strength).floor(),
        "solarize": (256 * strength).floor(),
        "solarize add": (110 * strength).floor(),
        **dict.fromkeys(("color", "contrast", "sharpness"), factor),
        **dict.fromkeys(("shear x", "shear y"), 0.3 * strength * sign),
        "translate y": 0.45 * strength * sign * height,
    }
