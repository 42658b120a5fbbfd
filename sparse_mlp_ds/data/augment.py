"""Augmentation on the device, a whole batch at a time; every random draw is keyed by the sample's number in the stage.

Jitter, grey and blur are kornia's. This file decides which samples each operation applies to, so that the result
depends on neither the number of ranks nor the batch size.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data import per_sample
from sparse_mlp_ds.data.auto_augment import auto_augment
from sparse_mlp_ds.data.config import Blur, Jitter, Pixels, View
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.rand_augment import rand_augment

# Ranges of the erased area over the image's, and of its height over its width: those of torchvision and timm.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 3.3)
Operation = Callable[[Tensor, Tensor], Tensor]
"""(images [N, 3, H, W], random keys [N]) -> images [N, 3, H, W]."""


def views(batch: Batch, configs: Sequence[View], seed: int, data: Pixels | None = None) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's augmented views and the random keys of their samples, for further draws.

    Args:
        batch: Crops of B images, one for each of the V views.
        configs: The V views.
        seed: Seed of the run.
        data: Mean and standard deviation of noise that fills erased rectangles; ImageNet's without it.

    Returns:
        Images [V, B, 3, H, W] in [0, 1] but for such noise, and keys [V, B] int64.
    """
    rng_keys = [rng.sample_keys(seed, batch.numbers, f"view {v}") for v in range(len(configs))]
    images = [augment(to_unit(batch.inputs[:, v]), view, rng_keys[v], data) for v, view in enumerate(configs)]
    return torch.stack(images), torch.stack(rng_keys)


def augment(images: Tensor, view: View, rng_keys: Tensor, data: Pixels | None = None) -> Tensor:
    """Apply a view's operations in the order of MoCo v3 (Chen et al., 2021).

    Args:
        images: [B, 3, H, W] in [0, 1].
        view: Which operations are applied, and with what probability.
        rng_keys: [B], one random key per sample.
        data: Mean and standard deviation of noise that fills erased rectangles; ImageNet's without it.

    Returns:
        The augmented images, [B, 3, H, W] in [0, 1] but for such noise.
    """
    images = images.float().clone()  # changed in place from here on
    if view.rand_augment:
        images = rand_augment(images, view.rand_augment, rng_keys)
    if view.auto_augment:
        images = auto_augment(images, view.auto_augment, rng_keys)
    if jitter := view.jitter:
        _apply_at_random(jitter.p, "jitter", rng_keys, images, lambda x, keys: _jitter(x, jitter, keys))
    if view.grayscale:
        _apply_at_random(view.grayscale, "grayscale", rng_keys, images, lambda x, keys: _grey(x).expand_as(x))
    if blur := view.blur:
        _apply_at_random(blur.p, "blur", rng_keys, images, lambda x, keys: _blur(x, blur, keys))
    if view.solarize:
        _apply_at_random(view.solarize, "solarize", rng_keys, images, lambda x, keys: torch.minimum(x, 1 - x))
    if view.flip:
        _apply_at_random(view.flip, "flip", rng_keys, images, lambda x, keys: x.flip(-1))
    if erase := view.erase:
        fill = _noise(data or Pixels()) if erase.fill == "noise" else _mean_colour
        _apply_at_random(erase.p, "erase", rng_keys, images, lambda x, keys: _erase(x, keys, fill(x, keys)))
    return images


def normalize(images: Tensor, data: Pixels) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation: [..., 3, H, W] -> [..., 3, H, W]."""
    mean, std = _mean_and_std(data, images.device)
    return (images - mean) / std


def _mean_and_std(data: Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels, [3, 1, 1] each."""
    mean, std = (per_sample.constant(tuple(values), device).view(3, 1, 1) for values in (data.mean, data.std))
    return mean, std


