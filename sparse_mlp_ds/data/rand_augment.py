"""RandAugment on the device: some of 14 operations in a row, each sample its own (Cubuk et al., 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.sections import RandAugment

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [B, 3, H, W] in [0, 1], strength [B] in [0, 3], sign [B] of +-1) -> images.

A strength of 1 is magnitude 10. Beyond it the ranges go on growing, as in the code of MLP-Mixer and WideNet, but stop
where an operation would leave nothing of the image. Theirs posterises and solarises less the larger the magnitude.
"""


def rand_augment(images: Tensor, section: RandAugment, keys: Tensor) -> Tensor:
    """Apply `ops` operations, drawn per sample with replacement, at the section's magnitude."""
    strength = torch.full((len(images),), section.magnitude / 10, device=images.device)
    names = list(OPERATIONS)
    for turn in range(section.ops):
        which, sign = rng.uniform(keys, rng.stream_id(f"augment/rand {turn}"), 2).unbind(1)
        which, sign = (which * len(names)).long(), torch.where(sign < 0.5, -1.0, 1.0)
        for number in which.unique().tolist():
            own = which == number
            done = OPERATIONS[names[number]](images[own], strength[own], sign[own])
            images = images.index_put((own,), done.clamp(0, 1))
    return images


def _autocontrast(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def _equalize(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    from kornia import enhance

    return enhance.equalize(x)


def _rotate(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    from kornia.geometry.transform import rotate

    return rotate(x, 30 * strength * sign)  # degrees


def _posterize(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    levels = 2.0 ** (8 - (4 * strength).round()).clamp_min(1)[:, None, None, None]  # 8 .. 4 bits, one at least
    return (x * 255 / 256 * levels).floor() / levels * 256 / 255


def _solarize(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    threshold = (1 - strength)[:, None, None, None] * 256 / 255  # 256 levels: at strength 0 white stays white
    return torch.where(x >= threshold, 1 - x, x)


def _color(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return torch.lerp(rgb_to_grayscale(x).expand_as(x), x, _factor(strength, sign)[:, None, None, None])


def _contrast(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    mean = rgb_to_grayscale(x).mean(dim=(2, 3), keepdim=True).expand_as(x)
    return torch.lerp(mean, x, _factor(strength, sign)[:, None, None, None])


def _brightness(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return x * _factor(strength, sign)[:, None, None, None]


def _sharpness(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    from kornia import enhance

    return enhance.sharpness(x, _factor(strength, sign))


def _shear(x: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    from kornia.geometry.transform import shear

    # Pixels' middles, as the other two count from by themselves; kornia 0.8 and 0.9 differ in what they do without.
    return shear(x, torch.stack([along_x, along_y], dim=1), align_corners=True)


def _translate(x: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    from kornia.geometry.transform import translate

    return translate(x, torch.stack([along_x * x.shape[-1], along_y * x.shape[-2]], dim=1))


def _shift(strength: Tensor, sign: Tensor) -> Tensor:
    """Return the share of a side by which an image moves; a tenth of it stays in sight."""
    return (0.45 * strength).clamp_max(0.9) * sign


def _factor(strength: Tensor, sign: Tensor) -> Tensor:
    """0.1 .. 1.9: the range in which the paper blends an image with its degenerate form. It grows upwards alone."""
    return (1 + 0.9 * strength * sign).clamp_min(0.1)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, strength, sign: x,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear x": lambda x, strength, sign: _shear(x, 0.3 * strength * sign, torch.zeros_like(sign)),
    "shear y": lambda x, strength, sign: _shear(x, torch.zeros_like(sign), 0.3 * strength * sign),
    "translate x": lambda x, strength, sign: _translate(x, _shift(strength, sign), torch.zeros_like(sign)),
    "translate y": lambda x, strength, sign: _translate(x, torch.zeros_like(sign), _shift(strength, sign)),
}
"""The paper's 14, with its usual ranges at magnitude 10."""
