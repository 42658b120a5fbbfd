"""Augmentation on the device: whole batches at once, every draw keyed by the sample's number in the stage.

The operations are kornia's; which sample gets which is decided here, so that it depends on no rank and no batch size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.recipe import Blur, Data, Jitter, View


def augment(images: Tensor, view: View, keys: Tensor) -> Tensor:
    """Apply a view's operations in MoCo v3's order: [B, 3, H, W] in [0, 1] -> the same. keys: [B] sample keys."""
    images = images.float()
    if view.jitter:
        images = _sometimes(view.jitter.p, "jitter", keys, images, lambda x, k: _jitter(x, view.jitter, k))
    if view.grayscale:
        images = _sometimes(view.grayscale, "grayscale", keys, images, lambda x, k: _grey(x).expand_as(x))
    if view.blur:
        images = _sometimes(view.blur.p, "blur", keys, images, lambda x, k: _blur(x, view.blur, k))
    if view.solarize:
        images = _sometimes(view.solarize, "solarize", keys, images, lambda x, k: torch.where(x >= 0.5, 1 - x, x))
    if view.flip:
        images = _sometimes(view.flip, "flip", keys, images, lambda x, k: x.flip(-1))
    return images


def normalize(images: Tensor, data: Data) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (data.mean, data.std))
    return (images - mean) / std


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float() / 255


def _sometimes(
    p: float, name: str, keys: Tensor, images: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `operation(images, keys)` to the samples whose draw falls below p."""
    chosen = rng.uniform(keys, rng.stream_id(f"augment/{name}"), 1)[:, 0] < p
    if not chosen.any():
        return images
    result = images.clone()
    result[chosen] = operation(images[chosen], keys[chosen])
    return result


def _jitter(images: Tensor, jitter: Jitter, keys: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue, in that order and each by a factor of its own per sample."""
    from kornia import enhance

    draws = rng.uniform(keys, rng.stream_id("augment/jitter strength"), 4) * 2 - 1  # [B, 4] in [-1, 1)
    if jitter.brightness:
        images = enhance.adjust_brightness_accumulative(images, 1 + draws[:, 0] * jitter.brightness)
    if jitter.contrast:
        images = enhance.adjust_contrast_with_mean_subtraction(images, 1 + draws[:, 1] * jitter.contrast)
    if jitter.saturation:
        images = enhance.adjust_saturation_with_gray_subtraction(images, 1 + draws[:, 2] * jitter.saturation)
    if jitter.hue:
        images = enhance.adjust_hue(images, draws[:, 3] * jitter.hue * 2 * torch.pi)
    return images


def _grey(images: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(images)


def _blur(images: Tensor, blur: Blur, keys: Tensor) -> Tensor:
    from kornia.filters import gaussian_blur2d

    low, high = blur.sigma
    sigma = low + rng.uniform(keys, rng.stream_id("augment/blur sigma"), 1) * (high - low)  # [B, 1]
    radius = min(int(3 * high) + 1, (images.shape[-1] - 1) // 2)
    return gaussian_blur2d(images, 2 * radius + 1, sigma.expand(-1, 2))
