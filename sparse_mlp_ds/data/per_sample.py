"""Changes that are different for each sample of a batch: which samples are changed, and which of their pixels."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def by_subset(images: Tensor) -> bool:
    """Return whether an operation is computed for the chosen samples alone, as on a CPU.

    A GPU computes it for all of them sooner than it can tell the host how many were chosen.
    """
    return images.device.type == "cpu"


def change(images: Tensor, is_chosen: Tensor, operation: Callable[..., Tensor], *arguments: Tensor) -> None:
    """Replace, in place, each chosen sample by the operation's result.

    Args:
        images: [B, 3, H, W], changed in place.
        is_chosen: [B] bool.
        operation: (images [N, 3, H, W], *arguments [N, ...]) -> images [N, 3, H, W], called with N samples: those that
            are chosen, or all.
        arguments: [B, ...], what else the operation is told of each sample.
    """
    if not by_subset(images):
        images.copy_(torch.where(is_chosen[:, None, None, None], operation(images, *arguments), images))
        return
    chosen = is_chosen.nonzero()[:, 0]
    if len(chosen) == len(images):
        images.copy_(operation(images, *arguments))
    elif len(chosen):
        images.index_copy_(0, chosen, operation(images[chosen], *(argument[chosen] for argument in arguments)))


def rectangle(top: Tensor, left: Tensor, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels have their centre inside a rectangle, with one rectangle per sample.

    Args:
        top: [B], the rectangle's upper edge, pixels.
        left: [B], its left edge, pixels.
        h: [B], its height, pixels.
        w: [B], its width, pixels.
        height: Height of the images, pixels.
        width: Width of the images, pixels.

    Returns:
        [B, height, width] bool.
    """
    rows = torch.arange(height, device=top.device) + 0.5
    columns = torch.arange(width, device=top.device) + 0.5
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


@lru_cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a tensor that is made once: bringing it to a GPU makes the host wait."""
    return torch.tensor(values, device=device)
