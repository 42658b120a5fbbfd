"""How much two MoE layers agree, from counts alone."""

from math import log

import torch
from torch import Tensor

from sparse_mlp_ds.routes.counts import RouteCounts
from sparse_mlp_ds.routes.record import Agreement

_EVEN = 1e-9  # variance over mean square below which a load counts as the same for all images


def agreement(counts: RouteCounts) -> Agreement:
    """Return the agreement of all pairs of layers. counts: of all ranks."""
    layers = range(len(counts.layers))
    tables = {pair: _shared_information(table) for pair, table in counts.pairs.items()}
    items = [[1.0 if a == b else tables.get((min(a, b), max(a, b))) for b in layers] for a in layers]
    return Agreement(images=_alignment(counts), items=tuple(map(tuple, items)))


def _alignment(counts: RouteCounts) -> tuple[tuple[float | None, ...], ...]:
    """Return linear CKA between the images' loads of each pair of layers (Kornblith et al., 2019, eq. 5)."""
    images = counts.images.clamp_min(1)
    mean = counts.loads / images
    covariance = counts.products / images - mean[:, None] * mean
    sizes = [layer.experts for layer in counts.layers]
    blocks = [rows.split(sizes, dim=1) for rows in covariance.split(sizes)]
    norms = [[float(block.norm()) for block in row] for row in blocks]
    even = [_EVEN * float(one.square().sum()) for one in mean.split(sizes)]
    varies = [norms[a][a] > even[a] for a in range(len(sizes))]
    return tuple(
        tuple(
            round(norms[a][b] ** 2 / (norms[a][a] * norms[b][b]), 6) if varies[a] and varies[b] else None
            for b in range(len(sizes))
        )
        for a in range(len(sizes))
    )


def _shared_information(table: Tensor) -> float | None:
    """Return 2 I(A; B) / (H(A) + H(B)) of a table [E, E] of counts; None if either side is always the same expert."""
    joint = table / table.sum().clamp_min(1)
    of_a, of_b = joint.sum(dim=1), joint.sum(dim=0)
    entropies = [float(-torch.special.xlogy(p, p).sum()) for p in (of_a, of_b, joint)]
    if min(entropies[:2]) < 1e-12 * log(2):
        return None
    return round(2 * (entropies[0] + entropies[1] - entropies[2]) / (entropies[0] + entropies[1]), 6)
