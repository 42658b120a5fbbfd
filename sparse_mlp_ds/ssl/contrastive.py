"""The contrastive loss of MoCo v3 (InfoNCE over the global batch, algorithm 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds import dist


def symmetric_info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return ctr(q1, k2) + ctr(q2, k1), a scalar: this rank's share of a mean over the global batch.

    queries, keys: [2, B, D], the two views' outputs of the online and the momentum net for the same B images. Each
    query is contrasted with the keys of all ranks' images in the other view; keys carry no gradient.
    ctr(q, k) = 2 T x cross-entropy(q k / T, own image).
    """
    queries = F.normalize(queries.float(), dim=-1)
    keys = F.normalize(keys.float(), dim=-1)
    batch = queries.shape[1]
    targets = torch.arange(batch, device=queries.device) + dist.rank() * batch
    loss = queries.new_zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        logits = query @ dist.all_gather(key).T / temperature  # [B, world x B]
        loss = loss + F.cross_entropy(logits, targets) * (2 * temperature)
    return loss
