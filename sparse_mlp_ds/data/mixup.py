"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019): images are mixed in pairs of neighbours, labels too.

Neighbours in a micro-batch are neighbours in the global batch, so the pairs do not depend on the number of ranks.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.config import Mix
from sparse_mlp_ds.data.per_sample import rectangle

_CELLS = 1 << 16  # of the table of quantiles


def mix(images: Tensor, targets: Tensor, config: Mix, rng_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image and its label with its neighbour's: sample i is mixed with i + 1 or i - 1.

    A sample keeps the share lambda ~ Beta(alpha, alpha) of its own pixels and label; the rest comes from its neighbour.
    CutMix replaces a rectangle of the share 1 - lambda (Yun et al., 2019, eq. 1-2). Both samples of a pair have the
    same draws, as in timm, so that the two results together hold each of the two images once.

    Args:
        images: [B, 3, H, W], B even.
        targets: [B, classes], class probabilities.
        config: Which of the two methods is applied, how strongly and how often.
        rng_keys: [B], one random key per sample.

    Returns:
        Mixed images [B, 3, H, W] and targets [B, classes].
    """
    draws = rng.uniform(rng_keys[::2], rng.stream_id("mix"), 5).repeat_interleave(2, dim=0)
    draw_mixed, draw_box, draw_share, y, x = draws.unbind(1)  # [B] each
    is_mixed = draw_mixed < config.p
    is_box = draw_box < 0.5 if config.mixup and config.cutmix else torch.full_like(draw_box, config.cutmix > 0).bool()
    keep = torch.where(is_box, _beta(config.cutmix, draw_share), _beta(config.mixup, draw_share))

    height, width = images.shape[-2:]
    side = (1 - keep).sqrt()
    top, left = y * height - side * height / 2, x * width - side * width / 2  # centred anywhere, clipped at the border
    box = rectangle(top, left, side * height, side * width, height, width)
    keep = torch.where(is_box, 1 - box.float().mean(dim=(1, 2)), keep)
    keep = torch.where(is_mixed, keep, 1.0)

    partners = images.view(-1, 2, *images.shape[1:]).flip(1).view_as(images)
    pasted = torch.where((box & (is_mixed & is_box)[:, None, None])[:, None], partners, images)
    blended = torch.lerp(partners, images, keep[:, None, None, None])
    result = torch.where(is_box[:, None, None, None], pasted, blended)
    partner_targets = targets.view(-1, 2, targets.shape[1]).flip(1).view_as(targets)
    return result, torch.lerp(partner_targets, targets, keep[:, None])


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Turn uniform draws [B] into draws of Beta(alpha, alpha); all are 1 if alpha is 0.

    Quantiles are interpolated between neighbours in a table, because scipy has no function for GPUs.
    """
    if not alpha:
        return torch.ones_like(uniform)
    table, place = _quantiles(alpha, uniform.device), uniform.double() * _CELLS
    cell = place.long().clamp_max(_CELLS - 1)
    return torch.lerp(table[cell], table[cell + 1], place - cell).to(uniform)


@lru_cache(maxsize=16)
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) [_CELLS + 1] float64, made once: copies make the host wait."""
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, _CELLS + 1))).to(device)
