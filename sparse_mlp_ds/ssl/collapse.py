"""Signs that contrastive features collapse, which need no labels.

Features that are all alike, or that vary in a few directions only, serve no later task, while the contrastive loss may
look healthy. What is measured here fits into one vector of sums, which ranks add up together with their other figures.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sums(features: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return what `figures` needs of one rank's images, float32 [2 + 2 C + 4 D + D x D]; sums over ranks are those of
    all images. Nothing here waits for the device.

    Args:
        features: [2, B, C], the backbone's features of both views of B images.
        queries: [2, B, D], of the same views.
        keys: [2, B, D], the momentum encoder's.
    """
    features, queries, keys = (F.normalize(x.float(), dim=-1) for x in (features, queries, keys))
    flat, all_keys = features.flatten(0, 1), keys.flatten(0, 1)
    positive = (queries * keys.flip(0)).sum()
    images = flat.new_full((), queries.shape[1])
    parts = [torch.stack([images, positive]), flat.sum(dim=0), flat.square().sum(dim=0), queries.sum(dim=1)]
    return torch.cat([part.flatten() for part in (*parts, keys.sum(dim=1), all_keys.T @ all_keys)])


def figures(sums: Tensor, width: int, dim: int) -> dict[str, float]:
    """Return the figures of a record from `sums`, added up over all ranks.

    feature_std: standard deviation of unit-length features over images, the mean over features times sqrt(C), as in
    SimSiam (Chen and He, arXiv 2011.10566, section 4.1): about 1 if they spread in all directions, 0 if all are equal.
    effective_rank: exponential of the entropy of the keys' singular values over their sum (Roy and Vetterli, 2007; as
    RankMe, arXiv 2210.02885): how many directions keys use, at most `dim` and the number of keys.
    positive_similarity, negative_similarity: mean cosine of queries with the key of their own image, and with the keys
    of all others.

    Args:
        sums: On the host.
        width: C.
        dim: D.
    """
    sizes = (2, width, width, 2 * dim, 2 * dim, dim * dim)
    counts, total, squares, queries, keys, products = (part.double().numpy() for part in sums.split(sizes))
    images, positive = counts.tolist()
    mean = total / (2 * images)
    spread = np.sqrt(np.maximum(squares / (2 * images) - mean**2, 0)).mean() * math.sqrt(width)
    pairs = (queries.reshape(2, dim) * keys.reshape(2, dim)[::-1]).sum()
    negative = (pairs - positive) / (2 * images * (images - 1)) if images > 1 else math.nan
    return {
        "feature_std": float(spread),
        "effective_rank": _effective_rank(products.reshape(dim, dim)),
        "positive_similarity": positive / (2 * images),
        "negative_similarity": float(negative),
    }


def _effective_rank(products: np.ndarray) -> float:
    """Return the effective rank of keys, given the products of their D features summed over keys, [D, D]."""
    if not np.isfinite(products).all():
        return math.nan
    squared = np.linalg.eigvalsh(products)
    # Sums in float32 leave noise where there should be nothing; the square root would make it count.
    squared = squared[squared > len(squared) * np.finfo(np.float32).eps * squared[-1]]
    if not len(squared):  # all keys are zero: batch norm makes that of features that are all equal
        return 0.0
    shares = np.sqrt(squared) / np.sqrt(squared).sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