def to_unit(images: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1]."""
    # The loader's tensors keep Pillow's memory layout, channels last, and so would all results; kornia 0.8 fails there.
    return images.contiguous().float() / 255


def _apply_at_random(p: float, name: str, rng_keys: Tensor, images: Tensor, operation: Operation) -> None:
    """Replace, in place and with probability p, each sample by `operation(images, rng_keys)` of it.

    Args:
        p: Probability.
        name: Name of the operation's random stream.
        rng_keys: [B], one random key per sample.
        images: [B, 3, H, W], changed in place.
        operation: Called with N samples: the chosen or all.
    """
    is_chosen = rng.uniform(rng_keys, rng.stream_id(f"augment/{name}"), 1)[:, 0] < p
    per_sample.change(images, is_chosen, operation, rng_keys)


def _jitter(images: Tensor, jitter: Jitter, rng_keys: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in that order, each sample by its own random factors."""
    from kornia import enhance

    draws = rng.uniform(rng_keys, rng.stream_id("augment/jitter strength"), 4) * 2 - 1  # [B, 4] in [-1, 1)
    if jitter.brightness:
        images = enhance.adjust_brightness_accumulative(images, 1 + draws[:, 0] * jitter.brightness)
    if jitter.contrast:
        images = enhance.adjust_contrast_with_mean_subtraction(images, 1 + draws[:, 1] * jitter.contrast)
    if jitter.saturation:
        images = enhance.adjust_saturation_with_gray_subtraction(images, 1 + draws[:, 2] * jitter.saturation)
    if jitter.hue:
        images = _shift_hue(images, draws[:, 3] * jitter.hue)
    return images


def _mean_colour(images: Tensor, rng_keys: Tensor) -> Tensor:
    return images.mean(dim=(2, 3), keepdim=True)


def _noise(data: Pixels) -> Operation:
    """Return an operation that gives images of noise, which is N(0, 1) once it is normalised."""

    def noise(images: Tensor, rng_keys: Tensor) -> Tensor:
        mean, std = _mean_and_std(data, images.device)
        draws = rng.normal(rng_keys, rng.stream_id("augment/erased pixels"), images[0].numel())
        return mean + std * draws.view_as(images)

    return noise


def _erase(images: Tensor, rng_keys: Tensor, fill: Tensor) -> Tensor:
    """Replace a random rectangle of each image by the same part of `fill` (random erasing, Zhong et al., 2020).

    fill: [B, 3, H, W], or [B, 3, 1, 1] of one colour.
    """
    height, width = images.shape[-2:]
    area, ratio, y, x = rng.uniform(rng_keys, rng.stream_id("augment/erased"), 4).unbind(1)  # [B] each
    area = (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0])) * height * width
    low, high = (math.log(edge) for edge in _ERASED_RATIO)
    ratio = torch.exp(low + ratio * (high - low))
    h, w = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    inside = per_sample.rectangle(y * (height - h), x * (width - w), h, w, height, width)
    return torch.where(inside[:, None], fill, images)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of HSV by `turns` [B] and keep saturation and value.

    The result is kornia's; on a CPU this takes a fraction of kornia's time.
    """
    red, green, blue = images.unbind(1)  # [B, H, W] each
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    divisor = chroma.clamp_min(1e-8)
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue) + 6 * turns[:, None, None]  # in sixths of a turn
    hue -= 6 * (hue / 6).floor()  # into [0, 6); torch.remainder takes several times as long
    lowest = value - chroma
    # A channel is at V within a sixth of its own hue, and at V - C from two sixths on.
    shares = ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    return torch.stack([torch.addcmul(lowest, chroma, share.clamp_(0, 1)) for share in shares], dim=1)


def _grey(images: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(images)


def _blur(images: Tensor, blur: Blur, rng_keys: Tensor) -> Tensor:
    from kornia.filters import filter2d_separable, gaussian_blur2d, get_gaussian_kernel1d

    low, high = blur.sigma
    sigma = low + rng.uniform(rng_keys, rng.stream_id("augment/blur sigma"), 1) * (high - low)  # [B, 1]
    radius = min(int(3 * high) + 1, (images.shape[-1] - 1) // 2)
    if per_sample.by_subset(images):
        return gaussian_blur2d(images, 2 * radius + 1, sigma.expand(-1, 2))
    # The same without its question to the device whether every sigma is positive.
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma)
    return filter2d_separable(images, kernel, kernel)
