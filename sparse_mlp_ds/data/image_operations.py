"""The operations of RandAugment and AutoAugment on the device, each sample by its own operation and amount.

They work on whole levels, 0 to 255, and cut down to whole levels as Pillow and TensorFlow do, so that a chain of them
gives what the references' code gives. An operation is a table from levels to levels, a blend with a degenerate form of
the image, a warp or a cutout; each kind is computed for all its samples at once, whatever their operations.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.data import per_sample

TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize add", "brightness", "contrast")
BLENDS = ("color", "sharpness")
WARPS = ("rotate", "shear x", "shear y", "translate x", "translate y")
NUMBERS = {name: number for number, name in enumerate(("identity", *TABLES, *BLENDS, *WARPS, "cutout"))}
"""Number of each operation."""


class Style(NamedTuple):
    """What references do differently in operations of the same name."""

    fill: tuple[float, float, float]
    """Colour of the pixels that a warp or a cutout leaves empty, levels."""
    taps: int
    """Pixels along each axis that a warp looks at: 1 is the nearest one, 2 bilinear, 4 bicubic."""
    shear_origin: float
    """Place on both axes that a shear leaves where it is, pixels: 0 is the image's corner, 0.5 the first pixel."""
    tensorflow: bool = False
    """Whether colours are those of TensorFlow's code for EfficientNet, or else those of Pillow."""


class Changes(NamedTuple):
    """One operation for each of B samples."""

    operation: Tensor
    """[B] int64, the operation's number."""
    amount: Tensor
    """[B] float32: kept bits (posterize), threshold (solarize), levels (solarize add), factor of a blend, degrees
    (rotate), slope (shear), pixels (translate), half of the side in pixels (cutout). A warp's amount says where each
    pixel comes from: positive values take it from the right or from below."""
    centre: Tensor
    """[B, 2] int64, row and column of a cutout's centre."""


def apply(levels: Tensor, changes: Changes, style: Style) -> Tensor:
    """Return each image after its operation.

    Args:
        levels: [B, 3, H, W] float32, whole numbers from 0 to 255.
        changes: The samples' operations.
        style: Whose operations they are.
    """
    levels = levels.clone()
    kinds = ((TABLES, _look_up), (BLENDS, _blend), (WARPS, _warp), (("cutout",), _cut_out))
    for names, function in kinds:
        first, last = NUMBERS[names[0]], NUMBERS[names[-1]]
        is_chosen = (changes.operation >= first) & (changes.operation <= last)
        run = lambda x, *fields, function=function: function(x, Changes(*fields), style)  # noqa: E731
        per_sample.change(levels, is_chosen, run, *changes)
    return levels


def _look_up(levels: Tensor, changes: Changes, style: Style) -> Tensor:
    """Map each level to another one, by a table for each sample and channel."""
    pixels = levels.flatten(2).long()  # [N, 3, HW]
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    level = torch.arange(256, device=levels.device).float()
    amount = changes.amount[:, None, None]
    step = 2 ** (8 - amount)
    tables = {
        "autocontrast": _stretched(counts, level),
        "equalize": _equalized(counts, level),
        "invert": 255 - level,
        "posterize": (level / step).floor() * step,
        "solarize": torch.where(level < amount, level, 255 - level),
        "solarize add": torch.where(level < 128, _whole(level + amount), level),
        "brightness": _whole(amount * level),
        "contrast": _contrast(levels, level, amount, style),
    }
    result = level.expand(counts.shape)
    for name, table in tables.items():
        result = torch.where((changes.operation == NUMBERS[name])[:, None, None], table, result)
    return result.gather(2, pixels).view_as(levels)


def _stretched(counts: Tensor, level: Tensor) -> Tensor:
    """Return tables [N, 3, 256] that stretch each channel to 0 .. 255. counts: pixels of each level, [N, 3, 256]."""
    there = counts > 0
    low = torch.where(there, level, 255).amin(dim=2, keepdim=True)
    high = torch.where(there, level, 0).amax(dim=2, keepdim=True)
    scale = 255 / (high - low).clamp_min(1)
    return torch.where(high > low, _whole((level - low) * scale), level)


def _equalized(counts: Tensor, level: Tensor) -> Tensor:
    """Return tables [N, 3, 256] that spread each channel's pixels evenly over the levels."""
    highest = torch.where(counts > 0, level, 0).amax(dim=2, keepdim=True).long()
    total = counts.sum(dim=2, keepdim=True)
    step = (total - counts.gather(2, highest)) // 255
    below = counts.cumsum(dim=2) - counts
    spread = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, spread.float(), level)


