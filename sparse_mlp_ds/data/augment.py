"""Augmentation on the device: whole batches at once, every draw keyed by the sample's number in the stage.

Most operations are kornia's; which sample gets which is decided here, so that it depends on no rank and no batch size.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.rand_augment import rand_augment
from sparse_mlp_ds.data.sections import Blur, Jitter, Pixels, View

_ERASED_AREA = (0.02, 1 / 3)  # shares of the image, and the range of height over width: torchvision's and timm's
_ERASED_RATIO = (0.3, 3.3)


def views(batch: Batch, wanted: Sequence[View], seed: int) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's augmented views [V, B, 3, H, W] in [0, 1], and the keys [V, B] of what else draws."""
    keys = [rng.sample_keys(seed, batch.numbers, f"view {v}") for v in range(len(wanted))]
    images = [augment(to_unit(batch.images[:, v]), view, keys[v]) for v, view in enumerate(wanted)]
    return torch.stack(images), torch.stack(keys)


def augment(images: Tensor, view: View, keys: Tensor) -> Tensor:
    """Apply a view's operations in MoCo v3's order: [B, 3, H, W] in [0, 1] -> the same. keys: [B] sample keys."""
    images = images.float().clone()  # changed in place from here on
    if view.rand_augment:
        images = rand_augment(images, view.rand_augment, keys)
    if view.jitter:
        _sometimes(view.jitter.p, "jitter", keys, images, lambda x, k: _jitter(x, view.jitter, k))
    if view.grayscale:
        _sometimes(view.grayscale, "grayscale", keys, images, lambda x, k: _grey(x).expand_as(x))
    if view.blur:
        _sometimes(view.blur.p, "blur", keys, images, lambda x, k: _blur(x, view.blur, k))
    if view.solarize:
        _sometimes(view.solarize, "solarize", keys, images, lambda x, k: torch.minimum(x, 1 - x))
    if view.flip:
        _sometimes(view.flip, "flip", keys, images, lambda x, k: x.flip(-1))
    if view.erase:
        _sometimes(view.erase, "erase", keys, images, _erase)
    return images


def normalize(images: Tensor, data: Pixels) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (data.mean, data.std))
    return (images - mean) / std


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    # The loader's lie as they were decoded, channels last, and all that is made of them would; kornia 0.8 fails there.
    return images.contiguous().float() / 255


def _sometimes(
    p: float, name: str, keys: Tensor, images: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the samples whose draw falls below p by `operation(images, keys)`."""
    chosen = (rng.uniform(keys, rng.stream_id(f"augment/{name}"), 1)[:, 0] < p).nonzero()[:, 0]
    if len(chosen) == len(images):
        images.copy_(operation(images, keys))
    elif len(chosen):
        images.index_copy_(0, chosen, operation(images[chosen], keys[chosen]))


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
        images = _shift_hue(images, draws[:, 3] * jitter.hue)
    return images


def _erase(images: Tensor, keys: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    area, ratio, y, x = rng.uniform(keys, rng.stream_id("augment/erased"), 4).unbind(1)  # [B] each
    area = (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0])) * height * width
    low, high = (math.log(edge) for edge in _ERASED_RATIO)
    ratio = torch.exp(low + ratio * (high - low))
    h, w = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    inside = rectangle(y * (height - h), x * (width - w), h, w, height, width)
    return torch.where(inside[:, None], images.mean(dim=(2, 3), keepdim=True), images)


def rectangle(top: Tensor, left: Tensor, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """Return [B, height, width] bool: the pixels whose middles lie inside a rectangle per sample, all [B], pixels."""
    rows = torch.arange(height, device=top.device) + 0.5
    columns = torch.arange(width, device=top.device) + 0.5
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue [B] of HSV at the same saturation and value; kornia's result in a fraction of its time on a CPU."""
    red, green, blue = images.unbind(1)  # [B, H, W] each
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    some = chroma.clamp_min(1e-8)
    hue = torch.where(value == green, (blue - red) / some + 2, (red - green) / some + 4)
    hue = torch.where(value == red, (green - blue) / some, hue) + 6 * turns[:, None, None]  # in sixths of a turn
    hue -= 6 * (hue / 6).floor()  # into [0, 6); torch.remainder takes several times as long
    lowest = value - chroma
    # A channel is at V within a sixth of its own hue, and at V - C from two sixths on.
    shares = ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    return torch.stack([torch.addcmul(lowest, chroma, share.clamp_(0, 1)) for share in shares], dim=1)


def _grey(images: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(images)


def _blur(images: Tensor, blur: Blur, keys: Tensor) -> Tensor:
    from kornia.filters import gaussian_blur2d

    low, high = blur.sigma
    sigma = low + rng.uniform(keys, rng.stream_id("augment/blur sigma"), 1) * (high - low)  # [B, 1]
    radius = min(int(3 * high) + 1, (images.shape[-1] - 1) // 2)
    return gaussian_blur2d(images, 2 * radius + 1, sigma.expand(-1, 2))
