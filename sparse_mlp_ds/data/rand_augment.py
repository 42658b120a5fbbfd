"""RandAugment (Cubuk et al., 2020) on the device: a few random operations for each sample, in three named policies."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data import per_sample
from sparse_mlp_ds.data.config import RandAugment
from sparse_mlp_ds.data.image_operations import NUMBERS, Changes, Style, apply

MEAN_COLOUR = (124.0, 116.0, 104.0)
"""ImageNet's mean in levels, with which timm fills what a warp leaves empty."""
Amounts = dict[str, Tensor]
"""Each operation's amount for each sample, [B] float64: float32 would move some amounts to the next level."""
AmountsOf = Callable[[Tensor, Tensor, int, int], Amounts]
"""(magnitude [B], sign [B] of -1 or 1, height and width of the images in pixels) -> the amounts of all operations."""


class Policy(NamedTuple):
    """Which operations are drawn, how strong they are and how often they are applied."""

    amounts: AmountsOf
    style: Style
    p: float = 1.0
    """Probability that a drawn operation is applied."""
    deviation: float = 0.0
    """Standard deviation of the magnitude."""
    largest: float = 30.0
    """Magnitudes are clipped to it."""


def rand_augment(images: Tensor, config: RandAugment, rng_keys: Tensor) -> Tensor:
    """Apply `config.ops` operations of a policy to each sample, drawn with replacement, at `config.magnitude`.

    Args:
        images: [B, 3, H, W] in [0, 1], rounded to the 256 levels of 8 bits.
        config: The policy, how many operations, how strong they are.
        rng_keys: [B], one random key per sample.

    Returns:
        [B, 3, H, W] in [0, 1], on the 256 levels.
    """
    policy, levels = POLICIES[config.policy], (images * 255).round()
    for position in range(config.ops):
        choice, sign, applied, *centre = draws(rng_keys, f"rand {position}")
        noise = rng.normal(rng_keys, rng.stream_id(f"augment/rand {position} magnitude"), 1)[:, 0]
        magnitude = (config.magnitude + policy.deviation * noise.double()).clamp(0, policy.largest)
        amounts = policy.amounts(magnitude, signs(sign), *images.shape[2:])
        chosen = (choice * len(amounts)).long()
        levels = apply(levels, changes(amounts, chosen, applied < policy.p, centre, images), policy.style)
    return levels / 255


def draws(rng_keys: Tensor, name: str) -> tuple[Tensor, ...]:
    """Return five uniform draws [B] in [0, 1) for one operation: its choice, sign, application, row and column."""
    return rng.uniform(rng_keys, rng.stream_id(f"augment/{name}"), 5).unbind(1)


def signs(draw: Tensor) -> Tensor:
    """Turn uniform draws into -1 and 1, equally likely."""
    return torch.where(draw < 0.5, -1.0, 1.0)


def changes(amounts: Amounts, chosen: Tensor, is_applied: Tensor, centre: list[Tensor], images: Tensor) -> Changes:
    """Return each sample's operation and its amount.

    Args:
        amounts: The amounts [B] of all operations that can be chosen.
        chosen: [B] int64, each sample's position in `amounts`.
        is_applied: [B] bool, which samples are changed at all.
        centre: Row and column of a cutout as draws [B] in [0, 1).
        images: [B, 3, H, W].
    """
    numbers = per_sample.constant(tuple(NUMBERS[name] for name in amounts), images.device)
    amount = torch.stack(list(amounts.values())).gather(0, chosen[None])[0].float()
    row, column = ((draw * side).long() for draw, side in zip(centre, images.shape[2:], strict=True))
    return Changes(torch.where(is_applied, numbers[chosen], 0), amount, torch.stack([row, column], dim=1))


def _paper(m: Tensor, sign: Tensor, height: int, width: int) -> Amounts:
    """The paper's 14 operations; above magnitude 10 they go on growing as far as something of the image is left."""
    strength, nothing = m / 10, torch.zeros_like(m)
    factor = (1 + 0.9 * strength * sign).clamp_min(0.1)
    share = (0.45 * strength).clamp_max(0.9) * sign
    return {
        "identity": nothing,
        "autocontrast": nothing,
        "equalize": nothing,
        "rotate": 30 * strength * sign,
        "solarize": 256 * (1 - strength),
        "color": factor,
        "posterize": (8 - (4 * strength).round()).clamp_min(1),
        "contrast": factor,
        "brightness": factor,
        "sharpness": factor,
        "shear x": 0.3 * strength * sign,
        "shear y": 0.3 * strength * sign,
        "translate x": share * width,
        "translate y": share * height,
    }


def _deit(m: Tensor, sign: Tensor, height: int, width: int) -> Amounts:
    """timm's `rand-m9-mstd0.5-inc1`, with which DeiT trains: every operation becomes stronger with the magnitude."""
    strength, nothing = m / 10, torch.zeros_like(m)
    factor = (1 + 0.9 * strength * sign).clamp_min(0.1)
    return {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), nothing),
        "rotate": 30 * strength * sign,
        "posterize": 4 - (4 * strength).floor(),
        "solarize": 256 - (256 * strength).floor(),
        "solarize add": (110 * strength).floor(),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), factor),
        **dict.fromkeys(("shear x", "shear y"), 0.3 * strength * sign),
        "translate x": 0.45 * strength * sign * width,
        "translate y": 0.45 * strength * sign * height,
    }


def _big_vision(m: Tensor, sign: Tensor, height: int, width: int) -> Amounts:
    """The 16 operations of TensorFlow's code for EfficientNet, with which big_vision, V-MoE and WideNet train.

    Blends only go upwards, and lengths are pixels whatever the image's size. Posterize keeps more bits at a higher
    magnitude. Thresholds of solarize have 8 bits there: 256 counts as 0, so that magnitude 10 inverts every pixel.
    """
    strength, nothing = m / 10, torch.zeros_like(m)
    factor = 0.1 + 1.8 * strength
    return {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), nothing),
        "rotate": 30 * strength * sign,
        "posterize": (4 * strength).floor(),
        "solarize": (256 * strength).floor() % 256,
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), factor),
        **dict.fromkeys(("shear x", "shear y"), 0.3 * strength * sign),
        "translate x": 100 * strength * sign,
        "translate y": 100 * strength * sign,
        "cutout": (40 * strength).floor(),
        "solarize add": (110 * strength).floor(),
    }


POLICIES = {
    "paper": Policy(_paper, Style(fill=(0.0, 0.0, 0.0), taps=2, shear_origin=0.5)),
    "deit": Policy(_deit, Style(fill=MEAN_COLOUR, taps=4, shear_origin=0.0), p=0.5, deviation=0.5, largest=10.0),
    "big_vision": Policy(_big_vision, Style(fill=(128.0, 128.0, 128.0), taps=1, shear_origin=0.5, tensorflow=True)),
}
"""What the recipe's `policy` names."""
