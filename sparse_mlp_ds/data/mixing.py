"""Mixup and CutMix: each image and its label are mixed with those of its neighbour in the batch.

Neighbours in a micro-batch are neighbours in the global batch, so who meets whom depends on no number of ranks.
"""

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.augment import rectangle
from sparse_mlp_ds.data.sections import Mix


def mix(images: Tensor, targets: Tensor, section: Mix, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [B, 3, H, W] and soft targets [B, classes] mixed pairwise; B even, keys [B].

    Sample i keeps the share lambda ~ Beta(alpha, alpha) of itself, its pixels and its label alike; the rest is its
    neighbour's, i + 1 or i - 1. CutMix keeps all but a rectangle of that share (Yun et al., 2019, eq. 1-2).
    """
    mixed, by_box, share, y, x = rng.uniform(keys, rng.stream_id("mix"), 5).unbind(1)  # [B] each
    is_mixed = mixed < section.p
    is_box = by_box < 0.5 if section.mixup and section.cutmix else torch.full_like(by_box, section.cutmix > 0).bool()
    keep = torch.where(is_box, _beta(section.cutmix, share), _beta(section.mixup, share))

    height, width = images.shape[-2:]
    side = (1 - keep).sqrt()
    top, left = y * height - side * height / 2, x * width - side * width / 2  # centred anywhere, cut at the border
    box = rectangle(top, left, side * height, side * width, height, width)
    keep = torch.where(is_box, 1 - box.float().mean(dim=(1, 2)), keep)
    keep = torch.where(is_mixed, keep, 1.0)

    others = images.view(-1, 2, *images.shape[1:]).flip(1).view_as(images)
    boxed = torch.where((box & (is_mixed & is_box)[:, None, None])[:, None], others, images)
    blended = torch.lerp(others, images, keep[:, None, None, None])
    result = torch.where(is_box[:, None, None, None], boxed, blended)
    other_targets = targets.view(-1, 2, targets.shape[1]).flip(1).view_as(targets)
    return result, torch.lerp(other_targets, targets, keep[:, None])


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Return draws of Beta(alpha, alpha) from uniform ones; ones where alpha is 0."""
    if not alpha:
        return torch.ones_like(uniform)
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().cpu().numpy())).to(uniform)
