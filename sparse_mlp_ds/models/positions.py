"""Fixed positions of patches: sines and cosines of their row and column."""

import torch
from torch import Tensor


def sin_cos(side: int, width: int, swapped: bool = False) -> Tensor:
    """Return positions [S, C] of a square grid: sines and cosines of a patch's row, then of its column.

    Each has C / 4 frequencies, which fall from 1 towards 1/10000. This is the order of MoCo v3's code, whose first half
    varies along the slow axis of the flattened grid.

    Args:
        side: patches along one side.
        width: channels C.
        swapped: whether the column comes first, as in version 0.1.0 of this package.
    """
    frequencies = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # [side, C / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, C / 2]
    row, column = waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)  # patches are numbered row by row
    return torch.cat([column, row] if swapped else [row, column], dim=1)