def _contrast(levels: Tensor, level: Tensor, amount: Tensor, style: Style) -> Tensor:
    if style.tensorflow:  # its mean of the histogram is the number of pixels over the number of levels
        mean = torch.full_like(amount, min(levels.shape[2] * levels.shape[3] // 256, 255))
    else:
        luma = _luma(levels, style)
        mean = (luma.mean(dim=(1, 2, 3), dtype=torch.float64) + 0.5).floor().float()[:, None, None]
    return _whole(mean + amount * (level - mean))


def _blend(levels: Tensor, changes: Changes, style: Style) -> Tensor:
    """Move each image away from its grey form, or from its smoothed one."""
    is_colour = (changes.operation == NUMBERS["color"])[:, None, None, None]
    degenerate = torch.where(is_colour, _luma(levels, style), _smooth(levels, style))
    return _whole(degenerate + changes.amount[:, None, None, None] * (levels - degenerate))


def _luma(levels: Tensor, style: Style) -> Tensor:
    """Return the brightness [N, 1, H, W] in whole levels."""
    red, green, blue = levels.split(1, dim=1)
    if style.tensorflow:
        return ((0.2989 * red + 0.587 * green + 0.114 * blue) * (255.5 / 255)).floor()
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()  # Pillow's integers


def _smooth(levels: Tensor, style: Style) -> Tensor:
    """Return means of 3 x 3 pixels in whole levels, the middle one weighed five times; the border stays."""
    if min(levels.shape[2:]) < 3:
        return levels
    inner = (F.avg_pool2d(levels, 3, stride=1, divisor_override=1) + 4 * levels[:, :, 1:-1, 1:-1]) / 13
    result = levels.clone()
    result[:, :, 1:-1, 1:-1] = (inner + (0 if style.tensorflow else 0.5)).floor()
    return result


def _warp(levels: Tensor, changes: Changes, style: Style) -> Tensor:
    """Take each pixel from a different place of its image, between pixels if need be."""
    height, width = levels.shape[2:]
    y = torch.arange(height, device=levels.device)[None, :, None] + 0.5
    x = torch.arange(width, device=levels.device)[None, None, :] + 0.5

    def amount(name: str) -> Tensor:
        return torch.where(changes.operation == NUMBERS[name], changes.amount, 0)[:, None, None]

    angle, middle_x, middle_y = torch.deg2rad(amount("rotate")), width / 2, height / 2
    cos, sin = angle.cos(), angle.sin()
    source_x = cos * (x - middle_x) - sin * (y - middle_y) + middle_x
    source_y = sin * (x - middle_x) + cos * (y - middle_y) + middle_y
    source_x = source_x + amount("shear x") * (y - style.shear_origin) + amount("translate x")
    source_y = source_y + amount("shear y") * (x - style.shear_origin) + amount("translate y")
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    fill = per_sample.constant(style.fill, levels.device)[:, None, None]
    return torch.where(inside[:, None], _sample(levels, source_y, source_x, style.taps), fill)


def _sample(levels: Tensor, y: Tensor, x: Tensor, taps: int) -> Tensor:
    """Return images at places between their pixels, in whole levels; beyond the border its pixels are repeated.

    levels: [N, 3, H, W]. y, x: [N, H, W], pixels; the middle of the first pixel is at 0.5. taps: see `Style`.
    """
    (height, width), pixels = levels.shape[2:], levels.flatten(2)
    shift = 0.0 if taps == 1 else 0.5
    y, x = y.flatten(1) - shift, x.flatten(1) - shift
    top, left = y.floor(), x.floor()
    by_row, by_column = _weights(y - top, taps), _weights(x - left, taps)
    rows = {offset: (top + offset).clamp(0, height - 1).long() * width for offset in by_row}
    columns = {offset: (left + offset).clamp(0, width - 1).long() for offset in by_column}
    total = torch.zeros_like(pixels)
    for row, row_weight in by_row.items():
        for column, column_weight in by_column.items():
            index = (rows[row] + columns[column])[:, None].expand_as(pixels)
            total.addcmul_((row_weight * column_weight)[:, None], pixels.gather(2, index))
    return _whole(total.view_as(levels) + 1e-3)  # weights sum to 1 but for float32's rounding


def _weights(d: Tensor, taps: int) -> dict[int, Tensor]:
    """Return the weights of the pixels around a place, by their offset. d: the place beyond offset 0, in [0, 1)."""
    if taps == 1:
        return {0: torch.ones_like(d)}
    if taps == 2:
        return {0: 1 - d, 1: d}
    square, cube = d**2, d**3  # the cubic convolution of Keys (1981) with a = -1, as in Pillow's transforms
    return {-1: 2 * square - d - cube, 0: 1 - 2 * square + cube, 1: d + square - cube, 2: cube - square}


def _cut_out(levels: Tensor, changes: Changes, style: Style) -> Tensor:
    """Fill a square around each sample's centre."""
    height, width = levels.shape[2:]
    (row, column), half = changes.centre.unbind(1), changes.amount
    inside = per_sample.rectangle(row - half, column - half, 2 * half, 2 * half, height, width)
    return torch.where(inside[:, None], per_sample.constant(style.fill, levels.device)[:, None, None], levels)


def _whole(levels: Tensor) -> Tensor:
    """Cut values down to whole levels from 0 to 255."""
    return levels.clamp(0, 255).floor()
